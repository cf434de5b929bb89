"""Attention through the flash-attn package: packed sequences in one kernel call, on an NVIDIA GPU.

Imported only when asked for; ``load_flash_attention`` says clearly what is missing.

Legend: T query rows, S key rows, H heads, G key/value heads, D head width.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from qvl.errors import MissingDependencyError, UnsupportedError
from qvl.ops.attention.packing import check_packing


def load_flash_attention() -> Callable[..., Tensor]:
    """The back-end "flash_attention_2", bound to the installed package.

    Raises MissingDependencyError without the package, UnsupportedError without a GPU.
    """
    try:
        kernel = importlib.import_module("flash_attn").flash_attn_varlen_func
    except ImportError as error:
        raise MissingDependencyError(
            'Attention "flash_attention_2" needs the package flash-attn and an NVIDIA GPU: '
            'pip install flash-attn --no-build-isolation, or choose "sdpa".'
        ) from error
    if not torch.cuda.is_available():
        raise UnsupportedError(
            'Attention "flash_attention_2" needs an NVIDIA GPU and torch sees none here; choose "sdpa".'
        )
    return partial(flash_attention, kernel)


def flash_attention(
    kernel: Callable[..., Any],
    q_THD: Tensor,
    k_SGD: Tensor,
    v_SGD: Tensor,
    q_lengths: Sequence[int],
    k_lengths: Sequence[int],
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention over packed sequences (see ``qvl.ops.attention.Backend``) by ``flash_attn_varlen_func``.

    The package aligns causal masks to the last key since its version 2.1, and counts its window in keys to
    the left of the query, the query itself left out.
    """
    causal = causal or window is not None
    check_packing(q_THD, k_SGD, q_lengths, k_lengths, causal)
    if q_THD.dtype not in (torch.float16, torch.bfloat16):
        raise UnsupportedError(
            f'Attention "flash_attention_2" computes in float16 or bfloat16, not {q_THD.dtype}; '
            'load the model with dtype=torch.bfloat16 or choose "sdpa".'
        )
    if not any(q_lengths):
        return torch.empty_like(q_THD)
    return kernel(
        q_THD,
        k_SGD,
        v_SGD,
        cu_seqlens_q=_starts(tuple(q_lengths), q_THD.device),
        cu_seqlens_k=_starts(tuple(k_lengths), k_SGD.device),
        max_seqlen_q=max(q_lengths),
        max_seqlen_k=max(k_lengths),
        dropout_p=dropout,
        softmax_scale=scale,
        causal=causal,
        window_size=(-1, -1) if window is None else (window - 1, 0),
    )


@lru_cache(maxsize=16)
def _starts(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each sequence begins, and the end: int32, as the kernel wants. Every layer asks for the same."""
    with torch.inference_mode(False):
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
