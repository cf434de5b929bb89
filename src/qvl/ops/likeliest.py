"""The place of the largest score in each row.

Legend: N rows, V vocabulary, B blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 512


def likeliest(scores_NV: Tensor) -> Tensor:
    """``scores_NV.argmax(-1)``, the first of equal ones, for rows without NaN: int64 (N,).

    On a CPU torch finds the largest value ten times as fast as its place, so the place is looked for in one
    block only.
    """
    whole = scores_NV.shape[1] // BLOCK * BLOCK
    if not scores_NV.is_cpu or whole < 4 * BLOCK:
        return scores_NV.argmax(dim=-1)
    blocks_NBX = scores_NV[:, :whole].unflatten(1, (-1, BLOCK))
    block_N = blocks_NBX.amax(dim=-1).argmax(dim=-1)
    inside_NX = blocks_NBX[torch.arange(len(block_N)), block_N]
    best_N, place_N = inside_NX.max(dim=-1)
    place_N = place_N + block_N * BLOCK
    if whole == scores_NV.shape[1]:
        return place_N
    rest_N, rest_place_N = scores_NV[:, whole:].max(dim=-1)
    return torch.where(rest_N > best_N, rest_place_N + whole, place_N)
