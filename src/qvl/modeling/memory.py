"""Parameters as memory: tables of token vectors that gain or lose rows, and bytes really held.

Legend: V rows, D width.
"""

from __future__ import annotations

import torch
from torch import nn


def resized_embedding(table_VD: torch.Tensor, rows: int, std: float | None) -> nn.Parameter:
    """The table with ``rows`` rows: the first ones kept, new ones at the mean of the old or, with ``std``,
    drawn from a normal distribution around zero."""
    kept = min(rows, table_VD.shape[0])
    with torch.no_grad():
        fresh = table_VD.new_empty(rows, table_VD.shape[1])
        fresh[:kept] = table_VD[:kept]
        if std is None:
            fresh[kept:] = table_VD.float().mean(0).to(table_VD.dtype)
        else:
            fresh[kept:].normal_(0.0, std)
    return nn.Parameter(fresh, requires_grad=table_VD.requires_grad)


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor; of a quantized one, of the tensors that it is made of."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return tensor.numel() * tensor.element_size()
    return sum(stored_bytes(getattr(tensor, name)) for name in flatten()[0])
