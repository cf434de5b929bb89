"""From the padded tensors of a documented call to one `Prompt` for each row, without its padding.

Knows token ids, grids and where placeholders stand; nothing of sampling, of the engine or of how the answer
is put together.

Legend: B batch, L padded length, T real tokens of one row, P patches, C patch values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qvl.errors import CacheError, InputError, PlaceholderMismatchError
from qvl.generation.inputs import ModelInputs
from qvl.processing.positions import (
    Placement,
    given_positions,
    multimodal_positions,
    place_media,
    read_grids,
    read_seconds,
)
from qvl.types import Medium, Prompt, Span


@dataclass(frozen=True)
class CachedRow:
    """What is already known of a row: its first ``length`` tokens, the next of which stands at
    ``position``.
    """

    length: int = 0
    position: int = 0


def build_prompts(
    inputs: ModelInputs, real_BL: Tensor, config: Any, cached: Sequence[CachedRow] = ()
) -> list[Prompt]:
    """One prompt for every row, with the row's own media.

    ``real_BL``: bool, on the CPU. ``config``: the model's (outer) config. ``cached``: what a cache already
    holds of each row; empty when there is none. Media may be given for the whole conversation, or only for
    what the cache does not hold yet.

    Raises PlaceholderMismatchError when placeholders and media differ in number, CacheError when the cache
    does not fit the rows.
    """
    known = list(cached) or [CachedRow()] * inputs.batch
    _check_cached(known, real_BL)
    ids_of_rows = [_row_ids(inputs, real_BL, row) for row in range(inputs.batch)]
    placed, behind_cache = _placements(inputs, ids_of_rows, known, config)
    media = _Media.of(inputs)
    prompts = []
    for row, ids in enumerate(ids_of_rows):
        start = known[row] if behind_cache else CachedRow()
        count = int(real_BL[row].sum())
        positions_3T, delta = _positions(placed[row], media, count, start, config)
        if inputs.position_ids is not None:
            given_3BL = given_positions(inputs.position_ids, *real_BL.shape)
            positions_3T = given_3BL[:, row].to("cpu", torch.int64)[:, real_BL[row]]
            delta = int(positions_3T.max()) + 1 - count
        if inputs.rope_deltas is not None:
            delta = int(inputs.rope_deltas.reshape(inputs.batch)[row])
        waiting = _not_cached(placed[row], start.length, known[row].length, row)
        prompts.append(
            Prompt(
                token_ids=tuple(ids.tolist()),
                positions_3T=positions_3T,
                rope_delta=delta,
                spans=tuple(span for span, _ in waiting),
                media=tuple(media.take(placement) for _, placement in waiting),
                embeds_TD=None if inputs.inputs_embeds is None else inputs.inputs_embeds[row][real_BL[row]],
            )
        )
    return prompts


def _row_ids(inputs: ModelInputs, real_BL: Tensor, row: int) -> Tensor:
    """(T,) ids on the CPU; empty when only embeddings were given."""
    if inputs.input_ids is None:
        return torch.empty(0, dtype=torch.int64)
    return inputs.input_ids[row].to("cpu", torch.int64)[real_BL[row]]


def _placements(
    inputs: ModelInputs, ids_of_rows: Sequence[Tensor], known: Sequence[CachedRow], config: Any
) -> tuple[list[tuple[Placement, ...]], bool]:
    """Where the media stand, and whether they were counted only behind the cached part of the rows."""
    images, videos = read_grids(inputs.image_grid_thw), read_grids(inputs.video_grid_thw)
    names = {
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "merge_size": config.vision_config.spatial_merge_size,
    }
    try:
        return place_media(ids_of_rows, images, videos, **names), False
    except PlaceholderMismatchError:
        if not any(row.length for row in known):
            raise
    tails = [ids[row.length :] for ids, row in zip(ids_of_rows, known, strict=True)]
    return place_media(tails, images, videos, **names), True


def _positions(
    placed: Sequence[Placement], media: _Media, count: int, start: CachedRow, config: Any
) -> tuple[Tensor, int]:
    """Positions (3, T) and rope delta of a row whose first ``start.length`` tokens are taken as they are."""
    positions_3T, delta = multimodal_positions(
        count - start.length,
        [p.span for p in placed],
        [p.grid for p in placed],
        [media.seconds(p) for p in placed],
        merge_size=config.vision_config.spatial_merge_size,
        tokens_per_second=config.vision_config.tokens_per_second,
    )
    if not start.length:
        return positions_3T, delta
    # The cached tokens' own positions are never read again; only their number counts.
    before = torch.zeros(3, start.length, dtype=torch.int64)
    return torch.cat([before, positions_3T + start.position], dim=1), delta + start.position - start.length


def _check_cached(known: Sequence[CachedRow], real_BL: Tensor) -> None:
    if len(known) != real_BL.shape[0]:
        raise CacheError(f"past_key_values holds {len(known)} rows, but the prompt has {real_BL.shape[0]}.")
    for row, (cached, count) in enumerate(zip(known, real_BL.sum(1).tolist(), strict=True)):
        if cached.length >= count:
            raise CacheError(
                f"past_key_values holds {cached.length} tokens of row {row}, but the prompt has only "
                f"{count}; hand in the whole conversation, with at least one token behind the cached ones."
            )


def _not_cached(
    placed: Sequence[Placement], shift: int, cached: int, row: int
) -> list[tuple[Span, Placement]]:
    """The media that the cache does not hold, each with its span in the whole row."""
    waiting = []
    for placement in placed:
        span = replace(placement.span, start=placement.span.start + shift)
        if span.start < cached < span.end:
            raise CacheError(
                f"past_key_values ends after {cached} tokens of row {row}, inside a {span.kind}; cut the "
                f"cache before token {span.start}."
            )
        if span.end > cached:
            waiting.append((span, placement))
    return waiting


@dataclass(frozen=True, eq=False)
class _Media:
    """All pictures and videos of a call, each cut out of the tensor of its kind when it is asked for."""

    patches: dict[str, list[Tensor] | None]
    video_seconds: list[float]

    @staticmethod
    def of(inputs: ModelInputs) -> _Media:
        videos = read_grids(inputs.video_grid_thw)
        return _Media(
            {
                "image": _cut(inputs.pixel_values, inputs.image_grid_thw),
                "video": _cut(inputs.pixel_values_videos, inputs.video_grid_thw),
            },
            read_seconds(inputs.second_per_grid_ts, len(videos)),
        )

    def seconds(self, placement: Placement) -> float:
        return self.video_seconds[placement.index] if placement.span.kind == "video" else 0.0

    def take(self, placement: Placement) -> Medium:
        kind = placement.span.kind
        patches = self.patches[kind]
        if patches is None:
            raise InputError(
                f"{kind}_grid_thw was given without the {kind}'s pixels; pass both as the "
                "processor made them."
            )
        return Medium(kind, placement.grid, patches[placement.index], self.seconds(placement))


def _cut(pixels_PC: Tensor | None, grid_thw: Tensor | None) -> list[Tensor] | None:
    if pixels_PC is None:
        return None
    return list(pixels_PC.split([grid.patches for grid in read_grids(grid_thw)]))
