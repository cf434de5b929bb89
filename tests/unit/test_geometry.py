"""Window order: every token once, windows together and square, frames apart, and the way back."""

import pytest
import torch

from qvl.errors import InputError
from qvl.network.geometry import as_grids, layout
from qvl.types import Grid

GRIDS = [(1, 2, 2), (1, 8, 8), (1, 6, 10), (1, 16, 18), (3, 8, 6), (2, 20, 34), (1, 2, 40), (4, 10, 2)]


@pytest.mark.parametrize("size", GRIDS)
@pytest.mark.parametrize("window", [1, 3, 4])
def test_windows_of_one_grid(size, window):
    grid = Grid(*size)
    plan = layout([grid], 2, window)
    height, width = grid.h // 2, grid.w // 2
    assert sorted(plan.order_N.tolist()) == list(range(grid.t * height * width))
    assert torch.equal(plan.order_N[plan.inverse_N], torch.arange(len(plan.order_N)))
    assert min(plan.window_lengths) > 0  # also where the grid divides evenly
    assert plan.frame_lengths == (grid.h * grid.w,) * grid.t
    assert sum(plan.window_lengths) == grid.patches

    seen, start = set(), 0
    for length in plan.window_lengths:
        tokens = plan.order_N[start : start + length // 4]
        frame, row, column = tokens // (height * width), tokens // width % height, tokens % width
        names = set(zip(frame.tolist(), (row // window).tolist(), (column // window).tolist(), strict=True))
        assert len(names) == 1  # one window of one frame
        assert not names & seen  # and all of it
        seen |= names
        start += length // 4
    assert len(seen) == grid.t * -(-height // window) * -(-width // window)


def test_large_windows_come_first_in_each_frame():
    plan = layout([Grid(2, 12, 20)], 2, 4)  # 6 x 10 merged tokens: windows of 4 x 4, 4 x 2, 2 x 4 and 2 x 2
    frame = (64, 64, 32, 32, 32, 16)
    assert plan.window_lengths == frame * 2


@pytest.mark.parametrize("size", GRIDS)
def test_coordinates_follow_the_merge_order(size):
    grid = Grid(*size)
    plan = layout([grid], 2, 4)
    in_order = [
        (2 * row + i, 2 * column + j)
        for _ in range(grid.t)
        for row in range(grid.h // 2)
        for column in range(grid.w // 2)
        for i in range(2)
        for j in range(2)
    ]
    expected = [in_order[4 * token + patch] for token in plan.order_N.tolist() for patch in range(4)]
    assert list(zip(plan.rows_P.tolist(), plan.columns_P.tolist(), strict=True)) == expected


def test_several_grids_lie_one_after_the_other():
    grids = [Grid(*size) for size in GRIDS]
    plan, start = layout(grids, 2, 4), 0
    for grid in grids:
        alone = layout([grid], 2, 4)
        rows = slice(start, start + grid.tokens(2))
        assert torch.equal(plan.order_N[rows], alone.order_N + start)
        assert torch.equal(plan.inverse_N[rows], alone.inverse_N + start)
        start += grid.tokens(2)
    assert plan.window_lengths == sum((layout([g], 2, 4).window_lengths for g in grids), ())


def test_the_result_is_kept_and_fit_for_training():
    with torch.inference_mode():
        first = layout([Grid(1, 26, 38)], 2, 4)
    assert layout([Grid(1, 26, 38)], 2, 4) is first
    assert not first.order_N.is_inference()
    with torch.device("meta"):
        assert layout([Grid(1, 26, 42)], 2, 4).order_N.device.type == "cpu"


@pytest.mark.parametrize("size", [(0, 4, 4), (1, 3, 4), (1, 4, 5), (1, 0, 4), (-1, 4, 4)])
def test_grids_that_cannot_be_merged(size):
    with pytest.raises(InputError, match=" x ".join(map(str, size))):
        layout([Grid(*size)], 2, 4)


def test_no_grid():
    with pytest.raises(InputError, match="no grid"):
        layout([], 2, 4)


def test_grids_from_tensors_and_lists():
    expected = (Grid(1, 4, 6), Grid(2, 8, 8))
    assert as_grids(torch.tensor([[1, 4, 6], [2, 8, 8]])) == expected
    assert as_grids([[1, 4, 6], (2, 8, 8)]) == expected
    assert as_grids(expected) == expected
    with pytest.raises(InputError, match=r"\(media, 3\)"):
        as_grids(torch.tensor([1, 4, 6]))
