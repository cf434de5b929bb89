"""More of the documented forward calls against transformers: tuples, caches, packed rows, features, parts."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from qvl import outputs
from qvl.modeling import (
    Qwen2_5_VLModel,
    Qwen2_5_VLTextModel,
    StaticCache,
)
from support.batches import MIXED, batch, prompt_row, single
from support.tiny import ROPE_SCALINGS, random_ids, tiny_configs, tiny_models, tiny_oracle

pytestmark = pytest.mark.oracle
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
IMAGES = (prompt_row(4, ("image", (1, 6, 10)), ("image", (1, 16, 18)), 6, seed=7),)
VIDEOS = (prompt_row(4, ("video", (3, 8, 6)), 2, ("video", (2, 4, 4)), 6, seed=8),)
WINDOW = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def both(models, arguments, part="", **extra):
    """The two answers of the whole models or of one ``part``. transformers' deltas must not leak."""
    models[0].model.rope_deltas = None
    with torch.no_grad():
        return tuple(m.get_submodule(part)(**arguments, **extra) for m in models)


def assert_same_tree(ours, theirs):
    """Tuples of equal shape and order: numbers close, caches of the same length."""
    assert isinstance(ours, tuple) and len(ours) == len(theirs)
    for left, right in zip(ours, theirs, strict=True):
        if isinstance(right, tuple):
            assert_same_tree(left, right)
        elif isinstance(right, torch.Tensor):
            assert left.shape == right.shape
            torch.testing.assert_close(left, right, **CLOSE)
        else:
            assert left.get_seq_length() == right.get_seq_length()


@pytest.mark.parametrize("part", ["", "model", "model.language_model"])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("attentions", [True, False])
def test_tuples_of_every_class(models, part, use_cache, states, attentions):
    arguments = {"input_ids": random_ids(2, 9)} if "language" in part else batch(*IMAGES)
    theirs, ours = both(
        models,
        arguments,
        part,
        return_dict=False,
        use_cache=use_cache,
        output_hidden_states=states,
        output_attentions=attentions,
    )
    assert_same_tree(ours, theirs)


def test_tuple_with_a_loss(models):
    arguments = batch(*IMAGES)
    theirs, ours = both(models, arguments, return_dict=False, labels=arguments["input_ids"])
    assert_same_tree(ours, theirs)
    assert ours[0].ndim == 0


def test_outputs_read_like_mappings_of_the_same_keys(models):
    theirs, ours = both(models, batch(*IMAGES), output_hidden_states=True)
    assert list(ours) == list(theirs) == ["logits", "past_key_values", "hidden_states", "rope_deltas"]
    for left, right in zip(ours.to_tuple(), theirs.to_tuple(), strict=True):
        assert type(left) is type(right) or "Cache" in type(left).__name__


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rope", ROPE_SCALINGS)
def test_rope_types_in_padded_batches_with_windows(rope, tied, side):
    """``dynamic`` and ``longrope`` below their limit: above it, transformers' rows share one length."""
    text = {"rope_scaling": ROPE_SCALINGS[rope], "tie_word_embeddings": tied, **WINDOW}
    models = tiny_models(text=text, tie_word_embeddings=tied)
    arguments = batch(*MIXED, side=side)
    theirs, ours = both(models, arguments)
    real = arguments["attention_mask"].bool()
    torch.testing.assert_close(ours.logits[real], theirs.logits[real], **CLOSE)


@pytest.mark.parametrize("rope", ROPE_SCALINGS)
def test_cached_steps_of_every_rope_type(rope):
    """Eight steps by hand behind pictures, through windows, in one row."""
    models = tiny_models(text={"rope_scaling": ROPE_SCALINGS[rope], **WINDOW})
    arguments = batch(MIXED[3])
    theirs, ours = both(models, arguments)
    caches, cells = (theirs.past_key_values, ours.past_key_values), arguments["input_ids"].shape[1]
    for step, token in enumerate(random_ids(8, seed=9).tolist()):
        extra = {"input_ids": torch.tensor([[token]]), "cache_position": torch.tensor([cells + step])}
        with torch.no_grad():
            outputs = [m(past_key_values=c, **extra) for m, c in zip(models, caches, strict=True)]
        torch.testing.assert_close(outputs[1].logits, outputs[0].logits, **CLOSE)


@pytest.mark.parametrize("rows", [IMAGES, MIXED], ids=["images", "mixed"])
def test_static_cache(models, rows):
    arguments = batch(*rows)
    columns = arguments["input_ids"].shape[1]
    theirs, _ = both(models, arguments)
    cache = StaticCache(models[1].config, max_cache_len=columns + 1)
    with torch.no_grad():
        found = models[1](**arguments, past_key_values=cache, cache_position=torch.arange(columns))
    assert found.past_key_values is cache
    real = arguments["attention_mask"].bool()
    torch.testing.assert_close(found.logits[real], theirs.logits[real], **CLOSE)
    mask = torch.ones(len(rows), columns + 1, dtype=torch.long)
    mask[:, :columns] = arguments["attention_mask"]
    extra = {
        "input_ids": torch.full((len(rows), 1), 17),
        "attention_mask": mask,
        "cache_position": torch.tensor([columns]),
    }
    with torch.no_grad():
        left = models[0](**extra, past_key_values=theirs.past_key_values)
        right = models[1](**extra, past_key_values=cache)
    torch.testing.assert_close(right.logits, left.logits, **CLOSE)


