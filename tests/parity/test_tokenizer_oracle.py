"""The tokenizer against transformers' own: ids, masks, offsets, padding, decoding, templates, files."""

from typing import Any, Literal

import numpy as np
import pytest
import torch

from qvl.errors import InputError
from qvl.processing.text.tokenizer import Qwen2TokenizerFast
from qvl.processing.text.tools import function_schema
from support.tokens import TOOLS_TEMPLATE, write_tiny_tokenizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

TEXTS = [
    "Hello world, it's   me!",
    "",
    " leading and trailing  \n\n",
    "line\r\nbreaks\n\n\n  and\ttabs",
    "Größe naïve 你好，世界 こんにちは привет مرحبا 🙂👩‍👩‍👧 e\u0301 \ufb01",
    "1234567890 3.14159 x=[1,2]; print(f'{x}')",
    '<|im_start|>user\nWhat?<|im_end|>\n<tool_call>\n{"name": "f"}\n</tool_call><|fim_prefix|>',
    "<|vision_start|><|image_pad|><|image_pad|><|vision_end|> a <b> </tool_call",
    "\u0000\u200b\u00a0\ud7ff\ue000 zero",
]


@pytest.fixture(scope="module", params=["tiny", "released"])
def pair(request, tmp_path_factory):
    if request.param == "tiny":
        folder = write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    else:
        folder = request.getfixturevalue("shared_data") / "tokenizer"
    return Qwen2TokenizerFast.from_pretrained(folder), transformers.Qwen2TokenizerFast.from_pretrained(folder)


def same(ours, theirs):
    assert list(ours) == list(theirs)
    for name in theirs:
        mine, other = ours[name], theirs[name]
        if isinstance(other, torch.Tensor):
            assert mine.dtype == other.dtype
            assert torch.equal(mine, other)
        elif isinstance(other, np.ndarray):
            assert np.array_equal(mine, other)
        else:
            assert mine == other


@pytest.mark.parametrize("text", TEXTS)
def test_one_text(pair, text):
    ours, theirs = pair
    same(ours(text), theirs(text))
    assert ours.tokenize(text) == theirs.tokenize(text)
    assert ours.encode(text) == theirs.encode(text)
    assert ours.encode(text, None, False) == theirs.encode(text, None, False)
    ids = theirs.encode(text)
    for skip in (False, True):
        for clean in (None, False, True):
            assert ours.decode(ids, skip, clean) == theirs.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=clean
            )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": True},
        {"padding": True, "padding_side": "left", "return_tensors": "pt"},
        {"padding": "longest", "pad_to_multiple_of": 8, "return_tensors": "np"},
        {"padding": "max_length", "max_length": 12, "truncation": True, "return_tensors": "pt"},
        {"truncation": "only_first", "max_length": 5},
        {"max_length": 5},
        {"max_length": 5, "truncation": False, "padding": True},
        {"return_offsets_mapping": True, "return_special_tokens_mask": True, "padding": True},
        {"return_token_type_ids": True, "return_attention_mask": False, "return_length": True},
        {"add_special_tokens": False, "split_special_tokens": True},
        {"padding": "max_length"},
    ],
    ids=str,
)
def test_batches(pair, options):
    ours, theirs = pair
    same(ours(TEXTS, **options), theirs(TEXTS, **options))
    if "return_tensors" in options:
        same(ours(TEXTS[0], **options), theirs(TEXTS[0], **options))


@pytest.mark.parametrize("truncation", [True, "only_first", "only_second"])
@pytest.mark.parametrize("length", [7, 8, 9, 14])
def test_pairs(pair, truncation, length):
    ours, theirs = pair
    first, second = "one two three four five six seven", "eight nine ten eleven twelve thirteen"
    for a, b in ((first, second), (second, first), ("one", second), (first, "one")):
        options = {"truncation": truncation, "max_length": length, "return_token_type_ids": True}
        try:
            expected = theirs(a, b, **options)
        except Exception:
            with pytest.raises(InputError, match="cannot shorten"):
                ours(a, b, **options)
        else:
            same(ours(a, b, **options), expected)
    same(ours([a, b], [b, a]), theirs([a, b], [b, a]))
    same(ours([(a, b)]), theirs([(a, b)]))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("stride", [0, 2])
