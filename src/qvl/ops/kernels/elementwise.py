"""The kernels of what stands between the products: norm, rotary turn and gate, each in one pass over memory.

Which tensors may come this way is decided by `qvl.ops.norm`, `qvl.ops.rope` and `qvl.ops.gate`.

Legend: T rows, D width, H heads, E head dim, F = E / 2, X any axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qvl.ops.kernels import DTYPES, Kernels


def rms_norm(offered: Kernels, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """(T, D), contiguous. Both of one dtype; the last axis of x and the weight contiguous."""
    y_TD = torch.empty(x_TD.shape, dtype=x_TD.dtype)
    offered.rms_norm(
        DTYPES[x_TD.dtype],
        x_TD.data_ptr(),
        weight_D.data_ptr(),
        y_TD.data_ptr(),
        *x_TD.shape,
        x_TD.stride(0),
        eps,
        torch.get_num_threads(),
    )
    return y_TD


def rotary(offered: Kernels, x_THE: Tensor, cos_TF: Tensor, sin_TF: Tensor) -> Tensor:
    """(T, H, E), contiguous. x along E and the angles contiguous; these in the dtype of x or float32."""
    T, H, E = x_THE.shape
    y_THE = torch.empty(T, H, E, dtype=x_THE.dtype)
    offered.rotary(
        DTYPES[x_THE.dtype],
        DTYPES[cos_TF.dtype],
        x_THE.data_ptr(),
        cos_TF.data_ptr(),
        sin_TF.data_ptr(),
        y_THE.data_ptr(),
        T,
        H,
        E // 2,
        x_THE.stride(0),
        x_THE.stride(1),
        torch.get_num_threads(),
    )
    return y_THE


def silu_product(offered: Kernels, gate_X: Tensor, up_X: Tensor) -> Tensor:
    """silu(gate) up: both contiguous, of one dtype and shape."""
    y_X = torch.empty(gate_X.shape, dtype=gate_X.dtype)
    offered.silu_product(
        DTYPES[gate_X.dtype],
        gate_X.data_ptr(),
        up_X.data_ptr(),
        y_X.data_ptr(),
        gate_X.numel(),
        torch.get_num_threads(),
    )
    return y_X
