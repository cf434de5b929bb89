"""Which tensors an address says all about, so that a kernel may take them instead of torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qvl.ops.kernels import DTYPES

_PLAIN = frozenset((Tensor, nn.Parameter))


def plain(*tensors: Tensor) -> bool:
    """Whether all of them hold numbers on the CPU, in a dtype of the kernels, and nothing else wants to know.

    Not so for gradients to come, subclasses of Tensor, no values at all, autocast, and code being traced.
    """
    graph = torch.is_grad_enabled()
    for x in tensors:
        if type(x) not in _PLAIN or not x.is_cpu or x.dtype not in DTYPES or not x.numel():
            return False
        if graph and x.requires_grad:
            return False
    return not (torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))
