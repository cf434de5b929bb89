"""The documented forward of the three model classes against transformers, on tiny random checkpoints."""

from __future__ import annotations

import pytest
import torch

from qvl.modeling import DynamicCache, StaticCache
from support.batches import MIXED, batch, prompt_row, single
from support.tiny import ROPE_SCALINGS, tiny_models

pytestmark = pytest.mark.oracle
CLOSE = {"atol": 1e-4, "rtol": 1e-4}

TEXT = (prompt_row(11, seed=5),)
IMAGE = (prompt_row(4, ("image", (1, 6, 10)), 6, seed=6),)
IMAGES = (prompt_row(4, ("image", (1, 6, 10)), ("image", (1, 16, 18)), 6, seed=7),)
VIDEO = (prompt_row(4, ("video", (3, 8, 6)), 6, seed=8),)
CASES = {"text": TEXT, "image": IMAGE, "images": IMAGES, "video": VIDEO, "mixed": MIXED}


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def both(models, arguments, **extra):
    """transformers keeps rope deltas on the model between calls; they must not leak from test to test."""
    theirs, ours = models
    theirs.model.rope_deltas = None
    with torch.no_grad():
        return theirs(**arguments, **extra), ours(**arguments, **extra)


def assert_real_cells_equal(ours, theirs, mask):
    real = mask.bool()
    torch.testing.assert_close(ours[real], theirs[real], **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_logits(models, case, side):
    arguments = batch(*CASES[case], side=side)
    theirs, ours = both(models, arguments)
    assert_real_cells_equal(ours.logits, theirs.logits, arguments["attention_mask"])
    assert (ours.logits[arguments["attention_mask"] == 0] == 0).all()


@pytest.mark.parametrize("rope", ROPE_SCALINGS)
@pytest.mark.parametrize("limit", [16, 256])
def test_every_rope_type(rope, limit):
    """Positions below and beyond ``max_position_embeddings``. One row: transformers' rows share a length."""
    models = tiny_models(text={"rope_scaling": ROPE_SCALINGS[rope], "max_position_embeddings": limit})
    arguments = batch(MIXED[3])
    theirs, ours = both(models, arguments)
    torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_sliding_window_and_tied_head(tied, use_cache):
    text = {
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
        "tie_word_embeddings": tied,
    }
    models = tiny_models(text=text, tie_word_embeddings=tied)
    assert (models[1].lm_head.weight is models[1].get_input_embeddings().weight) == tied
    arguments = batch(*MIXED)
    theirs, ours = both(models, arguments, use_cache=use_cache)
    assert_real_cells_equal(ours.logits, theirs.logits, arguments["attention_mask"])


def test_batch_is_single_calls(models):
    _, ours = models
    arguments = batch(*MIXED, side="right", seconds=0.5)
    with torch.no_grad():
        whole = ours(**arguments).logits
        for i, row in enumerate(MIXED):
            alone = ours(**single(arguments, MIXED, i)).logits[0]
            torch.testing.assert_close(whole[i, : len(row[0])], alone, atol=1e-5, rtol=1e-5)


def test_positions_are_exact(models):
    theirs, ours = models
    arguments = batch(*MIXED, side="left")
    names = ["input_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask"]
    inputs = {name: arguments[name] for name in names}
    expected, _ = theirs.model.get_rope_index(**inputs)
    positions, deltas = ours.get_rope_index(**inputs)
    assert torch.equal(positions, expected)
    assert deltas.shape == (4, 1)
    real = arguments["attention_mask"].sum(1)
    largest = torch.where(arguments["attention_mask"].bool(), positions, -1).amax((0, 2))
    assert torch.equal(deltas[:, 0], largest + 1 - real)


def test_deltas_equal_without_padding(models):
    theirs, ours = models
    arguments = batch(*IMAGES)
    inputs = {name: arguments[name] for name in ["input_ids", "image_grid_thw"]}
    for left, right in zip(ours.get_rope_index(**inputs), theirs.model.get_rope_index(**inputs), strict=True):
        assert torch.equal(left, right)


def test_fractions_of_a_second_count(models):
    """transformers truncates 0.5 s to 0 before it multiplies; the released training code does not."""
    _, ours = models
    arguments = batch(*VIDEO, seconds=0.5)
    names = ["input_ids", "video_grid_thw", "second_per_grid_ts"]
    positions, _ = ours.get_rope_index(**{name: arguments[name] for name in names})
    frames = positions[0, 0, 5 : 5 + 36].view(3, 12)
    assert (frames - frames[0, 0]).tolist() == [[0] * 12, [1] * 12, [2] * 12]  # 0.5 s at 2 positions a second


@pytest.mark.parametrize("case", ["images", "mixed"])
def test_hidden_states_and_attentions(models, case):
    arguments = batch(*CASES[case])
    theirs, ours = both(models, arguments, output_hidden_states=True, output_attentions=True)
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    mask = arguments["attention_mask"]
    for left, right in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert_real_cells_equal(left, right, mask)
    pairs = mask[:, :, None].bool() & mask[:, None, :].bool()
    for left, right in zip(ours.attentions, theirs.attentions, strict=True):
        assert left.shape == right.shape
        where = pairs[:, None].expand_as(left)
        torch.testing.assert_close(left[where], right[where], **CLOSE)


def test_loss_and_its_gradients(models):
    theirs, ours = models
    arguments = batch(*MIXED, side="right")
    labels = arguments["input_ids"].masked_fill(arguments["attention_mask"] == 0, -100)
    labels[0, :6] = -100
    theirs.model.rope_deltas = None
    expected = theirs(**arguments, labels=labels).loss
    loss = ours(**arguments, labels=labels).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    expected.backward()
    loss.backward()
    want = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name], **CLOSE, msg=lambda m, n=name: f"{n}: {m}")
    theirs.zero_grad(set_to_none=True)
    ours.zero_grad(set_to_none=True)