def test_packed_rows(models):
    """Without a cache, transformers reads the first of four axes as where each sequence stands."""
    ids = random_ids(1, 18)
    counted = torch.cat([torch.arange(n) for n in (4, 2, 3, 9)]).expand(4, 1, -1)
    theirs, ours = both(models, {"input_ids": ids, "position_ids": counted}, use_cache=False)
    torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)


def test_features_of_videos(models):
    arguments = batch(*VIDEOS)
    with torch.no_grad():
        left, right = (
            m.get_video_features(arguments["pixel_values_videos"], arguments["video_grid_thw"])
            for m in models
        )
    assert [f.shape for f in left] == [f.shape for f in right] == [(36, 32), (8, 32)]
    torch.testing.assert_close(torch.cat(right), torch.cat(left), **CLOSE)


@pytest.mark.parametrize("seconds", [0.0, 1.0, 2.0, 3.0])
def test_whole_seconds_per_step(models, seconds):
    """Where nothing is cut off by transformers' integers: positions exact, and the logits with them."""
    arguments = batch(*MIXED, seconds=seconds)
    names = ["input_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask"]
    inputs = {name: arguments[name] for name in names}
    assert torch.equal(models[1].get_rope_index(**inputs)[0], models[0].model.get_rope_index(**inputs)[0])
    theirs, ours = both(models, arguments)
    real = arguments["attention_mask"].bool()
    torch.testing.assert_close(ours.logits[real], theirs.logits[real], **CLOSE)


def test_positions_of_text_alone(models):
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    ids = random_ids(2, 7)
    for inputs in ({"input_ids": ids, "attention_mask": mask}, {"input_ids": ids}):
        left, right = (m.get_rope_index(**inputs) for m in (models[1], models[0].model))
        assert torch.equal(left[0], right[0])
    assert torch.equal(
        models[1].get_rope_index(attention_mask=mask)[0],
        models[0].model.get_rope_index(input_ids=ids, attention_mask=mask)[0],
    )


@pytest.mark.parametrize("index", range(len(MIXED)))
def test_embeddings_in_place_of_ids(models, index):
    """Both frameworks find the placeholders by their embedding."""
    arguments = single(batch(*MIXED), MIXED, index)
    embeds = models[1].get_input_embeddings()(arguments["input_ids"]).detach()
    theirs, ours = both(models, {**arguments, "inputs_embeds": embeds})
    torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)
    alone = {key: value for key, value in arguments.items() if key != "input_ids"}
    with torch.no_grad():
        torch.testing.assert_close(models[1](inputs_embeds=embeds, **alone).logits, theirs.logits, **CLOSE)


@pytest.mark.parametrize("tied", [False, True])
def test_resized_embeddings(tied):
    models = tiny_models(text={"tie_word_embeddings": tied}, tie_word_embeddings=tied)
    for rows, multiple in ((210, 8), (None, 64), (196, None)):
        for model in models:
            model.resize_token_embeddings(rows, pad_to_multiple_of=multiple)
        theirs, ours = models
        assert ours.get_input_embeddings().weight.shape == theirs.get_input_embeddings().weight.shape
        assert ours.lm_head.weight.shape == theirs.lm_head.weight.shape
        assert (ours.lm_head.weight is ours.get_input_embeddings().weight) == tied
        assert ours.config.vocab_size == theirs.config.text_config.vocab_size
        assert ours.num_parameters() == theirs.num_parameters()
        left, right = both(models, {"input_ids": random_ids(2, 9)})
        kept = min(left.logits.shape[-1], 196)
        torch.testing.assert_close(right.logits[..., :kept], left.logits[..., :kept], **CLOSE)


@pytest.mark.parametrize("cls", [Qwen2_5_VLTextModel, Qwen2_5_VLModel])
def test_parts_alone(cls):
    """The text model from a whole config, as the documentation page builds it, and the backbone."""
    theirs_config, ours_config = tiny_configs(text=WINDOW)
    theirs = tiny_oracle(theirs_config).model
    ours = cls(ours_config).eval()
    arguments = batch(MIXED[3])
    if cls is Qwen2_5_VLTextModel:
        theirs, arguments = theirs.language_model, {"input_ids": random_ids(2, 9)}
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        left, right = theirs(**arguments), ours(**arguments)
    torch.testing.assert_close(right.last_hidden_state, left.last_hidden_state, **CLOSE)
    assert ours.num_parameters() == theirs.num_parameters()
    assert isinstance(ours.get_input_embeddings(), torch.nn.Embedding)


@pytest.mark.parametrize(
    "name",
    ["BaseModelOutputWithPast", "Qwen2_5_VLModelOutputWithPast", "Qwen2_5_VLCausalLMOutputWithPast"],
)
def test_output_classes_have_the_same_fields_in_order(name):
    theirs = getattr(modeling_qwen2_5_vl, name)
    assert [f.name for f in fields(getattr(outputs, name))] == [f.name for f in fields(theirs)]
