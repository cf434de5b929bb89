"""From the arguments of a documented forward call to what the packed network takes: media and positions.

Legend: B batch, L padded length, T packed tokens, N vision tokens, M media, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qvl.errors import InputError
from qvl.modeling.packing import Packing
from qvl.processing.positions import Placement, multimodal_positions, place_media
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
        count = len(self.video_grids)
        if self.second_per_grid_ts is None:
            return [1.0] * count
        seconds = [float(s) for s in self.second_per_grid_ts]
        if len(seconds) != count:
            raise InputError(
                f"second_per_grid_ts has {len(seconds)} values for {count} videos; give one for each"
            )
        return seconds


def read_grids(grid_thw: torch.Tensor | Sequence[Sequence[int]] | None) -> list[Grid]:
    """(M, 3) numbers as grids."""
    if grid_thw is None:
        return []
    rows = grid_thw.tolist() if isinstance(grid_thw, torch.Tensor) else grid_thw
    if any(len(row) != 3 for row in rows):
        raise InputError("a grid has three numbers: temporal steps, rows and columns of patches")
    return [Grid(*(int(n) for n in row)) for row in rows]


@dataclass(frozen=True, eq=False)
class RowPositions:
    """``positions_3T`` of all rows end to end and the rope delta of every row, relative to its own start."""

    positions_3T: torch.Tensor
    deltas: list[int]


def packed_positions(
    ids_by_row: Sequence[torch.Tensor], vision: VisionArguments, config: Any, starts: Sequence[int]
) -> RowPositions:
    """Multimodal positions of rows of real tokens; row r begins at position ``starts[r]``."""
    seconds = vision.seconds
    merge = config.vision_config.spatial_merge_size
    parts, deltas = [], []
    for ids, placed, start in zip(ids_by_row, _place(ids_by_row, vision, config), starts, strict=True):
        positions_3T, delta = multimodal_positions(
            len(ids),
            [p.span for p in placed],
            [p.grid for p in placed],
            [seconds[p.index] if p.span.kind == "video" else 0.0 for p in placed],
            merge_size=merge,
            tokens_per_second=config.vision_config.tokens_per_second,
        )
        parts.append(positions_3T + start)
        deltas.append(delta)
    return RowPositions(torch.cat(parts, dim=1), deltas)


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


def given_positions(position_ids: torch.Tensor, packing: Packing) -> torch.Tensor:
    """(3, T) from the caller's ``position_ids``.

    Shapes read: (B, L), the same on the three axes; (3, B, L); (4, B, L), whose first entry transformers
    uses for its masks and which is not needed here.
    """
    if position_ids.ndim == 2:
        position_ids = position_ids.expand(3, *position_ids.shape)
    if position_ids.ndim != 3 or position_ids.shape[0] not in (3, 4):
        raise InputError(
            f"position_ids has shape {tuple(position_ids.shape)}; "
            "expected (batch, length) or (3, batch, length)"
        )
    position_ids = position_ids[-3:]
    if position_ids.shape[1] == 1 and packing.batch > 1:
        position_ids = position_ids.expand(3, packing.batch, -1)
    if position_ids.shape[1:] != (packing.batch, packing.columns):
        raise InputError(
            f"position_ids covers {tuple(position_ids.shape[1:])} cells but the call has "
            f"{(packing.batch, packing.columns)}"
        )
    return packing.pack(position_ids.permute(1, 2, 0)).T
