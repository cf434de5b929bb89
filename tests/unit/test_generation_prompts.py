"""From padded tensors to prompts: rows without padding, each with its own media."""

import pytest
import torch

from qvl.errors import (
    CacheError,
    GenerationError,
    InputError,
    InputTypeError,
    NonFiniteError,
    PlaceholderMismatchError,
    PromptError,
)
from qvl.generation.inputs import ModelInputs, check_inputs, real_cells
from qvl.generation.prompts import CachedRow, build_prompts
from qvl.types import Grid, Span
from support.batches import MIXED, batch, prompt_row
from support.tiny import IMAGE, tiny_settings

IMAGE_ROW = prompt_row(4, ("image", (1, 4, 6)), 6, seed=6)


@pytest.fixture(scope="module")
def config():
    from qvl.config import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig(**tiny_settings())


def prompts_of(arguments, config, cached=()):
    inputs = ModelInputs(**arguments)
    check_inputs(inputs)
    return build_prompts(inputs, real_cells(inputs, None, ()), config, cached)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_lose_their_padding_and_get_their_own_media(config, side):
    prompts = prompts_of(batch(*MIXED, side=side, seconds=0.5), config)
    assert [p.token_ids for p in prompts] == [tuple(ids.tolist()) for ids, _, _ in MIXED]
    assert [[m.kind for m in p.media] for p in prompts] == [
        ["image"],
        ["video", "image"],
        [],
        ["image", "image", "video"],
    ]
    assert prompts[1].spans[0] == Span("video", 4, 12)
    assert prompts[1].media[0].grid == Grid(3, 4, 4)
    assert prompts[1].media[0].seconds_per_grid == 0.5
    for prompt in prompts:
        assert prompt.positions_3T.shape == (3, len(prompt.token_ids))
        assert prompt.rope_delta == int(prompt.positions_3T.max()) + 1 - len(prompt.token_ids)


def test_pixels_are_cut_by_grids_across_rows(config):
    arguments = batch(*MIXED)
    prompts = prompts_of(arguments, config)
    images = [m for p in prompts for m in p.media if m.kind == "image"]
    assert torch.equal(torch.cat([m.patches_PC for m in images]), arguments["pixel_values"])


def test_given_positions_and_deltas(config):
    arguments = batch(prompt_row(5), prompt_row(3))
    positions = torch.arange(10, 15).expand(2, -1)
    prompts = prompts_of({**arguments, "position_ids": positions}, config)
    assert prompts[1].positions_3T.tolist() == [[12, 13, 14]] * 3
    assert prompts[1].rope_delta == 15 - 3
    four = torch.stack([torch.zeros_like(positions), *[positions + i for i in range(3)]])
    assert prompts_of({**arguments, "position_ids": four}, config)[1].positions_3T[2].tolist() == [14, 15, 16]
    assert [
        p.rope_delta for p in prompts_of({**arguments, "rope_deltas": torch.tensor([[4], [5]])}, config)
    ] == [4, 5]
    one_row = prompts_of({**arguments, "position_ids": positions[:1]}, config)
    assert one_row[1].positions_3T.tolist() == prompts[1].positions_3T.tolist()
    with pytest.raises(InputError, match="position_ids"):
        prompts_of({**arguments, "position_ids": positions[:, :4]}, config)
    with pytest.raises(InputError, match="rope_deltas"):
        prompts_of({**arguments, "rope_deltas": torch.tensor([1])}, config)


