"""Checkpoints quantized by GPTQ (arXiv 2210.17323), as AutoGPTQ and GPTQModel write them: 4 and 8 bits.

Of a layer with K inputs and N outputs, at 32 / bits values in a word: qweight int32 (K words, N), the lowest
bits the first input; qzeros int32 (G, N words); scales (G, N); g_idx int32 (K): the group of each input.
weight = scale * (q - zero). The first format stores zero - 1 (whole words minus 0x11111111 or 0x01010101),
"gptq_v2" the zero itself. With act-order (desc_act) the groups' inputs lie scattered: they are gathered here,
and the layer gathers its x the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qvl.errors import CheckpointCorruptError, UnsupportedError
from qvl.weights.files import Checkpoint
from qvl.weights.formats.repacked import Found, RepackedCheckpoint, nibbles

_ONES = {4: 0x11111111, 8: 0x01010101}
_FORMATS = ("gptq", "gptq_v2")


@dataclass(frozen=True)
class GptqConfig:
    """The settings of such a checkpoint; groups and act-order are seen in its tensors."""

    quant_method: ClassVar[str] = "gptq"
    bits: int
    zeros_minus_one: bool = True
    modules_to_not_convert: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GptqConfig:
        """Raises UnsupportedError for other bits or another format than these."""
        bits, written = values.get("bits"), str(values.get("checkpoint_format", values.get("format", "gptq")))
        if bits not in _ONES or written not in _FORMATS:
            raise UnsupportedError(
                f"GPTQ weights with {bits} bits in the format {written!r} are not read; 4 and 8 bits in "
                f"{' and '.join(_FORMATS)} are"
            )
        return cls(bits, written == "gptq", tuple(values.get("modules_to_not_convert") or ()))

    def require(self) -> None:
        """Nothing has to be installed."""

    def open(self, checkpoint: Checkpoint) -> RepackedCheckpoint:
        leaves = ("qweight", "qzeros", "scales", "g_idx")
        return RepackedCheckpoint(checkpoint, lambda layer: self._found(checkpoint, layer), leaves)

    def _found(self, checkpoint: Checkpoint, layer: str) -> Found:
        missing = [leaf for leaf in ("qzeros", "scales") if f"{layer}.{leaf}" not in checkpoint.files]
        if missing:
            raise CheckpointCorruptError(f"{checkpoint.folder} has no {', '.join(missing)} of {layer}")
        words, N = checkpoint.shape(f"{layer}.qweight")
        scales_GN = checkpoint.read(f"{layer}.scales")
        G = len(scales_GN)
        group_of_K = self._groups(checkpoint, layer, G, words * 32 // self.bits)
        bits = words * 32 // len(group_of_K)  # a module may have other bits than the rest
        if bits not in _ONES:
            raise UnsupportedError(f"{layer} in {checkpoint.folder} has {bits} bits; 4 and 8 are read")
        zeros_GN = nibbles(self._zeros(checkpoint.read(f"{layer}.qzeros"), bits), bits).flatten(-2)
        if tuple(scales_GN.shape) != tuple(zeros_GN.shape) or scales_GN.shape[1] != N:
            raise CheckpointCorruptError(f"qweight, qzeros and scales of {layer} do not fit each other")
        return Found(
            bits=bits,
            shape=(N, len(group_of_K)),
            scales_GN=scales_GN,
            zeros_GN=zeros_GN,
            integers=lambda: _rows(checkpoint.read(f"{layer}.qweight", passing=True), bits),
            group_of_K=group_of_K,
            order_K=_order(group_of_K),
            regular=bool((group_of_K.bincount(minlength=G) == len(group_of_K) // G).all()),
        )

    def _groups(self, checkpoint: Checkpoint, layer: str, G: int, K: int) -> Tensor:
        if f"{layer}.g_idx" not in checkpoint.files:
            return torch.arange(K) // -(-K // G)
        group_of_K = checkpoint.read(f"{layer}.g_idx")
        if not len(group_of_K) or not 0 <= int(group_of_K.min()) <= int(group_of_K.max()) < G:
            raise CheckpointCorruptError(f"g_idx of {layer} names groups that its {G} scales do not have")
        return group_of_K

    def _zeros(self, words: Tensor, bits: int) -> Tensor:
        """Added to whole words, as it was subtracted: what a zero of 0 borrowed from its neighbour comes
        back."""
        return words + _ONES[bits] if self.zeros_minus_one else words


def _rows(words: Tensor, bits: int) -> Tensor:
    """(K, N) of (K words, N)."""
    return nibbles(words, bits).transpose(-2, -1).flatten(0, 1)


def _order(group_of_K: Tensor) -> Tensor | None:
    """Inputs sorted by group, in their own order inside each; None if they are sorted."""
    if bool((group_of_K.diff() >= 0).all()):
        return None
    return group_of_K.argsort(stable=True)
