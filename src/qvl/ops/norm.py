"""Root mean square normalisation, on whatever computes it fastest here.

Legend: T rows, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qvl.ops.kernels import elementwise, kernels
from qvl.ops.kernels.plain import plain


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """weight x / sqrt(mean(x^2) + eps) along the last axis of (..., D), arXiv 1910.07467: float32 inside.

    What is normalised is rounded to the dtype of x before the weight comes, as in transformers.
    """
    offered = kernels()
    if offered is not None and x_TD.dtype == weight_D.dtype and plain(x_TD, weight_D):
        rows_TD = x_TD if x_TD.ndim == 2 else x_TD.reshape(-1, x_TD.shape[-1])
        rows_TD = rows_TD if rows_TD.stride(1) == 1 else rows_TD.contiguous()
        return elementwise.rms_norm(offered, rows_TD, weight_D.contiguous(), eps).view(x_TD.shape)
    wide_TD = x_TD.float()
    scale_T1 = torch.rsqrt(wide_TD.pow(2).mean(-1, keepdim=True) + eps)
    return weight_D * (wide_TD * scale_T1).to(x_TD.dtype)
