"""The product of rows with a plain weight, on whatever computes it fastest here.

A weight stays as its checkpoint stores it, (N, K) row by row, so it can be a view of a mapped file, be
shared with the embedding and be trained: nothing is packed and kept a second time. What is bound by reading
the weight (few rows: decoding) goes to qvl's own kernels, which read it once at the speed of memory where
torch's operators read it slower or several times. What is bound by multiplying (prompts, the vision tower)
goes to the fastest of three ways, measured once in each process on a product that takes a few milliseconds;
`benchmarks/kernels.py` has the figures.

Legend: M rows, N output features, K input features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvl.ops.kernels import Kernels, kernels
from qvl.ops.kernels.plain import plain
from qvl.ops.trained_linear import least_seconds, onednn, trained_linear

Way = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]

FEW_ROWS = 16  # up to here qvl's kernels are ahead of every other way on the plain weight
WORTH_MEASURING = 2**27  # multiplications; smaller products are over before a measurement would be
_SAMPLE = (384, 1024, 2048)  # M, N, K of the product that is measured
_CLEAR = 0.95  # of the time of the first choice: less is no reason to leave it


def linear(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x W^T + b for x of shape (..., K), in the dtype of all three; ``F.linear`` but faster.

    What lies elsewhere than on the CPU, or is no plain float32 or bfloat16, goes to torch; what needs a
    gradient goes to `qvl.ops.trained_linear`.
    """
    offered = kernels()
    if offered is None or not _fits(x_MK, weight_NK, bias_N):
        return trained_linear(x_MK, weight_NK, bias_N)
    rows_MK = x_MK if x_MK.ndim == 2 else x_MK.reshape(-1, x_MK.shape[-1])
    if rows_MK.stride(1) != 1:
        rows_MK = rows_MK.contiguous()
    M = len(rows_MK)
    way: Way = offered.product
    if M > FEW_ROWS and M * weight_NK.numel() >= WORTH_MEASURING:
        way = fastest(x_MK.dtype, offered)
    y_MN = way(rows_MK, weight_NK, bias_N)
    return y_MN if x_MK.ndim == 2 else y_MN.view(*x_MK.shape[:-1], -1)


class Linear(nn.Linear):
    """``nn.Linear`` whose product is `linear`: the same parameters under the same names."""

    def forward(self, x_MK: Tensor) -> Tensor:
        return linear(x_MK, self.weight, self.bias)


def _fits(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> bool:
    tensors = (x_MK, weight_NK) if bias_N is None else (x_MK, weight_NK, bias_N)
    same = all(t.dtype == x_MK.dtype for t in tensors)
    return same and weight_NK.is_contiguous() and plain(*tensors)


def ways(dtype: torch.dtype, offered: Kernels) -> dict[str, Way]:
    """The ways of a product of many rows, qvl's first: name -> function."""
    found: dict[str, Way] = {"qvl": offered.product, "torch": F.linear}
    if dtype == torch.float32 and torch.backends.mkldnn.is_available():
        found["onednn"] = onednn
    return found


@cache
def fastest(dtype: torch.dtype, offered: Kernels) -> Way:
    """The way for products of many rows, measured now: the first unless another is clearly faster."""
    with torch.inference_mode():
        M, N, K = _SAMPLE
        x_MK, weight_NK = torch.ones(M, K, dtype=dtype), torch.ones(N, K, dtype=dtype)
        found = ways(dtype, offered)
        times = {name: least_seconds(partial(way, x_MK, weight_NK, None)) for name, way in found.items()}
    first, best = next(iter(times)), min(times, key=lambda name: times[name])
    return found[best if times[best] < _CLEAR * times[first] else first]
