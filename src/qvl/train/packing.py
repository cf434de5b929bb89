"""Many samples as one packed batch: token after token, no padding, no mask.

Legend: T tokens of all samples, P patches of all media, C values in one patch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qvl.train.sample import IGNORED, Sample
from qvl.types import Grid


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """What one pass through the network takes.

    ``ids_T``, ``targets_T``: int64; ``positions_3T``: int64 rotary positions. ``lengths``: tokens of each
    sample. ``vision_T``: bool, where media stand. ``patches_PC``: None without media; ``grids`` in the order
    of the tokens.
    """

    ids_T: Tensor
    positions_3T: Tensor
    targets_T: Tensor
    vision_T: Tensor
    lengths: tuple[int, ...]
    patches_PC: Tensor | None
    grids: tuple[Grid, ...]

    @property
    def learned(self) -> int:
        """How many tokens are to be learned."""
        return int((self.targets_T != IGNORED).sum())

    def to(self, device: torch.device | str) -> PackedBatch:
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def pack(samples: Sequence[Sample]) -> PackedBatch:
    """The samples end to end, those of one length side by side (attention takes such runs in one call)."""
    samples = sorted(samples, key=len)
    media = [medium for sample in samples for medium in sample.prompt.media]
    vision_T = torch.zeros(sum(map(len, samples)), dtype=torch.bool)
    start = 0
    for sample in samples:
        for span in sample.prompt.spans:
            vision_T[start + span.start : start + span.end] = True
        start += len(sample)
    return PackedBatch(
        ids_T=torch.tensor([token for sample in samples for token in sample.prompt.token_ids]),
        positions_3T=torch.cat([sample.prompt.positions_3T for sample in samples], dim=1),
        targets_T=torch.cat([sample.targets_T for sample in samples]),
        vision_T=vision_T,
        lengths=tuple(map(len, samples)),
        patches_PC=torch.cat([medium.patches_PC for medium in media]) if media else None,
        grids=tuple(medium.grid for medium in media),
    )


def groups(sizes: Iterable[int], most: int) -> list[list[int]]:
    """Consecutive indices whose sizes add up to at most ``most``; a larger one stands alone.

    In the order given, so that what a step holds depends on nothing but the order of the samples.
    """
    found: list[list[int]] = []
    room = 0
    for index, size in enumerate(sizes):
        if not found or size > room:
            found.append([])
            room = most
        found[-1].append(index)
        room -= size
    return found
