"""Where every token stands in time, height and width: the positions of multimodal rotary embedding.

This module knows token ids and grids, nothing of text, pixels or padding: callers hand over one sequence
of real tokens at a time (or a batch of such rows) and put padded cells wherever they like afterwards.

Formulas: Qwen2-VL paper (arXiv 2409.12191), section 2.1, and Qwen2.5-VL report (arXiv 2502.13923),
section 2.1.2 for absolute time. Legend: T tokens, N merged tokens of one medium.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from qvl.errors import InputError, PlaceholderMismatchError
from qvl.types import Grid, Modality, Span

MODALITIES: tuple[Modality, Modality] = ("image", "video")


@dataclass(frozen=True, slots=True)
class Placement:
    """A medium found in a row: its ``span``, its ``grid`` and its ``index`` among the media of its kind."""

    span: Span
    grid: Grid
    index: int


def find_spans(
    token_ids: Sequence[int] | torch.Tensor,
    image_grids: Sequence[Grid] = (),
    video_grids: Sequence[Grid] = (),
    *,
    image_token_id: int,
    video_token_id: int,
    merge_size: int = 2,
) -> tuple[Span, ...]:
    """The spans of all media in one row of T token ids, in reading order.

    Raises PlaceholderMismatchError, with all counts, unless the placeholder runs are exactly those that the
    grids make.
    """
    (row,) = place_media(
        [token_ids],
        image_grids,
        video_grids,
        image_token_id=image_token_id,
        video_token_id=video_token_id,
        merge_size=merge_size,
    )
    return tuple(placement.span for placement in row)


def place_media(
    rows: Sequence[Sequence[int] | torch.Tensor],
    image_grids: Sequence[Grid] = (),
    video_grids: Sequence[Grid] = (),
    *,
    image_token_id: int,
    video_token_id: int,
    merge_size: int = 2,
) -> list[tuple[Placement, ...]]:
    """For every row of token ids the media that stand in it, taken from the grids row after row.

    Images and videos are counted apart, as the model gets them: all images of the batch in one list, all
    videos in another. Runs of one kind may touch; the grids say where one ends and the next begins.
    Time is linear in the number of tokens.
    """
    token_of: dict[Modality, int] = {"image": image_token_id, "video": video_token_id}
    grids_of: dict[Modality, Sequence[Grid]] = {"image": image_grids, "video": video_grids}
    runs = [list(_runs(row, token_of)) for row in rows]
    for kind in MODALITIES:
        _check_counts(
            kind, [run for row in runs for run in row if run.kind == kind], grids_of[kind], merge_size
        )
    queues = {kind: iter(enumerate(grids_of[kind])) for kind in MODALITIES}
    return [tuple(p for run in row for p in _split(run, queues[run.kind], merge_size)) for row in runs]


def multimodal_positions(
    token_count: int,
    spans: Sequence[Span],
    grids: Sequence[Grid],
    seconds_per_grid: Sequence[float] = (),
    merge_size: int = 2,
    tokens_per_second: float = 2,
) -> tuple[torch.Tensor, int]:
    """Rotary positions of one row: an int64 tensor (3, T) of (time, height, width), and the rope delta.

    ``spans`` and ``grids`` go together, in reading order. ``seconds_per_grid`` has one value for each span
    (ignored for pictures) or is empty when there is no video. The temporal index of grid step i is
    ``int(i * seconds_per_grid * tokens_per_second)``, in double precision, truncated last; all tokens of a
    picture share one. What follows a medium continues at 1 + the largest position on any axis so far.
    The delta is ``1 + largest position - T``: the token after the row stands at ``T + delta``.
    """
    if len(spans) != len(grids) or (seconds_per_grid and len(seconds_per_grid) != len(spans)):
        raise InputError(
            f"{len(spans)} spans need as many grids and seconds per grid step, "
            f"but {len(grids)} and {len(seconds_per_grid)} were given"
        )
    positions_3T = torch.empty(3, token_count, dtype=torch.int64)
    cursor = following = 0
    for index, (span, grid) in enumerate(zip(spans, grids, strict=True)):
        following = _fill_text(positions_3T, cursor, span.start, following)
        seconds = 0.0 if span.kind == "image" else _seconds_of(index, seconds_per_grid)
        offsets_3N = _grid_offsets(grid, merge_size, seconds, tokens_per_second)
        positions_3T[:, span.start : span.end] = offsets_3N + following
        following += int(offsets_3N.max()) + 1
        cursor = span.end
    following = _fill_text(positions_3T, cursor, token_count, following)
    return positions_3T, following - token_count


def read_grids(grid_thw: torch.Tensor | Sequence[Sequence[int]] | None) -> list[Grid]:
    """``image_grid_thw`` or ``video_grid_thw``, (media, 3) integers, as grids."""
    if grid_thw is None:
        return []
    rows = grid_thw.tolist() if isinstance(grid_thw, torch.Tensor) else grid_thw
    if any(len(row) != 3 for row in rows):
        raise InputError("A grid has three numbers: temporal steps, rows and columns of patches.")
    return [Grid(*(int(n) for n in row)) for row in rows]


def given_positions(position_ids: torch.Tensor, batch: int, columns: int) -> torch.Tensor:
    """(3, B, L) of a caller's ``position_ids``, one value for every cell of a padded call.

    Shapes read: (B, L), the same on the three axes; (3, B, L), or B = 1 for all rows; (4, B, L), whose first
    entry transformers uses for its masks and which a packed sequence has no use for. Raises InputError.
    """
    given_3BL = position_ids.expand(3, *position_ids.shape) if position_ids.ndim == 2 else position_ids
    if given_3BL.ndim == 3 and given_3BL.shape[1] == 1:
        given_3BL = given_3BL.expand(-1, batch, -1)
    if given_3BL.ndim != 3 or given_3BL.shape[0] not in (3, 4) or given_3BL.shape[1:] != (batch, columns):
        raise InputError(
            f"position_ids has shape {tuple(position_ids.shape)}; expected {(batch, columns)} or "
            f"{(3, batch, columns)}, one value for every cell."
        )
    return given_3BL[-3:]


def read_seconds(second_per_grid_ts: torch.Tensor | Sequence[float] | None, videos: int) -> list[float]:
    """``second_per_grid_ts``, one value per video; 1.0 where the caller is silent, as in transformers."""
    if second_per_grid_ts is None:
        return [1.0] * videos
    seconds = [float(s) for s in second_per_grid_ts]
    if len(seconds) != videos:
        raise InputError(
            f"second_per_grid_ts has {len(seconds)} values for {videos} videos; give one for each."
        )
    if not all(0 <= s < math.inf for s in seconds):
        raise InputError(f"second_per_grid_ts must be seconds of 0 or more, got {seconds}.")
    return seconds


def _seconds_of(index: int, seconds_per_grid: Sequence[float]) -> float:
    if not seconds_per_grid:
        raise InputError("A video needs seconds_per_grid: the seconds that one of its temporal steps covers")
    return float(seconds_per_grid[index])


def _fill_text(positions_3T: torch.Tensor, start: int, end: int, first: int) -> int:
    """Numbers the text tokens [start, end) from ``first`` on, alike on all axes; returns the next number."""
    positions_3T[:, start:end] = torch.arange(first, first + end - start)
    return first + end - start


def _grid_offsets(
    grid: Grid, merge_size: int, seconds_per_grid: float, tokens_per_second: float
) -> torch.Tensor:
    """(3, N) positions of a medium's merged tokens, relative to where it begins."""
    times = torch.tensor([int(i * seconds_per_grid * tokens_per_second) for i in range(grid.t)])
    heights = torch.arange(grid.h // merge_size)
    widths = torch.arange(grid.w // merge_size)
    return torch.stack(torch.meshgrid(times, heights, widths, indexing="ij")).flatten(1)


def _runs(token_ids: Sequence[int] | torch.Tensor, token_of: dict[Modality, int]) -> Iterator[Span]:
    """The longest stretches of one placeholder token, in reading order."""
    ids_T = torch.as_tensor(token_ids, dtype=torch.int64).cpu()
    kind_T = torch.zeros(len(ids_T) + 2, dtype=torch.int8)  # one cell of text at either end closes every run
    for number, kind in enumerate(MODALITIES, start=1):
        kind_T[1:-1][ids_T == token_of[kind]] = number
    edges = kind_T.diff().nonzero().flatten().tolist()
    for start, end in pairwise(edges):
        if number := int(kind_T[start + 1]):
            yield Span(MODALITIES[number - 1], start, end - start)


def _check_counts(kind: Modality, runs: list[Span], grids: Sequence[Grid], merge_size: int) -> None:
    found = sum(run.length for run in runs)
    expected = sum(grid.tokens(merge_size) for grid in grids)
    if found != expected:
        raise PlaceholderMismatchError(
            f"The prompt has {len(runs)} {kind} placeholder run(s) of {found} tokens in all, but "
            f"{len(grids)} {kind}(s) were given, which take {expected} tokens; "
            f"give one {kind} for each placeholder"
        )


def _split(run: Span, grids: Iterator[tuple[int, Grid]], merge_size: int) -> Iterator[Placement]:
    """Hands the next media to the run until it is full. Totals were checked, so grids cannot run out."""
    start = run.start
    while start < run.end:
        index, grid = next(grids)
        span = Span(run.kind, start, grid.tokens(merge_size))
        if span.end > run.end:
            raise PlaceholderMismatchError(
                f"{run.kind.capitalize()} {index} takes {span.length} tokens ({grid.t} x {grid.h} x {grid.w} "
                f"patches), but only {run.end - start} placeholder tokens stand together at token {start}"
            )
        yield Placement(span, grid, index)
        start = span.end
