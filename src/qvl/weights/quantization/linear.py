"""A linear layer whose weight has 8 or 4 bits: it takes the place of an ``nn.Linear`` in a built network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qvl.errors import InputError, UnsupportedError
from qvl.ops.quantized import PackedWeight, dequantize, packed_shapes, quantized_linear


@dataclass(frozen=True)
class Scheme:
    """How a weight is held: bits, inputs that share a scale, and whether the inputs come in another order."""

    bits: int
    group: int
    ordered: bool = False

    def __str__(self) -> str:
        return f"int{self.bits}, groups of {self.group}"


class QuantizedLinear(nn.Module):
    """y = x @ weight.T + bias, the weight packed (see `qvl.ops.quantized`).

    Buffers: qweight, scales (always float16), with 4 bits zeros, and order (int32): where checkpoints sort
    inputs by their group, the input that comes at each place. ``bias``: a parameter or None. ``exact``:
    activations are taken as they are. The weight is not trained; what stands in front of the layer can be, in
    exact mode.
    """

    qweight: Tensor
    scales: Tensor
    zeros: Tensor | None
    order: Tensor | None

    def __init__(
        self,
        packed: PackedWeight,
        bias: nn.Parameter | None = None,
        *,
        exact: bool = False,
        order: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.bits, self.group, self.exact = packed.bits, packed.group, exact
        self.register_buffer("qweight", packed.qweight)
        self.register_buffer("scales", packed.scales)
        self.register_buffer("zeros", packed.zeros)
        self.register_buffer("order", order)
        self.register_parameter("bias", bias)
        self._packed = packed

    @classmethod
    def empty(cls, layer: nn.Linear, scheme: Scheme, *, exact: bool) -> QuantizedLinear:
        """One in the place of ``layer``, on the meta device, to be filled from a checkpoint."""
        shape = (layer.out_features, layer.in_features)
        forms = packed_shapes(scheme.bits, scheme.group, shape)
        tensors = {name: torch.empty(s, dtype=d, device="meta") for name, (s, d) in forms.items()}
        order = torch.empty(shape[1], dtype=torch.int32, device="meta") if scheme.ordered else None
        return cls(
            PackedWeight(scheme.bits, scheme.group, shape, **tensors), layer.bias, exact=exact, order=order
        )

    @property
    def scheme(self) -> Scheme:
        return Scheme(self.bits, self.group, self.order is not None)

    @property
    def packed(self) -> PackedWeight:
        """The weight. Made again only when a buffer has been replaced (loaded, moved)."""
        own, held = self._buffers, self._packed
        tensors = (own["qweight"], own["scales"], own["zeros"])
        if held.qweight is not tensors[0] or held.scales is not tensors[1] or held.zeros is not tensors[2]:
            qweight, scales, zeros = tensors
            if qweight is None or scales is None:
                raise InputError("a QuantizedLinear has no weight any more: its qweight or scales is None")
            self._packed = PackedWeight(
                self.bits, self.group, (self.out_features, self.in_features), qweight, scales, zeros
            )
        return self._packed

    def forward(self, x_TK: Tensor) -> Tensor:
        order = self._buffers["order"]
        if order is not None:
            x_TK = x_TK[..., order]
        # Rounded activations are what a processor's integer products want; elsewhere they only cost.
        exact = self.exact or x_TK.device.type != "cpu"
        return quantized_linear(x_TK, self.packed, self._parameters["bias"], exact=exact)

    def dequantize(self) -> Tensor:
        """The weight (out_features, in_features) in float32, inputs in their own order."""
        weight_NK = dequantize(self.packed)
        return weight_NK if self.order is None else weight_NK[:, self.order.argsort()]

    def requires_grad_(self, requires_grad: bool = True) -> QuantizedLinear:
        """UnsupportedError for True: a packed weight has no gradient."""
        if requires_grad:
            raise UnsupportedError(
                "weights in 8 or 4 bits are not trained; train adapters beside them, or load the model "
                "without quantization"
            )
        super().requires_grad_(False)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As nn.Module's, but the scales stay float16: another dtype would change the weight."""
        scales = self.scales
        super()._apply(fn, recurse)
        if self.scales.dtype != scales.dtype:
            self.scales = scales.to(self.scales.device)
        return self

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                "a QuantizedLinear has no weight to read or change; dequantize() gives it in float32"
            )
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        features = f"in_features={self.in_features}, out_features={self.out_features}"
        bias = self._parameters["bias"] is not None
        return f"{features}, bias={bias}, {self.scheme}{', exact' if self.exact else ''}"
