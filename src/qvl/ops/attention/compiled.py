"""Attention by qvl's own kernel, where that is ahead of torch's: many queries, on the CPU, nothing to train.

On the keys and values as they lie, whatever their strides; windows, whole frames and causal prompts with or
without a past are one call each, however many sequences there are.

Legend: T query rows, S key rows, H heads, G key/value heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from qvl.ops.kernels import kernels
from qvl.ops.kernels.packed import packed_attention
from qvl.ops.kernels.plain import plain

FEWEST = 8  # queries of a sequence on average: with fewer, copying its keys is most of the work


def compiled_attention(
    q_THD: Tensor,
    k_SGD: Tensor,
    v_SGD: Tensor,
    q_lengths: Sequence[int],
    k_lengths: Sequence[int],
    *,
    causal: bool,
    window: int | None,
    scale: float | None,
) -> Tensor | None:
    """(T, H, D) as of ``qvl.ops.attention.Backend``, or None where this is not the way.

    The lengths are taken to fit the tensors: see `check_packing`.
    """
    offered = kernels()
    if offered is None or len(q_THD) < FEWEST * len(q_lengths) or not plain(q_THD, k_SGD, v_SGD):
        return None
    if not q_THD.dtype == k_SGD.dtype == v_SGD.dtype or v_SGD.shape[2] != q_THD.shape[2]:
        return None
    q_THD, k_SGD, v_SGD = (x if x.stride(2) == 1 else x.contiguous() for x in (q_THD, k_SGD, v_SGD))
    return packed_attention(
        offered, q_THD, k_SGD, v_SGD, q_lengths, k_lengths, causal=causal, window=window, scale=scale
    )
