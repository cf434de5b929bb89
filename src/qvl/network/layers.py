"""Layers that the vision tower and the text decoder share. They know no config class and no sequence.

Legend: T rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from qvl.errors import UnknownNameError
from qvl.ops.gate import silu_product
from qvl.ops.linear import Linear
from qvl.ops.norm import rms_norm

Activation = Callable[[Tensor], Tensor]

# Between the products of a feed-forward layer, at once and where nothing is trained: 24 MB of float32. It is
# several times as wide as its input. Up to 32 MB the allocator hands out memory that was used before; fresh
# memory costs a page fault every 4 kB.
MLP_VALUES = 6 * 2**20


class RMSNorm(nn.Module):
    """Root mean square normalisation (arXiv 1910.07467): float32 inside, the dtype of the input outside."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_TD: Tensor) -> Tensor:
        return rms_norm(x_TD, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class SwiGLU(nn.Module):
    """Gated feed-forward layer (arXiv 2002.05202): down(act(gate(x)) * up(x))."""

    def __init__(self, width: int, inner: int, activation_name: str | Activation, *, bias: bool) -> None:
        super().__init__()
        self.gate_proj = Linear(width, inner, bias=bias)
        self.up_proj = Linear(width, inner, bias=bias)
        self.down_proj = Linear(inner, width, bias=bias)
        self.act_fn = activation(activation_name)
        self.inner = inner

    def forward(self, x_TD: Tensor) -> Tensor:
        parts = -(-x_TD.shape[0] * self.inner // MLP_VALUES)
        if parts < 2 or not x_TD.is_cpu or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._rows(x_TD)
        return joined((self._rows(part_TD) for part_TD in x_TD.chunk(parts)), len(x_TD))

    def _rows(self, x_TD: Tensor) -> Tensor:
        gate, up = self.gate_proj(x_TD), self.up_proj(x_TD)
        return self.down_proj(silu_product(gate, up) if self.act_fn is F.silu else self.act_fn(gate) * up)


def activation(name: str | Activation) -> Activation:
    """The function that a config's ``hidden_act`` names (a callable is taken as it is).

    Raises UnknownNameError, listing the names, for one that is not offered.
    """
    if callable(name):
        return name
    offered = _activations()
    if name not in offered:
        raise UnknownNameError(f"hidden_act {name!r} is not offered; choose one of {', '.join(offered)}.")
    return offered[name]


def _activations() -> dict[str, Activation]:
    return {
        "silu": F.silu,
        "swish": F.silu,
        "gelu": F.gelu,
        "gelu_new": _gelu_tanh,
        "gelu_fast": _gelu_tanh,
        "gelu_pytorch_tanh": _gelu_tanh,
        "quick_gelu": _quick_gelu,
        "relu": F.relu,
        "relu2": _squared_relu,
        "relu6": F.relu6,
        "leaky_relu": F.leaky_relu,
        "mish": F.mish,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "linear": _identity,
    }


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _identity(x: Tensor) -> Tensor:
    return x


def joined(parts: Iterable[Tensor], rows: int) -> Tensor:
    """Parts that have ``rows`` rows together, end to end, as they come: none is kept beside the whole.

    Not for what needs a gradient.
    """
    whole, start = torch.empty(0), 0
    for part in parts:
        if not start:
            whole = part.new_empty(rows, *part.shape[1:])
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def run_block(block: nn.Module, *arguments: Any, recompute: bool) -> Tensor:
    """``block(*arguments)``; ``recompute``: keep no activations, compute them again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *arguments, use_reentrant=False)
    return block(*arguments)


@torch.no_grad()
def initialise(module: nn.Module, std: float) -> None:
    """Weights for training from nothing: normal(0, std) for matrices, zeros for biases, ones for norms.

    The row of an embedding's ``padding_idx`` is zero. Parameters on the meta device are left alone: there is
    nothing to fill, which `qvl.weights.skeleton` relies on.
    """
    for layer in module.modules():
        if getattr(getattr(layer, "weight", None), "is_meta", False):
            continue
        if isinstance(layer, (nn.Linear, nn.Conv3d)):
            layer.weight.normal_(0.0, std)
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, nn.Embedding):
            layer.weight.normal_(0.0, std)
            if layer.padding_idx is not None:
                layer.weight[layer.padding_idx].zero_()
        elif isinstance(layer, RMSNorm):
            layer.weight.fill_(1.0)
