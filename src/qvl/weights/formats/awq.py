"""Checkpoints quantized by AWQ (arXiv 2306.00978), as AutoAWQ writes them: 4 bits, the "gemm" layout.

Of a layer with K inputs and N outputs: qweight int32 (K, N / 8), qzeros int32 (K / group, N / 8), scales
float16 (K / group, N); weight = scale * (q - zero). Each word holds eight outputs that follow each other,
from the lowest four bits on in the order 0 2 4 6 1 3 5 7.
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

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word outputs 0..7 are


@dataclass(frozen=True)
class AwqConfig:
    """The settings of such a checkpoint. ``modules_to_not_convert``: its layers with full-width weights."""

    quant_method: ClassVar[str] = "awq"
    modules_to_not_convert: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AwqConfig:
        """Raises UnsupportedError for other than 4 bits with zero points in the gemm layout."""
        bits = values.get("bits", values.get("w_bit", 4))
        version = str(values.get("version", "gemm")).lower()
        if bits != 4 or version != "gemm" or not values.get("zero_point", True):
            raise UnsupportedError(
                f"AWQ weights with {bits} bits, version {version!r} and zero_point "
                f"{values.get('zero_point', True)} are not read; 4 bits, 'gemm' and zero points are"
            )
        return cls(tuple(values.get("modules_to_not_convert") or ()))

    def require(self) -> None:
        """Nothing has to be installed."""

    def open(self, checkpoint: Checkpoint) -> RepackedCheckpoint:
        return RepackedCheckpoint(
            checkpoint, lambda layer: _found(checkpoint, layer), ("qweight", "qzeros", "scales")
        )


def _found(checkpoint: Checkpoint, layer: str) -> Found:
    missing = [leaf for leaf in ("qzeros", "scales") if f"{layer}.{leaf}" not in checkpoint.files]
    if missing:
        raise CheckpointCorruptError(f"{checkpoint.folder} has no {', '.join(missing)} of {layer}")
    K, words = checkpoint.shape(f"{layer}.qweight")
    scales_GN = checkpoint.read(f"{layer}.scales")
    G, N = scales_GN.shape
    if words * 8 != N or K % G:
        raise CheckpointCorruptError(
            f"{layer} in {checkpoint.folder} has a qweight of ({K}, {words}) words but scales of ({G}, {N})"
        )
    return Found(
        bits=4,
        shape=(N, K),
        scales_GN=scales_GN,
        zeros_GN=unpacked(checkpoint.read(f"{layer}.qzeros")),
        integers=lambda: unpacked(checkpoint.read(f"{layer}.qweight", passing=True)),
        group_of_K=torch.arange(K) // (K // G),
        order_K=None,
        regular=True,
    )


def unpacked(words: Tensor) -> Tensor:
    """(rows, N) of (rows, N / 8) words."""
    return nibbles(words, 4)[..., list(_PLACES)].flatten(-2)
