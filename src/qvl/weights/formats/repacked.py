"""A checkpoint whose quantized layers are repacked as they are read; to a loader it is like a ``Checkpoint``.

Knows what becomes of integers, scales and zero points once a format has found them; each format knows where.

Legend: N outputs, K inputs, G groups along K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qvl.errors import CheckpointCorruptError
from qvl.ops.quantized import INT4_GROUPS, pack, packed_shapes
from qvl.weights.files import Checkpoint
from qvl.weights.quantization.linear import Scheme

_OFFSET_8 = 128  # the zero point of symmetric 8 bits: the only one that the packed form has


@dataclass(frozen=True, eq=False)
class Found:
    """What a format found of one layer, small tensors only. scales_GN: floating-point. zeros_GN: integers.

    order_K: the input that comes at each place so that groups lie together; None: they do. regular: all
    groups have the same number of inputs. integers: reads q, (K, N), inputs in the order in which they are
    stored.
    """

    bits: int
    shape: tuple[int, int]  # (N, K)
    scales_GN: Tensor
    zeros_GN: Tensor
    integers: Callable[[], Tensor]
    group_of_K: Tensor
    order_K: Tensor | None
    regular: bool

    def scheme(self) -> Scheme | None:
        """The packed form that holds this layer without rounding; None: there is none."""
        G, K = len(self.scales_GN), self.shape[1]
        if (
            not self.regular
            or K % G
            or not torch.equal(self.scales_GN.half().float(), self.scales_GN.float())
        ):
            return None
        if self.bits == 8 and not bool((self.zeros_GN == _OFFSET_8).all()):
            return None
        fitting = [g for g in ((32,) if self.bits == 8 else INT4_GROUPS) if (K // G) % g == 0]
        return Scheme(self.bits, max(fitting), self.order_K is not None) if fitting else None

    def tensors(self) -> dict[str, Tensor]:
        """The buffers of a ``QuantizedLinear``; or the weight (N, K), float32, where no scheme fits."""
        scheme = self.scheme()
        if scheme is None:
            groups = self.group_of_K.long()
            weight_KN = (self.integers() - self.zeros_GN[groups]).float() * self.scales_GN.float()[groups]
            return {"weight": weight_KN.T.contiguous()}
        q_NK = self.integers().T
        if self.order_K is not None:
            q_NK = q_NK[:, self.order_K]
        repeats = self.shape[1] // scheme.group // len(self.scales_GN)
        scales_NG = self.scales_GN.T.half().repeat_interleave(repeats, 1).contiguous()
        if self.bits == 8:
            packed = pack(q_NK - _OFFSET_8, scales_NG, group=scheme.group)
        else:
            zeros_NG = self.zeros_GN.T.repeat_interleave(repeats, 1).contiguous()
            packed = pack(q_NK, scales_NG, zeros_NG, group=scheme.group)
        found = {"qweight": packed.qweight, "scales": packed.scales}
        if packed.zeros is not None:
            found["zeros"] = packed.zeros
        if self.order_K is not None:
            found["order"] = self.order_K.to(torch.int32)
        return found

    def forms(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name -> (shape, dtype) of what `tensors` gives, without reading the integers."""
        scheme = self.scheme()
        if scheme is None:
            return {"weight": (self.shape, torch.float32)}
        forms = packed_shapes(scheme.bits, scheme.group, self.shape)
        return {**forms, "order": ((self.shape[1],), torch.int32)} if scheme.ordered else forms


class RepackedCheckpoint:
    """``checkpoint`` with the tensors ``leaves`` of every quantized layer replaced by their packed form.

    ``find``: a layer's stored name -> what is there. The layers are those that have a qweight.
    """

    def __init__(self, checkpoint: Checkpoint, find: Callable[[str], Found], leaves: Iterable[str]) -> None:
        self.checkpoint, self.folder = checkpoint, checkpoint.folder
        self._layers = {
            name.removesuffix(".qweight"): find(name.removesuffix(".qweight"))
            for name in checkpoint.files
            if name.endswith(".qweight")
        }
        if not self._layers:
            raise CheckpointCorruptError(
                f"{self.folder} says that it is quantized, but none of its layers has a qweight"
            )
        gone = {f"{layer}.{leaf}" for layer in self._layers for leaf in leaves}
        self._forms = {
            f"{layer}.{leaf}": form
            for layer, found in self._layers.items()
            for leaf, form in found.forms().items()
        }
        kept = {name: path for name, path in checkpoint.files.items() if name not in gone}
        self.files: Mapping[str, Any] = {**kept, **dict.fromkeys(self._forms)}
        self._latest: tuple[str, dict[str, Tensor]] = ("", {})

    def shape(self, name: str) -> tuple[int, ...]:
        return self._forms[name][0] if name in self._forms else self.checkpoint.shape(name)

    def float_dtype(self) -> torch.dtype | None:
        return self.checkpoint.float_dtype()

    def is_floating_point(self, name: str) -> bool:
        if name in self._forms:
            return self._forms[name][1].is_floating_point
        return self.checkpoint.is_floating_point(name)

    def read(
        self,
        name: str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        passing: bool = False,
    ) -> Tensor:
        """See ``Checkpoint.read``."""
        if name not in self._forms:
            return self.checkpoint.read(name, dtype=dtype, device=device, passing=passing)
        layer, _, leaf = name.rpartition(".")
        if self._latest[0] != layer:  # a layer's tensors are read one after the other
            self._latest = (layer, self._layers[layer].tensors())
        tensor = self._latest[1][leaf]
        return tensor.to(device=device, dtype=dtype if leaf == "weight" else None)


def nibbles(packed: Tensor, bits: int) -> Tensor:
    """The values of ``bits`` bits in int32 words, lowest first: int16, one more dimension at the end."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((packed[..., None] >> shifts) & (2**bits - 1)).to(torch.int16)
