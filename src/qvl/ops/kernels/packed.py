"""The kernel for attention inside packed sequences with many queries each: vision windows, frames, prompts.

Which tensors may come this way is decided by `qvl.ops.attention.compiled`.

Legend: T query rows, S key rows, H heads, G key/value heads, D head dim.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from qvl.ops.kernels import DTYPES, Kernels

_STRIDES = ("q_token", "q_head", "k_token", "k_head", "v_token", "v_head")


class _PackedAttention(ctypes.Structure):
    """``struct PackedAttention`` of native/kernels.h."""

    _fields_ = (
        ("dtype", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "q_lengths", "k_lengths")),
        *((name, ctypes.c_int64) for name in ("sequences", "heads", "shared", "width", *_STRIDES)),
        ("causal", ctypes.c_bool),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_int),
    )


def packed_attention(
    offered: Kernels,
    q_THD: Tensor,
    k_SGD: Tensor,
    v_SGD: Tensor,
    q_lengths: Sequence[int],
    k_lengths: Sequence[int],
    *,
    causal: bool,
    window: int | None,
    scale: float | None,
) -> Tensor:
    """(T, H, D), contiguous; arguments as in ``qvl.ops.attention.Backend``.

    All three of one dtype, float32 or bfloat16, added up in float32; any strides but that of the last axis,
    which is contiguous.
    """
    (T, H, D), G = q_THD.shape, k_SGD.shape[1]
    out_THD = torch.empty(T, H, D, dtype=q_THD.dtype)
    queries, keys = _lengths(tuple(q_lengths)), _lengths(tuple(k_lengths))
    strides = [stride for x in (q_THD, k_SGD, v_SGD) for stride in x.stride()[:2]]
    offered.packed_attention(
        ctypes.byref(
            _PackedAttention(
                DTYPES[q_THD.dtype],
                *(x.data_ptr() for x in (q_THD, k_SGD, v_SGD, out_THD)),
                *(ctypes.addressof(lengths) for lengths in (queries, keys)),
                *(len(queries), H, H // G, D),
                *strides,
                causal,
                window or 0,
                D**-0.5 if scale is None else scale,
                torch.get_num_threads(),
            )
        )
    )
    return out_THD


@lru_cache(maxsize=64)
def _lengths(lengths: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    """As the kernel reads them. Every block of a tower asks for the same."""
    return (ctypes.c_int64 * len(lengths))(*lengths)
