"""From the size of a picture to the order in which the vision tower looks at it.

Patches arrive in merge order: frame by frame, and inside a frame 2 x 2 neighbours (one merged token)
together. Most blocks attend inside windows only, so patches are put in window order once, and back after the
merger. Windows do not see each other, so their order is free: large ones come first in each frame, which
makes the runs of equal length long (one kernel call per run). Frames stay together: some blocks see it all.

Pure functions of the grid; torch only for index tensors. Nothing here knows a weight.

Legend: N merged tokens, P patches (N * merge_size ** 2), W windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from qvl.errors import InputError
from qvl.types import Grid


@dataclass(frozen=True, eq=False)
class Layout:
    """One or more grids as the tower processes them. Index tensors are int64 on the CPU.

    order_N: merged token of the input that comes at each place. inverse_N: the way back.
    rows_P, columns_P: coordinates of each patch inside its frame, in the tower's order.
    window_lengths, frame_lengths: patches in each window and each frame.
    """

    order_N: Tensor
    inverse_N: Tensor
    rows_P: Tensor
    columns_P: Tensor
    window_lengths: tuple[int, ...]
    frame_lengths: tuple[int, ...]


def as_grids(grid_thw: Tensor | Iterable[Grid] | Iterable[Sequence[int]]) -> tuple[Grid, ...]:
    """Grids from an (M, 3) integer tensor, or from anything that lists (t, h, w)."""
    if isinstance(grid_thw, Tensor):
        if grid_thw.ndim != 2 or grid_thw.shape[1] != 3:
            raise InputError(f"grid_thw must have the shape (media, 3), got {tuple(grid_thw.shape)}.")
        grid_thw = grid_thw.tolist()
    return tuple(row if isinstance(row, Grid) else Grid(*(int(size) for size in row)) for row in grid_thw)


def layout(grids: Sequence[Grid], merge_size: int, window: int) -> Layout:
    """The grids one after the other. ``window``: its side in merged tokens.

    Raises InputError for no grid, or one that cannot be merged.
    """
    parts = [_grid_layout(grid, merge_size, window) for grid in grids]
    if not parts:
        raise InputError("The vision tower was given no grid; pass at least one (t, h, w).")
    if len(parts) == 1:
        return parts[0]
    starts, start = [], 0
    for part in parts:
        starts.append(start)
        start += len(part.order_N)
    return Layout(
        order_N=torch.cat([part.order_N + start for part, start in zip(parts, starts, strict=True)]),
        inverse_N=torch.cat([part.inverse_N + start for part, start in zip(parts, starts, strict=True)]),
        rows_P=torch.cat([part.rows_P for part in parts]),
        columns_P=torch.cat([part.columns_P for part in parts]),
        window_lengths=tuple(length for part in parts for length in part.window_lengths),
        frame_lengths=tuple(length for part in parts for length in part.frame_lengths),
    )


@lru_cache(maxsize=32)
def _grid_layout(grid: Grid, merge_size: int, window: int) -> Layout:
    if min(grid.t, grid.h, grid.w) < 1 or grid.h % merge_size or grid.w % merge_size:
        raise InputError(
            f"A grid of {grid.t} x {grid.h} x {grid.w} patches cannot be merged: "
            f"all must be positive, height and width multiples of {merge_size}."
        )
    with torch.inference_mode(False), torch.device("cpu"):  # kept in the cache, so fit for training too
        order_frame, window_tokens = _frame_order(grid.h // merge_size, grid.w // merge_size, window)
        frame_tokens = len(order_frame)
        order_N = (torch.arange(grid.t)[:, None] * frame_tokens + order_frame).flatten()
        rows, columns = _coordinates(order_frame, grid.w // merge_size, merge_size)
        return Layout(
            order_N=order_N,
            inverse_N=order_N.argsort(),
            rows_P=rows.repeat(grid.t),
            columns_P=columns.repeat(grid.t),
            window_lengths=tuple(tokens * merge_size**2 for tokens in window_tokens) * grid.t,
            frame_lengths=(grid.h * grid.w,) * grid.t,
        )


def _frame_order(height: int, width: int, window: int) -> tuple[Tensor, list[int]]:
    """Merged tokens of one frame in window order, large windows first, and the tokens in each window."""
    windows_across = -(-width // window)
    row_of, column_of = torch.arange(height) // window, torch.arange(width) // window
    window_of_N = (row_of[:, None] * windows_across + column_of).flatten()
    tokens_W = window_of_N.bincount()
    by_size_W = tokens_W.argsort(descending=True, stable=True)
    order_N = by_size_W.argsort()[window_of_N].argsort(stable=True)
    return order_N, tokens_W[by_size_W].tolist()


def _coordinates(order_N: Tensor, width: int, merge_size: int) -> tuple[Tensor, Tensor]:
    """Row and column of every patch, merged token by merged token in the given order."""
    inside = torch.arange(merge_size)
    rows_N, columns_N = order_N // width * merge_size, order_N % width * merge_size
    rows = (rows_N[:, None, None] + inside[:, None]).expand(-1, -1, merge_size)
    columns = (columns_N[:, None, None] + inside).expand(-1, merge_size, -1)
    return rows.flatten(), columns.flatten()