def test_what_was_cut_off(pair, side, stride, monkeypatch):
    for tokenizer in pair:
        monkeypatch.setattr(tokenizer, "truncation_side", side)
    ours, theirs = pair
    options = {"truncation": True, "max_length": 5, "stride": stride, "return_overflowing_tokens": True}
    for more in ({}, {"padding": True, "return_tensors": "pt"}, {"return_offsets_mapping": True}):
        same(ours(TEXTS, **options, **more), theirs(TEXTS, **options, **more))
        same(ours(TEXTS[0], **options, **more), theirs(TEXTS[0], **options, **more))
    options |= {"truncation": "only_second", "max_length": 9}
    same(ours("one two", TEXTS[0], **options), theirs("one two", TEXTS[0], **options))
    with pytest.raises(InputError, match="stride must be at least 0 and less than the 9"):
        ours(TEXTS[5], truncation=True, max_length=9, stride=9)


def test_words(pair):
    ours, theirs = pair
    words = [["Hello", " world"], ["a", "b", "<|im_end|>"]]
    same(ours(words, is_split_into_words=True), theirs(words, is_split_into_words=True))
    same(ours(words[0], is_split_into_words=True), theirs(words[0], is_split_into_words=True))


def test_pad(pair):
    ours, theirs = pair
    rows = [dict(theirs(text)) for text in TEXTS[2:5]]
    for options in (
        {},
        {"padding": "max_length", "max_length": 99, "padding_side": "left"},
        {"return_tensors": "pt"},
    ):
        same(ours.pad(rows, **options), theirs.pad(rows, **options))
    columns = {"input_ids": [[1, 2], [3]]}
    same(ours.pad(columns, return_tensors="pt"), theirs.pad(dict(columns), return_tensors="pt"))
    same(ours.pad({"input_ids": [1, 2]}, "max_length", 4), theirs.pad({"input_ids": [1, 2]}, "max_length", 4))


def test_vocabulary(pair):
    ours, theirs = pair
    names = ["vocab_size", "all_special_tokens", "all_special_ids", "special_tokens_map", "model_max_length"]
    names += [
        "padding_side",
        "eos_token",
        "eos_token_id",
        "pad_token",
        "pad_token_id",
        "bos_token",
        "bos_token_id",
    ]
    names += [
        "unk_token",
        "unk_token_id",
        "added_tokens_encoder",
        "additional_special_tokens",
        "chat_template",
    ]
    names += ["model_input_names", "clean_up_tokenization_spaces", "truncation_side"]
    for name in names:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    for tokens in ("<|im_end|>", ["a", "nowhere", "<tool_call>"], "nowhere"):
        assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    ids = [1, 2, ours.eos_token_id]
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert ours.convert_ids_to_tokens(ids, True) == theirs.convert_ids_to_tokens(
        ids, skip_special_tokens=True
    )
    assert ours.batch_decode(torch.tensor([ids])) == theirs.batch_decode([ids])


CONVERSATION = [
    {"role": "system", "content": "Use the tools."},
    {"role": "user", "content": 'What is the weather in "Zürich" <now>? It\'s & 5 > 3\n'},
    {
        "role": "assistant",
        "content": "I'll look.",
        "tool_calls": [
            {"function": {"name": "weather", "arguments": {"city": "Zürich", "n": [1, 2.5, None]}}}
        ],
    },
    {"role": "tool", "content": '{"t": 21}'},
    {"role": "assistant", "content": "  It is 21 °C.  "},
]


