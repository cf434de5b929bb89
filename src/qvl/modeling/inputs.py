"""From the arguments of a documented forward call to what the packed network takes: media and positions.

Legend: B batch, L padded length, T packed tokens, N vision tokens, M media, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from qvl.errors import InputError, InputTypeError
from qvl.modeling.packing import Packing
from qvl.processing.positions import (
    Placement,
    given_positions,
    multimodal_positions,
    place_media,
    read_grids,
    read_seconds,
)
from qvl.types import Grid


@dataclass(frozen=True, eq=False)
class VisionArguments:
    """The media of one call. Pictures and videos are counted apart, row after row, as processors do."""

    pixel_values: torch.Tensor | None = None
    pixel_values_videos: torch.Tensor | None = None
    image_grid_thw: torch.Tensor | None = None
    video_grid_thw: torch.Tensor | None = None
    second_per_grid_ts: torch.Tensor | Sequence[float] | None = None

    def __post_init__(self) -> None:
        for pixels, grids, kind in (
            (self.pixel_values, self.image_grid_thw, "image"),
            (self.pixel_values_videos, self.video_grid_thw, "video"),
        ):
            if pixels is not None and not isinstance(pixels, torch.Tensor):
                raise InputTypeError(f"{kind} pixels must be a torch.Tensor, not {type(pixels).__name__}")
            if pixels is not None and grids is None:
                raise InputError(
                    f"{kind} pixels were given without {kind}_grid_thw; pass both as the processor made them"
                )

    @property
    def has_pixels(self) -> bool:
        return self.pixel_values is not None or self.pixel_values_videos is not None

    @property
    def image_grids(self) -> list[Grid]:
        return read_grids(self.image_grid_thw)

    @property
    def video_grids(self) -> list[Grid]:
        return read_grids(self.video_grid_thw)

    @property
    def seconds(self) -> list[float]:
        """Seconds per temporal step, one per video; 1.0 (transformers' default) if silent."""
        return read_seconds(self.second_per_grid_ts, len(self.video_grids))


def packed_positions(
    ids_by_row: Sequence[torch.Tensor], vision: VisionArguments, config: Any, starts: Sequence[int]
) -> torch.Tensor:
    """Multimodal positions (3, T) of rows of real tokens end to end; row r begins at ``starts[r]``."""
    seconds = vision.seconds
    merge = config.vision_config.spatial_merge_size
    parts = []
    for ids, placed, start in zip(ids_by_row, _place(ids_by_row, vision, config), starts, strict=True):
        positions_3T, _ = multimodal_positions(
            len(ids),
            [p.span for p in placed],
            [p.grid for p in placed],
            [seconds[p.index] if p.span.kind == "video" else 0.0 for p in placed],
            merge_size=merge,
            tokens_per_second=config.vision_config.tokens_per_second,
        )
        parts.append(positions_3T + start)
    return torch.cat(parts, dim=1)


def text_positions(lengths: Sequence[int], starts: Sequence[int]) -> torch.Tensor:
    """Positions (3, T) of rows of text end to end."""
    parts = [torch.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)]
    return torch.cat(parts).expand(3, -1)


def _place(
    ids_by_row: Sequence[torch.Tensor], vision: VisionArguments, config: Any
) -> list[tuple[Placement, ...]]:
    if vision.image_grid_thw is None and vision.video_grid_thw is None:
        return [() for _ in ids_by_row]  # text only: a placeholder id is then an ordinary token
    tokens = torch.tensor([config.image_token_id, config.video_token_id])
    if not vision.has_pixels and not any(bool(torch.isin(ids, tokens).any()) for ids in ids_by_row):
        return [() for _ in ids_by_row]  # a decoding step that still carries the grids of its prompt
    return place_media(
        ids_by_row,
        vision.image_grids,
        vision.video_grids,
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        merge_size=config.vision_config.spatial_merge_size,
    )


def caller_positions(position_ids: torch.Tensor, packing: Packing) -> torch.Tensor:
    """(3, T) from the caller's ``position_ids``; see `given_positions`."""
    given_3BL = given_positions(position_ids, packing.batch, packing.columns)
    return packing.pack(given_3BL.permute(1, 2, 0)).T


def packed_sequences(
    position_ids: torch.Tensor | None, cu_seq_lens: torch.Tensor | None, batch: int, columns: int
) -> tuple[int, ...] | None:
    """Lengths of the sequences in the rows, end to end; None where every row is one sequence.

    Padding-free collators put several into a row and say so as transformers reads it: by ``cu_seq_lens_q``
    (where each begins among all cells, and the end), or by a (4, B, L) ``position_ids`` whose first entry
    counts anew at each.
    """
    whole = tuple(range(0, batch * columns + 1, columns))
    if cu_seq_lens is not None:
        starts = tuple(int(n) for n in cu_seq_lens)
        if starts[:1] != (0,) or starts[-1] != whole[-1] or any(a >= b for a, b in pairwise(starts)):
            raise InputError(
                f"cu_seq_lens_q must rise from 0 to the {whole[-1]} cells of the call, got {list(starts)}"
            )
    elif isinstance(position_ids, torch.Tensor) and position_ids.ndim == 3 and position_ids.shape[0] == 4:
        begins_BL = torch.ones(position_ids.shape[1:], dtype=torch.bool)
        begins_BL[:, 1:] = (position_ids[0].diff(dim=-1) != 1).cpu()
        begins = begins_BL.expand(batch, -1).flatten().nonzero().flatten().tolist()
        starts = (*begins, whole[-1])
    else:
        return None
    return None if starts == whole else tuple(b - a for a, b in pairwise(starts))
