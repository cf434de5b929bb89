"""Weights packed as AWQ and GPTQ checkpoints have them, written from the description of those formats.

q_NK: integers. scales_NG, zeros_NG: one for each group of inputs. Answers: stored tensors by their leaf name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qvl.ops.quantized import PackedWeight, unpack


def words(values: Tensor, bits: int) -> Tensor:
    """int32 words of the values along the last dimension, the first in the lowest bits."""
    per_word = 32 // bits
    grouped = values.long().unflatten(-1, (-1, per_word))
    total = sum(grouped[..., i] << (bits * i) for i in range(per_word))
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)


def awq_tensors(q_NK: Tensor, scales_NG: Tensor, zeros_NG: Tensor) -> dict[str, Tensor]:
    def interleaved(values: Tensor) -> Tensor:
        eights = values.unflatten(-1, (-1, 8))
        return words(torch.cat([eights[..., ::2], eights[..., 1::2]], dim=-1).flatten(-2), 4)

    return {
        "qweight": interleaved(q_NK.T),
        "qzeros": interleaved(zeros_NG.T),
        "scales": scales_NG.T.half().contiguous(),
    }


def gptq_tensors(
    q_NK: Tensor, scales_NG: Tensor, zeros_NG: Tensor, group_of_K: Tensor, *, bits: int, version: int
) -> dict[str, Tensor]:
    qzeros = words(zeros_NG.T, bits)
    if version == 1:
        qzeros = qzeros - {4: 0x11111111, 8: 0x01010101}[bits]
    return {
        "qweight": words(q_NK, bits).T.contiguous(),
        "qzeros": qzeros.contiguous(),
        "scales": scales_NG.T.half().contiguous(),
        "g_idx": group_of_K.to(torch.int32),
    }


def as_awq(packed: PackedWeight) -> dict[str, Tensor]:
    q, scales, zeros = unpack(packed)
    assert zeros is not None
    return awq_tensors(q, scales, zeros)


def as_gptq(packed: PackedWeight, *, version: int = 1) -> dict[str, Tensor]:
    q, scales, zeros = unpack(packed)
    if zeros is None:
        q, zeros = q + 128, torch.full(scales.shape, 128)
    group_of_K = torch.arange(q.shape[1]) // packed.group
    return gptq_tensors(q, scales, zeros, group_of_K, bits=packed.bits, version=version)
