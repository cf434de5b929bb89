"""Rounding a weight so that its outputs change least: GPTQ (arXiv 2210.17323).

Inputs are rounded one after the other; what each leaves over is put onto those that follow, as far as they
are alike in the inputs that the layer really gets. How alike, the matrix X^T X of those inputs says.

Legend: N outputs, K inputs, G groups along K.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor
from torch.nn import functional as F

from qvl.errors import NonFiniteError
from qvl.ops.quantized import PackedWeight, int4_integers, int8_scales, integers_of, joined, pack
from qvl.weights.quantization.linear import Scheme

BLOCK = 128  # inputs whose remainders are carried on together: a multiple of every group
PIECE = 8192  # outputs at a time: they do not depend on each other
DAMPING = (0.01, 0.1, 1.0)  # of the mean diagonal: more where X^T X is too nearly singular


def compensated(
    weight_NK: Tensor, carry_KK: Tensor, scheme: Scheme, shrink: tuple[float, ...]
) -> PackedWeight:
    """``weight_NK`` in ``scheme``, rounded with compensation. carry_KK: see `carried`. shrink: see
    ``quantize_int4``."""
    more, pieces = len(carry_KK) - weight_NK.shape[1], []
    for piece_NK in weight_NK.split(PIECE):
        w_KN = F.pad(piece_NK.float(), (0, more)).T.contiguous()
        pieces.append(_rounded(w_KN, carry_KK, scheme, weight_NK.shape[1], shrink))
    return joined(pieces)


def carried(moments_KK: Tensor) -> Tensor:
    """How the remainder of each input spreads over those after it, whole blocks of inputs.

    moments_KK: X^T X in float32 of inputs X (T, K) that a layer gets. The answer is the upper Cholesky factor
    of its inverse. An input that never was anything but zero spreads nothing. Raises NonFiniteError if the
    moments are not finite.
    """
    if not bool(torch.isfinite(moments_KK).all()):
        raise NonFiniteError(
            "the inputs of a layer are not finite in calibration; load the model in bfloat16"
        )
    mean = float(moments_KK.diagonal().mean()) or 1.0
    more = -len(moments_KK) % BLOCK
    moments_KK = F.pad(moments_KK, (0, more, 0, more))
    silent_K = (moments_KK.diagonal() == 0).float() * mean
    for damping in DAMPING:
        damped_KK = moments_KK + torch.diag(silent_K + damping * mean)
        with suppress(torch.linalg.LinAlgError):
            inverse_KK = torch.cholesky_inverse(torch.linalg.cholesky(damped_KK))
            return torch.linalg.cholesky(inverse_KK, upper=True)
    raise NonFiniteError("the inputs of a layer in calibration are too large for float32")


def _rounded(
    w_KN: Tensor, carry_KK: Tensor, scheme: Scheme, inputs: int, shrink: tuple[float, ...]
) -> PackedWeight:
    """Rounds ``w_KN``, which is used up: it ends as the remainders left it."""
    q_KN = torch.empty_like(w_KN, dtype=torch.int16)
    scales, zeros = [], []
    for start in range(0, len(w_KN), BLOCK):
        block_KN, left_KN = w_KN[start : start + BLOCK], torch.empty_like(w_KN[:BLOCK])
        for i in range(BLOCK):
            if i % scheme.group == 0:
                scale_N, zero_N = _grid(block_KN[i : i + scheme.group].T, scheme, shrink)
                scales.append(scale_N)
                zeros.append(zero_N)
            near = integers_of(block_KN[i, :, None], scale_N, zero_N)[:, 0]
            offset = near if zero_N is None else near - zero_N.float()
            row_K = carry_KK[start + i, start + i : start + BLOCK]
            left_KN[i] = (block_KN[i] - offset * scale_N.float()) / row_K[0]
            q_KN[start + i] = near
            block_KN[i + 1 :].addr_(row_K[1:], left_KN[i], alpha=-1)
        after = slice(start + BLOCK, None)
        w_KN[after].addmm_(carry_KK[start : start + BLOCK, after].T, left_KN, alpha=-1)
    G = -(-inputs // scheme.group)
    scales_NG = torch.stack(scales[:G], dim=1)
    zeros_NG = None if zeros[0] is None else torch.stack([zero for zero in zeros[:G] if zero is not None], 1)
    return pack(q_KN[:inputs].T, scales_NG, zeros_NG, group=scheme.group)


def _grid(w_NK: Tensor, scheme: Scheme, shrink: tuple[float, ...]) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of one group, for each output."""
    w_NK = w_NK.contiguous()
    if scheme.bits == 8:
        return int8_scales(w_NK), None
    _, scale_N, zero_N = int4_integers(w_NK, shrink)
    return scale_N, zero_N
