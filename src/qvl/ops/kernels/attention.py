"""The attention kernel's side of Python: how a step is handed over, and what keys look like in 8 bits.

Legend: N sequences, T new tokens of all of them, H query heads, G key/value heads, D head width, S keys,
B groups of `SCALE_GROUP` values along D.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qvl.ops.kernels import DTYPES, Kernels

SCALE_GROUP = 32  # values of an 8-bit key that share a scale
MOST_WIDTH = 256  # of a head
STORED = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class _Arguments(ctypes.Structure):
    """``struct Attention`` of native/kernels.h."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("dtype", "storage")),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "buffers", "lengths")),
        *((name, ctypes.c_int64) for name in ("N", "H", "G", "D", "q_stride", "k_stride", "v_stride")),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_int),
        ("starts", ctypes.c_void_p),
    )


class CachedAttention:
    """Attention of one step of N sequences, each with buffers of its own that it writes its new keys into.

    ``buffers``: int64 (layers, N, 5), for each the addresses of keys, values, key scales and value scales,
    and the elements from one head to the next: keys lie as (G, capacity, D). ``past``, ``counts``: keys
    that are there already, and new tokens, of each sequence. ``queries``: how many of the new tokens of
    each, from the end, ask; None: all. ``stored``: the dtype of the buffers, which must outlive this object.
    """

    def __init__(
        self,
        offered: Kernels,
        buffers: Tensor,
        past: Sequence[int],
        counts: Sequence[int],
        stored: torch.dtype,
        queries: Sequence[int] | None = None,
    ) -> None:
        self._attention = offered.attention
        self._buffers = buffers
        self._lengths = torch.tensor(list(zip(past, counts, queries or counts, strict=True)))
        self._bytes = buffers.stride(0) * 8
        self._arguments = _Arguments(storage=STORED[stored], lengths=self._lengths.data_ptr(), N=len(counts))

    def __call__(self, layer: int, window: int | None, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        """Write the new keys and attend causally to all of them: (T, H, D) in the dtype of ``q_THD``.

        ``q_THD``: of those tokens that ask, T in all, which may be fewer than the new keys. All three of one
        dtype, float32 or bfloat16; each token's heads lie side by side.
        """
        T, H, D = q_THD.shape
        out_THD = q_THD.new_empty(T, H, D)
        a = self._arguments
        a.dtype, a.q, a.k, a.v = DTYPES[q_THD.dtype], q_THD.data_ptr(), k_TGD.data_ptr(), v_TGD.data_ptr()
        a.out, a.buffers = out_THD.data_ptr(), self._buffers.data_ptr() + layer * self._bytes
        a.H, a.G, a.D = H, k_TGD.shape[1], D
        a.q_stride, a.k_stride, a.v_stride = q_THD.stride(0), k_TGD.stride(0), v_TGD.stride(0)
        a.window, a.scale, a.threads = window or 0, 1 / math.sqrt(D), torch.get_num_threads()
        self._attention(ctypes.addressof(a))
        return out_THD


def quantize_keys(x_SGD: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit keys or values, int8 (S, G, D), and their scales, bfloat16 (S, G, B): what the kernel stores."""
    D = x_SGD.shape[-1]
    padded = torch.nn.functional.pad(x_SGD.float(), (0, -D % SCALE_GROUP)).unflatten(-1, (-1, SCALE_GROUP))
    # As NaN and infinity cannot be kept in 8 bits, the scale keeps them.
    scales = (padded.abs().amax(-1) / 127).bfloat16()
    inverse = torch.where(scales > 0, 1 / scales.float(), 0.0)
    whole = (padded * inverse.unsqueeze(-1)).round().clamp(-127, 127).nan_to_num().to(torch.int8)
    return whole.flatten(-2)[..., :D].contiguous(), scales


def dequantize_keys(whole_SGD: Tensor, scales_SGB: Tensor, dtype: torch.dtype) -> Tensor:
    """(S, G, D) in ``dtype``, from what `quantize_keys` makes."""
    D = whole_SGD.shape[-1]
    return (whole_SGD.float() * scales_SGB.float().repeat_interleave(SCALE_GROUP, -1)[..., :D]).to(dtype)
