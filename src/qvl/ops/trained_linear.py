"""The product of rows with a weight that is trained: forward and backward at the speed of the processor.

`F.linear` takes MKL for float32, which leaves half of some processors' vector units idle, and a training step
is three such products: the rows by the weight, and the gradients of both. oneDNN multiplies all three as they
lie, transposed or not. Which of the two is faster here is measured once in each process.

Legend: M rows, N output features, K input features.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_PLAIN = frozenset((Tensor, nn.Parameter))  # a subclass has its own ways
FEWEST_ROWS = 64  # with fewer, calling costs as much as multiplying
_SAMPLE = (2048, 256, 256)  # M, N, K of the product that is measured: a few milliseconds
_CLEAR = 0.95  # of the time of torch's own: less is no reason to leave it


def trained_linear(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x W^T + b for x of shape (..., K), differentiable any number of times; ``F.linear`` but faster."""
    if not _fits(x_MK, weight_NK) or not onednn_is_faster():
        return F.linear(x_MK, weight_NK, bias_N)
    y_MN = _Product.apply(x_MK.reshape(-1, x_MK.shape[-1]), weight_NK)
    if bias_N is not None:
        y_MN = y_MN + bias_N
    return y_MN.view(*x_MK.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """x W^T. Its gradients are two such products, so they have gradients too."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_NK: Tensor) -> Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        return onednn(x_MK, weight_NK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (g_MN,) = grads
        x_MK, weight_NK = ctx.saved_tensors
        return (
            _Product.apply(g_MN, weight_NK.t()) if ctx.needs_input_grad[0] else None,
            _Product.apply(g_MN.t(), x_MK.t()) if ctx.needs_input_grad[1] else None,
        )


def onednn(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """oneDNN on the plain tensors, by the operator that torch's compiler uses. It keeps no gradient."""
    return torch.ops.mkldnn._linear_pointwise(x_MK, weight_NK, bias_N, "none", [], "")


def _fits(x_MK: Tensor, weight_NK: Tensor) -> bool:
    """Whether oneDNN may take it: float32 on the CPU, nothing traced, many rows, a gradient to come."""
    return (
        torch.is_grad_enabled()
        and x_MK.is_cpu
        and {type(x_MK), type(weight_NK)} <= _PLAIN
        and x_MK.dtype == weight_NK.dtype == torch.float32
        and x_MK.numel() >= FEWEST_ROWS * x_MK.shape[-1]
        and x_MK.layout == weight_NK.layout == torch.strided
        and not (torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))
    )


@cache
def onednn_is_faster() -> bool:
    """Measured now, forward products only: those backward differ by their strides alone."""
    if not torch.backends.mkldnn.is_available():
        return False
    with torch.inference_mode():
        M, N, K = _SAMPLE
        x_MK, weight_NK = torch.ones(M, K), torch.ones(N, K)
        torchs = least_seconds(partial(F.linear, x_MK, weight_NK))
        onednns = least_seconds(partial(onednn, x_MK, weight_NK))
    return onednns < _CLEAR * torchs


def least_seconds(call: Callable[[], object]) -> float:
    """The least of some: what it takes when nothing else is in the way."""
    call()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
