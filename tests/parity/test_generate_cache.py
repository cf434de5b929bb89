"""``generate(past_key_values=...)``: a conversation that goes on, against transformers from nothing."""

from __future__ import annotations

import copy

import pytest
import torch

import qvl
from qvl.errors import CacheError
from qvl.modeling import Qwen2_5_VLForConditionalGeneration
from support.batches import MIXED, batch, prompt_row
from support.tiny import random_ids, tiny_configs, tiny_oracle

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::UserWarning")]
PAD = 196
FIRST = prompt_row(4, ("image", (1, 6, 10)), 6, seed=6)
MORE = prompt_row(3, ("image", (1, 4, 8)), 4, ("video", (2, 4, 4)), 5, seed=33)


@pytest.fixture(scope="module")
def models():
    theirs_config, ours_config = tiny_configs()
    theirs = tiny_oracle(theirs_config)
    ours = Qwen2_5_VLForConditionalGeneration(ours_config).eval()
    ours.load_state_dict(theirs.state_dict())
    for model in (theirs, ours):
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, PAD
    return theirs, ours


def first_turn(model, **settings):
    arguments = batch(FIRST)
    return model.generate(**arguments, max_new_tokens=10, return_dict_in_generate=True, **settings)


def second_turn(answer):
    """The whole conversation with a new picture and a video behind it, and how many pictures were known."""
    ids = torch.cat([answer[0], MORE[0]])
    return batch((ids, [*FIRST[1], *MORE[1]], MORE[2])), len(FIRST[1])


def generated(models, arguments, **settings):
    models[0].model.rope_deltas = None
    return models[0].generate(**arguments, max_new_tokens=24, **settings)


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 4}, {"repetition_penalty": 1.3}], ids=str
)
@pytest.mark.parametrize("pictures", ["all", "new ones only"])
def test_a_new_picture_in_the_second_turn(models, settings, pictures):
    one = first_turn(models[1])
    arguments, known = second_turn(one.sequences)
    expected = generated(models, arguments, **{k: v for k, v in settings.items() if "lookup" not in k})
    if pictures == "new ones only":
        used = int(arguments["image_grid_thw"][:known].prod(1).sum())
        arguments["pixel_values"] = arguments["pixel_values"][used:]
        arguments["image_grid_thw"] = arguments["image_grid_thw"][known:]
    ours = models[1].generate(**arguments, max_new_tokens=24, past_key_values=one.past_key_values, **settings)
    assert torch.equal(ours, expected)


def test_what_is_cached_is_not_computed_again(models, monkeypatch):
    one = first_turn(models[1])
    arguments, _ = second_turn(one.sequences)
    seen, encoded = [], []
    network = models[1].model
    packed, encode = network.language_model.packed, network.encode
    monkeypatch.setattr(
        network.language_model, "packed", lambda x, *a, **k: (seen.append(len(x)), packed(x, *a, **k))[1]
    )
    monkeypatch.setattr(network, "encode", lambda p, grids: (encoded.append(len(grids)), encode(p, grids))[1])
    models[1].generate(**arguments, max_new_tokens=3, past_key_values=one.past_key_values)
    assert seen == [len(MORE[0]) + 1, 1, 1]  # the last token of the answer was never run
    assert encoded == [2]


def test_three_turns_of_a_batch_with_padding(models):
    """Rows of different lengths; each turn adds as many tokens to all. Both libraries, cache and no cache."""
    arguments, cache = batch(*MIXED, pad=PAD), None
    for turn in range(3):
        settings = {"max_new_tokens": 9, "return_dict_in_generate": True}
        ours = models[1].generate(**arguments, **settings, past_key_values=cache)
        models[0].model.rope_deltas = None
        assert torch.equal(ours.sequences, models[0].generate(**arguments, **settings).sequences)
        cache = ours.past_key_values
        more = random_ids(len(MIXED), 5, seed=turn)
        arguments["input_ids"] = torch.cat([ours.sequences, more], dim=1)
        mask = arguments["attention_mask"]
        arguments["attention_mask"] = torch.cat([mask, mask.new_ones(len(MIXED), 9 + 5)], dim=1)


def test_the_same_in_both_libraries(models):
    results = []
    for model in models:
        models[0].model.rope_deltas = None
        one = first_turn(model)
        ids = torch.cat([one.sequences, random_ids(1, 5, seed=9)], dim=1)
        again = {**batch(FIRST), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        settings = {"max_new_tokens": 10, "return_dict_in_generate": True}
        two = model.generate(**again, **settings, past_key_values=one.past_key_values)
        assert two.past_key_values is one.past_key_values
        assert two.past_key_values.get_seq_length() == ids.shape[1] + 9
        results.append(two.sequences)
    assert torch.equal(*results)


@pytest.mark.parametrize("made", ["static_class", "static_setting", "dynamic", "no cache"])
def test_every_cache_gives_the_same_ids(models, made):
    ours, arguments = models[1], batch(*MIXED, pad=PAD)
    config = ours.config.text_config
    length = arguments["input_ids"].shape[1] + 20
    settings = {
        "static_class": {"past_key_values": qvl.StaticCache(config, max_cache_len=length)},
        "static_setting": {"cache_implementation": "static"},
        "dynamic": {"past_key_values": qvl.DynamicCache()},
        "no cache": {"use_cache": False},
    }[made]
    expected = ours.generate(**arguments, max_new_tokens=20)
    assert torch.equal(ours.generate(**arguments, max_new_tokens=20, **settings), expected)


def test_a_static_cache_that_is_too_small_is_an_error_before_anything_is_computed(models):
    cache = qvl.StaticCache(models[1].config.text_config, max_cache_len=30)
    with pytest.raises(CacheError, match="at most 30"):
        models[1].generate(**batch(FIRST), max_new_tokens=30, past_key_values=cache)
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("num_beams", [1, 3])
def test_an_error_in_a_callback_leaves_the_cache_as_it_was(models, num_beams):
    one = first_turn(models[1])
    cache = one.past_key_values
    arguments, _ = second_turn(one.sequences)
    before = copy.deepcopy(cache)
    calls = []

    def late(input_ids, scores):
        calls.append(1)
        if len(calls) == 5 * num_beams:
            raise KeyError("late")
        return scores

    with pytest.raises(KeyError, match="late"):
        models[1].generate(
            **arguments, max_new_tokens=9, past_key_values=cache, logits_processor=[late], num_beams=num_beams
        )
    for layer in range(len(cache)):
        for mine, earlier in zip(cache[layer], before[layer], strict=True):
            assert torch.equal(mine, earlier)
    again = models[1].generate(**arguments, max_new_tokens=24, past_key_values=cache)
    assert torch.equal(again, generated(models, arguments))