def test_loss_by_number_of_items(models):
    arguments = batch(*TEXT)
    theirs, ours = both(models, arguments, labels=arguments["input_ids"], num_items_in_batch=7)
    torch.testing.assert_close(ours.loss, theirs.loss, **CLOSE)


def test_loss_does_not_need_all_logits(models):
    _, ours = models
    arguments = batch(*MIXED)
    labels = arguments["input_ids"]
    whole = ours(**arguments, labels=labels)
    last = ours(**arguments, labels=labels, logits_to_keep=1)
    torch.testing.assert_close(last.loss, whole.loss)
    assert last.logits.shape[1] == 1


def test_gradient_checkpointing_changes_no_gradient(models):
    _, ours = models
    arguments = batch(*MIXED)
    grads = []
    ours.train()
    for enabled in (False, True):
        (ours.gradient_checkpointing_enable if enabled else ours.gradient_checkpointing_disable)()
        assert ours.is_gradient_checkpointing == enabled
        ours(**arguments, labels=arguments["input_ids"]).loss.backward()
        grads.append([p.grad.clone() for p in ours.parameters()])
        ours.zero_grad(set_to_none=True)
    ours.gradient_checkpointing_disable()
    ours.eval()
    for left, right in zip(*grads, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 4, 9])], ids=["1", "3", "tensor"])
def test_logits_to_keep(models, keep):
    arguments = batch(*IMAGE)
    theirs, ours = both(models, arguments, logits_to_keep=keep)
    torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)


def test_tuple(models):
    arguments = batch(*IMAGE)
    theirs, ours = both(models, arguments, return_dict=False, use_cache=False)
    assert isinstance(ours, tuple)
    torch.testing.assert_close(ours[0], theirs[0], **CLOSE)
    _, output = both(models, arguments)
    assert output[0] is output["logits"] is output.logits
    assert "loss" not in output


def test_inputs_embeds(models):
    arguments = batch(*MIXED)
    ids = arguments.pop("input_ids")
    _theirs, ours = models
    embeds = ours.get_input_embeddings()(ids).detach()
    with torch.no_grad():
        by_ids = ours(input_ids=ids, **arguments).logits
        by_embeds = ours(inputs_embeds=embeds, **arguments).logits
    assert torch.equal(by_ids, by_embeds)


def test_position_ids_from_the_caller(models):
    arguments = batch(*IMAGE)
    position_ids = torch.randint(
        0, 50, (3, *arguments["input_ids"].shape), generator=torch.Generator().manual_seed(0)
    )
    theirs, ours = both(models, arguments, position_ids=position_ids)
    torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)
    flat = both(models, batch(*TEXT), position_ids=position_ids[0, :, :11])
    torch.testing.assert_close(
        flat[1].logits,
        both(models, batch(*TEXT), position_ids=position_ids[:1, :, :11].expand(3, -1, -1))[0].logits,
        **CLOSE,
    )


def step_arguments(arguments, ids, cache, cells):
    mask = torch.cat([arguments["attention_mask"], torch.ones_like(ids)], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "past_key_values": cache,
        "cache_position": torch.tensor([cells]),
    }


