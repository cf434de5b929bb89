"""The processor against transformers' Qwen2_5_VLProcessor: ids, masks, pixels, grids.

transformers' video processor needs torchvision, which is not there: the oracle is put together by hand
without it, and videos are compared elsewhere by golden files.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from qvl.processing.processor import Qwen2_5_VLProcessor
from support.ids import stable
from support.processors import write_tiny_processor

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle


def load_oracle(folder):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    tokenizer = transformers.Qwen2TokenizerFast.from_pretrained(folder)
    template = Qwen2_5_VLProcessor.from_pretrained(folder).chat_template
    oracle = transformers.Qwen2_5_VLProcessor.__new__(transformers.Qwen2_5_VLProcessor)
    oracle.image_processor = Qwen2VLImageProcessor.from_pretrained(folder)
    oracle.tokenizer, oracle.video_processor, oracle.chat_template = tokenizer, None, template
    oracle.image_token, oracle.video_token = "<|image_pad|>", "<|video_pad|>"
    oracle.image_token_id = tokenizer.convert_tokens_to_ids(oracle.image_token)
    oracle.video_token_id = tokenizer.convert_tokens_to_ids(oracle.video_token)
    return oracle


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = write_tiny_processor(tmp_path_factory.mktemp("processor"))
    return Qwen2_5_VLProcessor.from_pretrained(folder), load_oracle(folder)


def picture(height, width, seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def same(ours, theirs):
    assert sorted(ours) == sorted(theirs)
    for name in theirs:
        mine, other = ours[name], theirs[name]
        if isinstance(other, torch.Tensor):
            assert mine.dtype == other.dtype, name
            assert torch.equal(mine, other), name
        else:
            assert np.array_equal(np.asarray(mine), np.asarray(other)), name


IMAGES = [picture(60, 90), picture(200, 300, 1), picture(30, 30, 2, "L"), picture(100, 50, 3, "RGBA")]
HOLE = "<|vision_start|><|image_pad|><|vision_end|>"


NESTED = {
    "images_kwargs": {"min_pixels": 31360},
    "common_kwargs": {"return_tensors": "np"},
    "text_kwargs": {"padding": "max_length", "max_length": 70},
}


@pytest.mark.parametrize(
    ("text", "images", "options"),
    [
        ("plain text only", None, {}),
        (["one", "two and more"], None, {"padding": True, "return_tensors": "pt"}),
        (HOLE + "What?", IMAGES[0], {"return_tensors": "pt"}),
        ([f"{HOLE}a{HOLE}"], IMAGES[:2], {"return_tensors": "np"}),
        ([HOLE, "none", f"b{HOLE}{HOLE}c", HOLE], [[IMAGES[0]], [], IMAGES[1:3], IMAGES[3:]],
         {"padding": True, "return_tensors": "pt", "padding_side": "left"}),
        ([HOLE, HOLE], IMAGES[:2], {"padding": True, "return_tensors": "pt", "max_pixels": 6272}),
        ([HOLE], IMAGES[:1], NESTED),
        ([HOLE], IMAGES[:1], {"return_mm_token_type_ids": True, "return_offsets_mapping": True}),
        ([HOLE], [np.asarray(IMAGES[1])], {"do_normalize": False, "return_tensors": "pt"}),
    ],
)  # fmt: skip
def test_call(pair, text, images, options):
    ours, theirs = pair
    copies = {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}
    same(ours(text=text, images=images, **options), theirs(text=text, images=images, **copies))


CHAT = [
    {"role": "system", "content": [{"type": "text", "text": "Look."}]},
    {"role": "user", "content": [{"type": "image", "image": IMAGES[0]}, {"type": "text", "text": "it's &"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A picture."}]},
    {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "image", "image": IMAGES[1]}]},
]  # fmt: skip


TOOLS = "{{ tools | tojson }}{% for m in messages %}{{ m.role }}{% endfor %}{{ add_generation_prompt }}"


def weather(city: str) -> str:
    """Says the weather.

    Args:
        city: Its name
    """
    return city


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_generation_prompt": True, "add_vision_id": True},
        {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True},
        {"tokenize": True, "return_tensors": "pt"},
        {"tokenize": True, "return_dict": True, "max_pixels": 28 * 28 * 6},
        {"chat_template": "{% for m in messages %}{{ m.role }}{{ extra }}{% endfor %}", "extra": "!"},
        {"continue_final_message": True},
        {"chat_template": TOOLS, "tools": [weather], "add_generation_prompt": True},
    ],
    ids=stable,
)
def test_chat(pair, options):
    for conversation in (CHAT, [CHAT, CHAT[:3]]):
        given = dict(options)
        if conversation is not CHAT and "tokenize" in options:
            given |= {"padding": True}
        mine, other = (p.apply_chat_template(conversation, **given) for p in pair)
        if isinstance(other, dict) or hasattr(other, "keys"):
            same(mine, other)
        elif isinstance(other, torch.Tensor):
            assert torch.equal(mine, other)
        else:
            assert mine == other


def test_assistant_masks(pair):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
        "<|image_pad|>{% elif m.role == 'assistant' %}{% generation %}{{ c.text }}{% endgeneration %}"
        "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    )
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    ours, theirs = (p.apply_chat_template(CHAT[2:3], chat_template=template, **options) for p in pair)
    same(ours, theirs)
    # After a picture transformers counts characters of the text before placeholders were repeated.
    found = pair[0].apply_chat_template(CHAT, chat_template=template, return_tensors="pt", **options)
    masked = found["input_ids"][found["assistant_masks"].bool()]
    assert pair[0].decode(masked) == "A picture."


def test_counts_and_names(pair):
    ours, theirs = pair
    sizes = [(60, 90), (200, 300), (30, 30)]
    expected = theirs._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
    assert list(ours.count_media_tokens(images=sizes).images) == expected
    assert ours.model_input_names == theirs.model_input_names
    ids = torch.tensor(ours.tokenizer(["hello world.", "it 's <|im_end|>"], padding=True)["input_ids"])
    assert ours.post_process_image_text_to_text(ids) == theirs.post_process_image_text_to_text(ids)
    assert ours.batch_decode(ids) == theirs.batch_decode(ids)


def test_files_load_on_both_sides(pair, tmp_path):
    ours, theirs = pair
    ours.save_pretrained(tmp_path / "ours")
    again = load_oracle(tmp_path / "ours")
    options = {"text": HOLE, "images": IMAGES[1], "return_tensors": "pt"}
    same(theirs(**options), again(**options))
    settings, _ = transformers.Qwen2_5_VLProcessor.get_processor_dict(tmp_path / "ours")
    assert settings["chat_template"] == ours.chat_template
    for part in (theirs.image_processor, theirs.tokenizer):
        part.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "chat_template.jinja").write_text(ours.chat_template)
    same(Qwen2_5_VLProcessor.from_pretrained(tmp_path / "theirs")(**options), theirs(**options))