def weather(city: str, days: int = 1, unit: str | None = None) -> dict[str, float]:
    """Says the weather.

    Over several days.

    Args:
        city: The name of the city,
            in any language
        days: For how many days (choices: ["1", "7"])
        unit: Celsius or not

    Returns:
        Temperatures by day
    """
    return {}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_generation_prompt": True},
        {"continue_final_message": True},
        {"tools": [weather, {"type": "function", "function": {"name": "x", "description": "<a> & 'b'"}}]},
        {"chat_template": "{%- for m in messages %}\n  {% if m.role == 'tool' %}{% continue %}{% endif %}\n"
                          "{{ m.content | trim }}|{{ eos_token }}{{ extra }}{% endfor %}", "extra": "E"},
        {
            "chat_template": "{% for m in messages %}{{ m.content | trim }}\n{% endfor %}",
            "continue_final_message": True,
        },
    ],
    ids=["plain", "generate", "continue", "tools", "own", "continue-trimmed"],
)  # fmt: skip
def test_chat(pair, options):
    ours, theirs = pair
    assert ours.apply_chat_template(CONVERSATION, tokenize=False, **options) == theirs.apply_chat_template(
        CONVERSATION, tokenize=False, **options
    )
    assert ours.apply_chat_template(CONVERSATION, **options) == theirs.apply_chat_template(
        CONVERSATION, **options
    )
    batch = [CONVERSATION, CONVERSATION[:2] + CONVERSATION[-1:]]
    options = options | {"return_dict": True, "padding": True, "return_tensors": "pt"}
    same(ours.apply_chat_template(batch, **options), theirs.apply_chat_template(batch, **options))


def many_types(
    a: Literal["x", "y"],
    b: list[int],
    c: dict[str, float],
    d: int | float | None = None,
    e: list[dict[str, bool]] | str = "",
    f: tuple[int, str] = (1, ""),
    g: Any = None,
    h: Literal[1, "z"] = 1,
):
    """Takes many types.

    Args:
        a: one
        b: two: with a colon
        c: three
            goes on
        d: four
        e: five
        f: six
        g: seven
        h: eight
    """


@pytest.mark.parametrize("function", [weather, many_types])
def test_tool_schemas(function):
    from transformers.utils import get_json_schema

    assert function_schema(function) == get_json_schema(function)


def test_assistant_masks(pair):
    ours, theirs = pair
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}"
        "<|im_end|>{% endif %}\n{% endfor %}"
    )
    options = {"chat_template": template, "return_dict": True, "return_assistant_tokens_mask": True}
    expected = theirs.apply_chat_template(CONVERSATION, **options)
    assert sum(expected["assistant_masks"]) > 5
    same(ours.apply_chat_template(CONVERSATION, **options), expected)


@pytest.mark.parametrize("reader", ["ours", "theirs"])
def test_saved_files_load_on_both_sides(pair, reader, tmp_path):
    ours, theirs = pair
    (ours if reader == "theirs" else theirs).save_pretrained(tmp_path)
    loaded = (transformers.Qwen2TokenizerFast if reader == "theirs" else Qwen2TokenizerFast).from_pretrained(
        tmp_path
    )
    for text in TEXTS:
        assert loaded(text)["input_ids"] == theirs(text)["input_ids"]
    assert loaded.special_tokens_map == theirs.special_tokens_map
    assert loaded.chat_template == TOOLS_TEMPLATE
    assert (loaded.model_max_length, loaded.padding_side) == (theirs.model_max_length, theirs.padding_side)


def test_vocab_and_merges_alone(pair, tmp_path):
    ours, theirs = pair
    ours.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    built = Qwen2TokenizerFast.from_pretrained(tmp_path)
    for text in TEXTS:
        assert built(text) == dict(theirs(text))
    (tmp_path / "tokenizer_config.json").unlink()
    old = Qwen2TokenizerFast.from_pretrained(tmp_path)
    assert old(TEXTS[6]) == dict(theirs(TEXTS[6]))
    assert old.eos_token == "<|im_end|>"


def test_added_tokens(pair):
    for tokenizer in pair:
        assert tokenizer.add_tokens(["<new>", "<new>"]) == 1
        assert tokenizer.add_special_tokens({"mask_token": "<mask>", "eos_token": "<|endoftext|>"}) == 1
    ours, theirs = pair
    assert ours("a<new>b<mask>") == dict(theirs("a<new>b<mask>"))
    assert ours.decode(ours.encode("a<new>b<mask>"), True) == "a<new>b"
    assert ours.mask_token_id == theirs.mask_token_id
    ours.pad_token = "<mask>"
    assert ours.pad_token_id == ours.mask_token_id
