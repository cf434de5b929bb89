"""The documented forward calls by themselves: what they refuse, what a cache remembers, packed rows."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qvl.config import Qwen2_5_VLConfig, Qwen2_5_VLVisionConfig
from qvl.errors import (
    CacheError,
    ConfigError,
    InputError,
    InputTypeError,
    MissingDependencyError,
    NonFiniteError,
    PlaceholderMismatchError,
    UnsupportedError,
)
from qvl.modeling import (
    DynamicCache,
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen2_5_VLTextModel,
    StaticCache,
)
from support.batches import MIXED, batch, prompt_row
from support.tiny import random_ids, random_patches, tiny_settings

IMAGE = prompt_row(4, ("image", (1, 6, 10)), 6, seed=6)
SAME = {"atol": 1e-5, "rtol": 1e-5}


def tiny(**settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**tiny_settings(**settings)))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


IDS = random_ids(2, 9)
BAD = {
    "nothing": (InputError, "give input_ids or inputs_embeds", {}),
    "list": (InputTypeError, "must be a tensor, not list", {"input_ids": [[1, 2]]}),
    "one row without a batch": (InputError, r"expected \(batch, length\)", {"input_ids": IDS[0]}),
    "no token": (InputError, "at least one token", {"input_ids": IDS[:, :0]}),
    "floats": (InputTypeError, "must hold integers", {"input_ids": IDS.float()}),
    "not in the vocabulary": (InputError, "holds 200; .* 0 to 199", {"input_ids": IDS.clone().fill_(200)}),
    "negative id": (InputError, "holds -100", {"input_ids": IDS.clone().fill_(-100)}),
    "width": (InputError, "31 wide; the model is 32 wide", {"inputs_embeds": torch.zeros(2, 9, 31)}),
    "ids and embeds": (
        InputError,
        "different calls",
        {"input_ids": IDS, "inputs_embeds": torch.zeros(2, 8, 32)},
    ),
    "mask shape": (
        InputError,
        r"attention_mask has shape \(2, 8\)",
        {"input_ids": IDS, "attention_mask": torch.ones(2, 8)},
    ),
    "all masked": (
        InputError,
        "hides every token",
        {"input_ids": IDS, "attention_mask": torch.zeros(2, 9)},
    ),
    "4-D mask": (
        UnsupportedError,
        "4 dimensions",
        {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 9, 9)},
    ),
    "labels": (
        InputError,
        r"labels has shape \(2, 5\); expected \(2, 9\)",
        {"input_ids": IDS, "labels": IDS[:, :5]},
    ),
    "kept scalar": (InputError, "1-D tensor", {"input_ids": IDS, "logits_to_keep": torch.tensor(3)}),
    "kept outside": (
        InputError,
        "0 to 8, .* up to 30",
        {"input_ids": IDS, "logits_to_keep": torch.tensor([3, 30])},
    ),
    "kept by name": (InputTypeError, "not str", {"input_ids": IDS, "logits_to_keep": "last"}),
    "positions": (
        InputError,
        "position_ids has shape",
        {"input_ids": IDS, "position_ids": torch.zeros(5, 2, 9)},
    ),
    "deltas": (
        InputError,
        "rope_deltas has 3 values for 2 rows",
        {"input_ids": IDS, "rope_deltas": torch.zeros(3)},
    ),
    "cache": (InputTypeError, "from_legacy_cache", {"input_ids": IDS, "past_key_values": ((1, 2),)}),
    "cells beyond the cache": (
        CacheError,
        "begins at cell 4 but .* holds 0",
        {"input_ids": IDS, "past_key_values": DynamicCache(), "cache_position": torch.tensor([4])},
    ),
    "unknown": (
        InputTypeError,
        "does not know the arguments bar, foo",
        {"input_ids": IDS, "foo": 1, "bar": 2},
    ),
    "sequences": (
        InputError,
        "rise from 0 to the 18 cells",
        {"input_ids": IDS, "cu_seq_lens_q": torch.tensor([0, 4])},
    ),
    "pixels without a grid": (
        InputError,
        "without video_grid_thw",
        {"input_ids": IDS, "pixel_values_videos": torch.zeros(4, 1176)},
    ),
    "picture without a place": (
        PlaceholderMismatchError,
        "0 image placeholder",
        {
            "input_ids": IDS,
            "pixel_values": torch.zeros(16, 1176),
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
        },
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_arguments_that_are_refused(model, name):
    error, message, arguments = BAD[name]
    with pytest.raises(error, match=message):
        model(**arguments)


def test_what_collators_and_trainers_pass_along(model):
    expected = model(IDS).logits
    extras = {
        "mm_token_type_ids": torch.zeros_like(IDS),
        "cu_seq_lens_q": None,
        "max_length_q": 9,
        "max_length_k": 9,
        "anything": None,
    }
    assert torch.equal(model(IDS, **extras).logits, expected)
    assert torch.equal(
        model.model(IDS, num_items_in_batch=3, **extras).last_hidden_state, model.model(IDS).last_hidden_state
    )
    with pytest.raises(InputTypeError, match="foo"):
        model.model.language_model(IDS, foo=1)


# -- several sequences in a row ---------------------------------------------------------------------------


def test_packed_rows_equal_single_calls(model):
    lengths, ids = [4, 2, 3, 9], IDS.view(1, -1)
    alone = torch.cat([model(part[None]).logits[0] for part in ids[0].split(lengths)])
    starts = torch.tensor([0, 4, 6, 9, 18], dtype=torch.int32)
    counted = torch.cat([torch.arange(n) for n in lengths])
    by_lengths = model(ids, cu_seq_lens_q=starts, cu_seq_lens_k=starts, position_ids=counted[None])
    by_positions = model(ids, position_ids=counted.expand(4, 1, -1))
    in_two_rows = model(IDS, cu_seq_lens_q=starts)
    for output in (by_lengths, by_positions, in_two_rows):
        torch.testing.assert_close(output.logits.flatten(0, 1), alone, **SAME)
        assert output.past_key_values is None


def test_packed_rows_have_no_cache_padding_or_attentions(model):
    starts = torch.tensor([0, 4, 18])
    for extra in ({"use_cache": True}, {"past_key_values": DynamicCache()}):
        with pytest.raises(CacheError, match="packed sequences"):
            model(IDS, cu_seq_lens_q=starts, **extra)
    mask = torch.ones_like(IDS)
    mask[0, 0] = 0
    with pytest.raises(InputError, match="no padding"):
        model(IDS, cu_seq_lens_q=starts, attention_mask=mask)
    with pytest.raises(UnsupportedError, match="output_attentions"):
        model(IDS, cu_seq_lens_q=starts, output_attentions=True)


def test_four_axes_that_count_on_are_one_sequence(model):
    positions, _ = model.get_rope_index(IDS)
    output = model(IDS, position_ids=torch.cat([positions[:1], positions]))
    torch.testing.assert_close(output.logits, model(IDS).logits, **SAME)
    assert output.past_key_values.get_seq_length() == 9


# -- what a cache remembers -------------------------------------------------------------------------------


@pytest.mark.parametrize("use_cache", [True, False])
def test_rope_deltas_say_nothing_about_a_prompt(model, use_cache):
    arguments = batch(IMAGE)
    plain = model(**arguments)
    again = model(**arguments, rope_deltas=plain.rope_deltas, use_cache=use_cache)
    assert torch.equal(again.rope_deltas, plain.rope_deltas)
    torch.testing.assert_close(again.logits, plain.logits, **SAME)


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_rope_deltas_replace_those_of_the_cache(model, shape):
    cache = model(**batch(IMAGE)).past_key_values
    output = model(IDS[:1], past_key_values=cache, rope_deltas=torch.full(shape, 3))
    assert output.rope_deltas.tolist() == [[3]]
    assert cache.next_positions() == [cache.rows[0].length + 3]


@pytest.mark.parametrize("cells", [0, 3, 30])
def test_a_cropped_cache_continues_as_if_the_rest_had_never_been(model, cells):
    """Before, inside the first text of, and behind a picture: its offset counts only where it was seen."""
    arguments = batch(IMAGE)
    whole = model(**arguments).past_key_values
    model(IDS[:1], past_key_values=whole)
    whole.crop(cells)
    if cells:
        kept = {**arguments, "input_ids": arguments["input_ids"][:, :cells], "attention_mask": None}
        if cells == 3:
            kept = {"input_ids": kept["input_ids"]}
        else:  # the whole prompt and three tokens behind it
            kept["input_ids"] = torch.cat([arguments["input_ids"], IDS[:1]], 1)[:, :cells]
        fresh = model(**kept).past_key_values
    else:
        fresh = DynamicCache()
        fresh.prepare(model.config.text_config, 1, torch.float32, torch.device("cpu"))
    assert whole.next_positions() == fresh.next_positions()
    left, right = model(IDS[1:], past_key_values=whole), model(IDS[1:], past_key_values=fresh)
    torch.testing.assert_close(left.logits, right.logits, **SAME)
    assert torch.equal(left.rope_deltas, right.rope_deltas)


def test_cache_position_zero_starts_again(model):
    arguments = batch(*MIXED)
    first = model(**arguments)
    again = model(**arguments, past_key_values=first.past_key_values, cache_position=torch.arange(9))
    torch.testing.assert_close(again.logits, first.logits, **SAME)
    assert torch.equal(again.rope_deltas, first.rope_deltas)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_positions_given_by_the_caller_are_continued(model, kind):
    arguments = batch(*MIXED)
    names = ("input_ids", "attention_mask", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    positions, deltas = model.get_rope_index(**{name: arguments[name] for name in names})
    columns = arguments["input_ids"].shape[1]
    expected = model(**arguments)
    cache = DynamicCache() if kind == "dynamic" else StaticCache(model.config, max_cache_len=columns + 3)
    found = model(**arguments, position_ids=positions, past_key_values=cache)
    assert torch.equal(found.rope_deltas, deltas) and torch.equal(expected.rope_deltas, deltas)
    steps = [model(IDS[:1, :3].expand(4, -1), past_key_values=o.past_key_values) for o in (expected, found)]
    torch.testing.assert_close(steps[0].logits, steps[1].logits, **SAME)


def test_cropping_what_generate_left(model):
    arguments = batch(IMAGE)
    output = model.generate(
        **arguments, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, eos_token_id=None
    )
    cache, columns = output.past_key_values, arguments["input_ids"].shape[1]
    assert [len(ends) for ends in cache.ends] == [row.length for row in cache.rows] == [columns + 3]
    whole = model(**arguments)
    assert torch.equal(cache.ends[0][:columns], whole.past_key_values.ends[0])
    cache.crop(columns)
    assert torch.equal(cache.rope_deltas, whole.rope_deltas)
    longer = torch.cat([output.sequences, IDS[:1]], 1)
    again = model.generate(
        longer, past_key_values=cache, max_new_tokens=2, return_dict_in_generate=True, do_sample=False
    )
    again.past_key_values.crop(3)
    assert again.past_key_values.next_positions() == [3]


def test_rows_of_a_cache_can_be_repeated_and_chosen(model):
    cache = model(**batch(*MIXED)).past_key_values
    following = cache.next_positions()
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([6, 1]))
    assert cache.next_positions() == [following[3], following[0]]
    cache.crop(-1)
    assert cache.next_positions() == [following[3] - 1, following[0] - 1]
    cache.reset()
    assert (cache.get_seq_length(), cache.next_positions()) == (0, [0, 0])


# -- training ---------------------------------------------------------------------------------------------


def test_gradient_checkpointing_keeps_no_cache():
    model = tiny().train()
    grads = []
    for enabled in (False, True):
        (model.gradient_checkpointing_enable if enabled else model.gradient_checkpointing_disable)()
        if enabled:
            with pytest.warns(UserWarning, match="use_cache=True is ignored"):
                output = model(IDS, labels=IDS, use_cache=True)
        else:
            output = model(IDS, labels=IDS, use_cache=True)
        assert (output.past_key_values is None) == enabled
        output.loss.backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad(set_to_none=True)
    for left, right in zip(*grads, strict=True):
        torch.testing.assert_close(left, right)
    with pytest.raises(CacheError, match="gradient checkpointing cannot fill past_key_values"):
        model(IDS, past_key_values=DynamicCache())
    model.eval()
    assert model(IDS).past_key_values.get_seq_length() == 9
    with pytest.raises(InputError, match="non-reentrant"):
        model.gradient_checkpointing_enable({"use_reentrant": True})


@pytest.mark.parametrize("extra", [{"output_attentions": True}, {"use_cache": True}], ids=str)
def test_dropout_reaches_recorded_and_cached_attention(extra):
    model = tiny(text={"attention_dropout": 0.5}).train()
    torch.manual_seed(0)
    one, two = model(IDS, **extra), model(IDS, **extra)
    assert not torch.equal(one.logits, two.logits)
    if one.attentions:
        causal = torch.ones(9, 9).tril().bool()
        assert 0.2 < (one.attentions[1][..., causal] == 0).float().mean() < 0.8
    model.eval()
    assert torch.equal(model(IDS, **extra).logits, model(IDS, **extra).logits)


# -- what is not finite -----------------------------------------------------------------------------------


def test_broken_text_weights_are_named_and_the_cache_stays_as_it_was():
    model = tiny()
    cache = model(IDS).past_key_values
    weight = model.language_model.layers[1].mlp.up_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = torch.nan
    with pytest.raises(
        NonFiniteError, match=r"text decoder .*float32.* layers\.1\.mlp\.up_proj\.weight hold"
    ):
        model(IDS, past_key_values=cache)
    with torch.no_grad():
        weight.copy_(kept)
    assert cache.get_seq_length() == 9 and cache.next_positions() == [9, 9]
    expected = model(torch.cat([IDS, IDS], 1)).logits[:, 9:]
    torch.testing.assert_close(model(IDS, past_key_values=cache).logits, expected, **SAME)


def test_many_broken_vision_weights_are_counted():
    model = tiny()
    with torch.no_grad():
        for block in model.visual.blocks:
            block.norm1.weight[0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"vision tower .*blocks\.0\.norm1\.weight, .* and 1 more hold"):
        model(**batch(IMAGE))


def test_finite_weights_are_not_blamed(model):
    arguments = batch(IMAGE)
    arguments["pixel_values"][0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"weights are finite.* look at the input"):
        model(**arguments)


def test_a_tower_of_another_width_is_named():
    model = tiny(vision={"out_hidden_size": 64})
    with pytest.raises(ConfigError, match="out_hidden_size is 64 but the decoder is 32 wide"):
        model(**batch(IMAGE))


# -- attention of large pictures and by name --------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("blocks", [[], [0]], ids=["windows", "whole frames"])
def test_no_square_of_the_patches_is_ever_made(blocks):
    config = Qwen2_5_VLVisionConfig(
        depth=1,
        hidden_size=32,
        intermediate_size=44,
        num_heads=2,
        out_hidden_size=32,
        fullatt_block_indexes=blocks,
        patch_size=2,
        window_size=16,
    )
    tower = Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    grid = (1, 128, 128)  # 16,384 patches: their square has 268,435,456 entries
    patches = torch.randn(16_384, 3 * 2 * 2 * 2)
    with torch.no_grad(), Largest() as largest:
        assert tower(patches, [grid]).shape == (4096, 32)
    assert largest.numel <= 16_384 * 3 * 32  # the queries, keys and values


@pytest.mark.parametrize("build", ["config", "set", "from_config", "from_pretrained"])
def test_flash_attention_says_what_it_needs(build, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "flash_attn", None)
    config = Qwen2_5_VLConfig(**tiny_settings())
    model = tiny()
    model.save_pretrained(tmp_path)
    with pytest.raises(MissingDependencyError, match="pip install flash-attn"):
        if build == "config":
            config._attn_implementation = "flash_attention_2"
            Qwen2_5_VLForConditionalGeneration(config)
        elif build == "set":
            model.set_attn_implementation("flash_attention_2")
        elif build == "from_config":
            Qwen2_5_VLForConditionalGeneration.from_config(config, attn_implementation="flash_attention_2")
        else:
            Qwen2_5_VLForConditionalGeneration.from_pretrained(
                tmp_path, attn_implementation="flash_attention_2"
            )
    assert model.config._attn_implementation == model.visual.attention_backend == "sdpa"


def test_attention_by_name_gives_the_same(model):
    arguments = batch(*MIXED)
    expected = model(**arguments).logits
    model.set_attn_implementation("eager")
    assert model.visual.attention_backend == model.language_model.attention_backend == "eager"
    torch.testing.assert_close(model(**arguments).logits, expected, **SAME)
    model.set_attn_implementation("sdpa")


# -- the classes and their embeddings ---------------------------------------------------------------------


def test_the_parts_are_built_from_a_whole_config():
    config = Qwen2_5_VLConfig(**tiny_settings())
    text = Qwen2_5_VLTextModel(config)
    assert text.config is config.text_config
    assert text.eval()(IDS).last_hidden_state.shape == (2, 9, 32)
    tower = Qwen2_5_VisionTransformerPretrainedModel(config)
    assert tower(hidden_states=random_patches([(1, 4, 4)]), grid_thw=[(1, 4, 4)]).shape == (4, 32)
    with pytest.raises(InputTypeError, match=r"Qwen2_5_VLModel is built from a Qwen2_5_VLConfig, got dict"):
        Qwen2_5_VLModel({})


def test_the_config_decides_where_the_call_is_silent():
    settings = {"output_hidden_states": True, "output_attentions": True, "return_dict": False}
    model = tiny(text={**settings, "use_cache": False})
    for part in (model, model.model, model.language_model):
        answer = part(input_ids=IDS)
        assert isinstance(answer, tuple)
        assert [len(x) for x in answer if isinstance(x, tuple)] == [4, 3]
        output = part(input_ids=IDS, return_dict=True, output_attentions=False)
        assert output.past_key_values is None and output.attentions is None and output.hidden_states


@pytest.mark.parametrize("tied", [True, False])
def test_resizing_and_replacing_embeddings(tied, tmp_path):
    model = tiny(text={"tie_word_embeddings": tied}, tie_word_embeddings=tied)
    before, head = model.get_input_embeddings().weight.clone(), model.lm_head.weight.clone()
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.resize_token_embeddings(pad_to_multiple_of=64).num_embeddings == 256
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert model.lm_head.weight.shape == (256, 32) and model.lm_head.out_features == 256
    torch.testing.assert_close(model.get_input_embeddings().weight[200:], before.mean(0).expand(56, -1))
    assert torch.equal(model.lm_head.weight[:200], head)
    model.save_pretrained(tmp_path)
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.vocab_size == 256
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    model.resize_token_embeddings(195, mean_resizing=False)
    assert torch.equal(model.get_input_embeddings().weight, before[:195])
    assert model(IDS).logits.shape[-1] == 195
    fresh = torch.nn.Embedding(195, 32)
    model.set_input_embeddings(fresh)
    assert model.get_input_embeddings() is model.language_model.embed_tokens is fresh
    assert (model.lm_head.weight is fresh.weight) == tied
    with pytest.raises(InputError, match="at least one row, got -1"):
        model.resize_token_embeddings(-1)


def test_features_without_a_grid_name_what_is_missing(model):
    with pytest.raises(InputError, match="image_grid_thw"):
        model.get_image_features(torch.zeros(16, 1176))
    with pytest.raises(InputError, match="video_grid_thw"):
        model.get_video_features(torch.zeros(16, 1176))
    with pytest.raises(InputError, match="input_ids or"):
        model.get_rope_index()


def test_autocast_computes_in_half_precision(model):
    arguments = batch(*MIXED)
    exact = model(**arguments).logits
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(**arguments).logits
        assert found.dtype == torch.bfloat16
        assert torch.nn.functional.cosine_similarity(found.float().flatten(), exact.flatten(), dim=0) > 0.99


def test_from_config_makes_what_the_config_says():
    config = Qwen2_5_VLConfig(**tiny_settings(), dtype="bfloat16")
    assert Qwen2_5_VLForConditionalGeneration.from_config(config).dtype == torch.bfloat16
    given = Qwen2_5_VLForConditionalGeneration.from_config(config, dtype=torch.float16)
    assert given.dtype == torch.float16
    with pytest.raises(InputError, match="device_map"):
        Qwen2_5_VLForConditionalGeneration.from_config(config, device_map="cpu")
