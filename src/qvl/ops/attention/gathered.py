"""Attention of many short packed sequences that are trained on: those of one length in one call.

Each call to torch's attention, and each piece that is cut out of a tensor and has a gradient, costs tens of
microseconds forward and backward: with hundreds of windows and conversations in a batch more than the
attention itself. So the rows of all sequences of one length are brought together, and put back after it.

Legend: T rows, H heads, G key/value heads, D head dim, N sequences of one length, L their length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

EqualLengths = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(N, L, H, D), (N, L, G, D), (N, L, G, D) -> (N, L, H, D)."""


def gathered_attention(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, lengths: Sequence[int], attend: EqualLengths
) -> Tensor:
    """(T, H, D): ``attend`` over the sequences of each length together."""
    rows, back_T = _rows_by_length(tuple(lengths), q_THD.device)
    outputs = []
    for rows_NL in rows:
        qkv = (
            x.index_select(0, rows_NL.flatten()).unflatten(0, rows_NL.shape) for x in (q_THD, k_TGD, v_TGD)
        )
        outputs.append(attend(*qkv).flatten(0, 1))
    return torch.cat(outputs).index_select(0, back_T)


@lru_cache(maxsize=8)  # all layers of a few batches
def _rows_by_length(lengths: tuple[int, ...], device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Row indices (N, L) for each length, and where the gathered rows belong."""
    with torch.inference_mode(False):  # kept, so fit for training too
        starts, sizes = torch.tensor([0, *accumulate(lengths)][:-1]), torch.tensor(lengths)
        rows = [starts[sizes == n][:, None] + torch.arange(n) for n in dict.fromkeys(lengths) if n]
        back_T = torch.cat([each.flatten() for each in rows]).argsort()
        return [each.to(device) for each in rows], back_T.to(device)