class TestCached:
    """The first tokens of a row are known already."""

    def test_whole_conversation_given(self, config):
        (prompt,) = prompts_of(batch(IMAGE_ROW), config, [CachedRow(12, 8)])
        (fresh,) = prompts_of(batch(IMAGE_ROW), config)
        assert torch.equal(prompt.positions_3T, fresh.positions_3T)
        assert prompt.rope_delta == fresh.rope_delta
        assert prompt.media == ()  # its tokens are in the cache

    def test_only_new_media_given(self, config):
        whole = prompt_row(4, ("image", (1, 4, 6)), 6, ("image", (1, 4, 4)), 2, seed=6)
        (fresh,) = prompts_of(batch(whole), config)
        cached = 15
        start = int(fresh.positions_3T[0, cached])
        tail = batch((whole[0], whole[1][1:], []))
        (prompt,) = prompts_of(tail, config, [CachedRow(cached, start)])
        assert torch.equal(prompt.positions_3T[:, cached:], fresh.positions_3T[:, cached:])
        assert prompt.rope_delta == fresh.rope_delta
        assert prompt.spans == fresh.spans[1:]
        assert len(prompt.media) == 1

    def test_no_media_given_again(self, config):
        ids = batch(IMAGE_ROW)["input_ids"]
        (fresh,) = prompts_of(batch(IMAGE_ROW), config)
        (prompt,) = prompts_of({"input_ids": ids}, config, [CachedRow(12, int(fresh.positions_3T[0, 12]))])
        assert torch.equal(prompt.positions_3T[:, 12:], fresh.positions_3T[:, 12:])
        assert prompt.rope_delta == fresh.rope_delta

    def test_caches_that_do_not_fit(self, config):
        with pytest.raises(CacheError, match="at least one token"):
            prompts_of(batch(IMAGE_ROW), config, [CachedRow(18, 14)])
        with pytest.raises(CacheError, match="inside a image"):
            prompts_of(batch(IMAGE_ROW), config, [CachedRow(7, 6)])
        with pytest.raises(CacheError, match="2 rows"):
            prompts_of(batch(IMAGE_ROW), config, [CachedRow(), CachedRow()])


class TestBadInput:
    def test_placeholders_and_media_differ(self, config):
        arguments = batch(IMAGE_ROW)
        text = {k: v for k, v in arguments.items() if not k.startswith(("pixel", "image"))}
        with pytest.raises(PlaceholderMismatchError):
            prompts_of(text, config)
        extra = torch.where(arguments["input_ids"] == IMAGE, 5, arguments["input_ids"])
        with pytest.raises(PlaceholderMismatchError):
            prompts_of({**arguments, "input_ids": extra}, config)
        with pytest.raises(PlaceholderMismatchError, match="patches"):
            prompts_of({**arguments, "pixel_values": arguments["pixel_values"][1:]}, config)

    def test_halves_of_an_image(self, config):
        arguments = batch(IMAGE_ROW)
        with pytest.raises(InputError, match="image_grid_thw"):
            prompts_of({k: v for k, v in arguments.items() if k != "image_grid_thw"}, config)
        with pytest.raises(InputError, match="pixels"):
            prompts_of({k: v for k, v in arguments.items() if k != "pixel_values"}, config)

    def test_pixels_that_are_no_numbers(self, config):
        arguments = batch(IMAGE_ROW)
        arguments["pixel_values"][3, 5] = float("nan")
        with pytest.raises(NonFiniteError, match="pixel_values"):
            prompts_of(arguments, config)

    def test_shapes_and_types(self, config):
        ids = torch.ones(1, 4, dtype=torch.int64)
        with pytest.raises(InputTypeError, match="list"):
            prompts_of({"input_ids": [[1, 2]]}, config)
        with pytest.raises(InputTypeError, match="integers"):
            prompts_of({"input_ids": ids.float()}, config)
        with pytest.raises(InputError, match="neither of them 0"):
            prompts_of({"input_ids": ids[:, :0]}, config)
        with pytest.raises(InputError, match="attention_mask"):
            prompts_of({"input_ids": ids, "attention_mask": ids[:, :3]}, config)
        with pytest.raises(PromptError, match="no real token"):
            prompts_of({"input_ids": ids, "attention_mask": torch.zeros(1, 4)}, config)
        with pytest.raises(InputError, match="inputs_embeds"):
            prompts_of({"input_ids": ids, "inputs_embeds": torch.zeros(1, 3, 8)}, config)
        with pytest.raises(InputError, match="second_per_grid_ts"):
            prompts_of({**batch(MIXED[1]), "second_per_grid_ts": [1.0, 2.0]}, config)
        with pytest.raises(InputError, match="where they stand"):
            prompts_of({"inputs_embeds": torch.zeros(1, 3, 8), "pixel_values": torch.zeros(4, 1176)}, config)
        with pytest.raises(GenerationError, match="input_ids"):
            prompts_of({"attention_mask": ids}, config)


def test_padding_is_recognised_by_its_id_where_it_cannot_be_an_end():
    inputs = ModelInputs(input_ids=torch.tensor([[0, 0, 5], [4, 0, 6]]))
    assert real_cells(inputs, 0, (9,)).tolist() == [[False, False, True], [True, False, True]]
    assert real_cells(inputs, 0, (0,)).all()
    assert real_cells(inputs, None, ()).all()