@pytest.mark.parametrize("case", CASES)
def test_cached_step(models, case):
    arguments = batch(*CASES[case])
    theirs, ours = both(models, arguments)
    cells = arguments["input_ids"].shape[1]
    assert ours.past_key_values.get_seq_length() == cells == theirs.past_key_values.get_seq_length()
    ids = torch.full((len(CASES[case]), 1), 17)
    left = models[0](**step_arguments(arguments, ids, theirs.past_key_values, cells))
    right = models[1](**step_arguments(arguments, ids, ours.past_key_values, cells))
    torch.testing.assert_close(right.logits, left.logits, **CLOSE)


@pytest.mark.parametrize("cache_type", ["dynamic", "static"])
def test_chunks_through_a_cache_are_the_whole(models, cache_type):
    """Without cache_position: the cache knows where it stands; a later chunk may bring its own picture."""
    _, ours = models
    row = prompt_row(5, ("image", (1, 4, 6)), 7, ("image", (1, 4, 4)), 3, seed=1)
    arguments = batch(row)
    whole = ours(**arguments).logits
    cache = DynamicCache() if cache_type == "dynamic" else StaticCache(ours.config, max_cache_len=64)
    cut = 5 + 8 + 4
    first = ours(
        arguments["input_ids"][:, :cut],
        pixel_values=arguments["pixel_values"][:24],
        image_grid_thw=arguments["image_grid_thw"][:1],
        past_key_values=cache,
    )
    second = ours(
        arguments["input_ids"][:, cut:],
        pixel_values=arguments["pixel_values"][24:],
        image_grid_thw=arguments["image_grid_thw"][1:],
        past_key_values=cache,
    )
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole, atol=1e-5, rtol=1e-5)
    assert torch.equal(second.rope_deltas, ours(**arguments).rope_deltas)


def test_text_and_backbone_classes(models):
    theirs, ours = models
    arguments = batch(*TEXT)
    with torch.no_grad():
        left = theirs.model.language_model(input_ids=arguments["input_ids"]).last_hidden_state
        right = ours.model.language_model(input_ids=arguments["input_ids"]).last_hidden_state
        torch.testing.assert_close(right, left, **CLOSE)
        arguments = batch(*IMAGES)
        theirs.model.rope_deltas = None
        left = theirs.model(**arguments)
        right = ours.model(**arguments)
    torch.testing.assert_close(right.last_hidden_state, left.last_hidden_state, **CLOSE)
    assert torch.equal(right.rope_deltas, left.rope_deltas)


def test_features(models):
    theirs, ours = models
    arguments = batch(*IMAGES)
    with torch.no_grad():
        left = theirs.get_image_features(arguments["pixel_values"], arguments["image_grid_thw"])
        right = ours.get_image_features(arguments["pixel_values"], arguments["image_grid_thw"])
    assert [f.shape for f in left] == [f.shape for f in right]
    torch.testing.assert_close(torch.cat(right), torch.cat(left), **CLOSE)


def test_legacy_cache_round_trip(models):
    arguments = batch(*IMAGE)
    theirs, ours = both(models, arguments)
    for (k, v), (k2, v2) in zip(
        ours.past_key_values.to_legacy_cache(), theirs.past_key_values.to_legacy_cache(), strict=True
    ):
        torch.testing.assert_close(k, k2, **CLOSE)
        torch.testing.assert_close(v, v2, **CLOSE)
    again = DynamicCache.from_legacy_cache(ours.past_key_values.to_legacy_cache())
    assert again.get_seq_length() == ours.past_key_values.get_seq_length()


def test_counts_and_resizing(models):
    theirs, _ = models
    _, ours = tiny_models()
    assert ours.num_parameters() == theirs.num_parameters()
    assert ours.num_parameters(exclude_embeddings=True) == theirs.num_parameters(exclude_embeddings=True)
    before = ours.get_input_embeddings().weight.clone()
    ours.resize_token_embeddings(210, pad_to_multiple_of=8)
    assert ours.get_input_embeddings().weight.shape == (216, 32) == ours.lm_head.weight.shape
    assert torch.equal(ours.get_input_embeddings().weight[:200], before)
    assert ours.config.vocab_size == ours.config.text_config.vocab_size == 216
    assert ours(batch(*TEXT)["input_ids"]).logits.shape[-1] == 216


def test_memory_footprint(models):
    theirs, ours = models
    assert ours.get_memory_footprint() == theirs.get_memory_footprint(return_buffers=False)


def test_outputs_are_rebuilt_from_a_mapping(models):
    output = models[1](**batch(*TEXT))
    again = type(output)(dict(output))
    assert again.logits is output.logits and again.loss is None
