"""Weights in 8 and 4 bits: their packed form, and products with them.

The packed form is what the kernels read in one stream: panels of 16 outputs, groups of inputs that share a
scale, and inside a group runs of 4 inputs for each output, as the processors' dot products take them. What is
here in torch runs everywhere and is what every kernel is held against.

- 8 bits, symmetric, groups of 32: weight = scale * q with q in -127..127 (-128 where a checkpoint brings it).
  Element [p, g, s, o, j] of ``qweight`` is q + 128 of output 16 p + o and input 32 g + 4 s + j.
- 4 bits, asymmetric, groups of 32, 64 or 128: weight = scale * (q - zero) with q in 0..15. The byte
  [p, g, s, o, j] holds q of input ``group`` g + 8 s + j in its low half and of the input 4 further on in its
  high half.

What the panels hold beyond the weight is nothing to a product: outputs have scale 0; inputs have q = 128 (8
bits) or q = zero (4 bits).

Legend: T rows of x, N outputs, K inputs, P panels, G groups along K.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qvl.errors import ConfigError, InputError, NonFiniteError, UnsupportedError
from qvl.ops.kernels import kernels
from qvl.ops.kernels.plain import plain

PANEL = 16  # outputs that lie together
ACTIVATION_GROUP = 32  # inputs of x that share a scale
INT4_GROUPS = (32, 64, 128)
_PIECE = 16  # panels that are at full width at a time: as many as stay in a cache
_TINIEST = 2.0**-24  # the smallest positive float16
_LAST_FULL = 2.0**-14  # the smallest float16 with all its digits


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """One weight (N, K) in its packed form, laid out as the head of this file says.

    qweight: uint8 (P, G, 8, 16, 4) in 8 bits, (P, G, group / 8, 16, 4) in 4. scales: float16 (P, G, 16).
    zeros: uint8 (P, G, 16) in 4 bits, None in 8. Raises ConfigError for bits and groups that are not offered,
    InputError for tensors that do not fit the shape.
    """

    bits: int
    group: int
    shape: tuple[int, int]
    qweight: Tensor
    scales: Tensor
    zeros: Tensor | None = None

    def __post_init__(self) -> None:
        expected = packed_shapes(self.bits, self.group, self.shape)
        found = {"qweight": self.qweight, "scales": self.scales}
        if self.zeros is not None:
            found["zeros"] = self.zeros
        wrong = list(found.keys() ^ expected.keys())
        wrong += [name for name in found.keys() & expected.keys() if _form(found[name]) != expected[name]]
        if wrong:
            raise InputError(
                f"packed tensors do not fit a weight of shape {self.shape} in {self.bits} bits and groups of "
                f"{self.group}: {', '.join(sorted(wrong))}; expected {expected}"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        zeros = 0 if self.zeros is None else self.zeros.nbytes
        return self.qweight.nbytes + self.scales.nbytes + zeros


def packed_shapes(
    bits: int, group: int, shape: tuple[int, int]
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name -> (shape, dtype) of the tensors of a weight ``shape`` = (N, K). Raises ConfigError."""
    if (bits, group) != (8, 32) and not (bits == 4 and group in INT4_GROUPS):
        raise ConfigError(
            f"weights in {bits} bits and groups of {group} are not offered; "
            f"choose 8 bits and 32, or 4 bits and one of {', '.join(map(str, INT4_GROUPS))}"
        )
    panels, groups = -(-shape[0] // PANEL), -(-shape[1] // group)
    small = (panels, groups, PANEL)
    whole = (panels, groups, group * bits // 32, PANEL, 4)
    shapes = {"qweight": (whole, torch.uint8), "scales": (small, torch.float16)}
    return shapes if bits == 8 else shapes | {"zeros": (small, torch.uint8)}


def _form(tensor: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(tensor.shape), tensor.dtype


# Packing


def pack(q_NK: Tensor, scales_NG: Tensor, zeros_NG: Tensor | None = None, *, group: int) -> PackedWeight:
    """Integers and their scales in the packed form: nothing is rounded.

    q_NK: integers, -128..127 without ``zeros_NG`` (8 bits), 0..15 with it (4 bits). scales_NG: float16, G =
    K / ``group`` rounded up.
    """
    (N, K), bits = q_NK.shape, 8 if zeros_NG is None else 4
    shapes = packed_shapes(bits, group, (N, K))
    G = shapes["scales"][0][1]
    more_rows, more_columns = -N % PANEL, G * group - K
    scales = _panels(F.pad(scales_NG, (0, 0, 0, more_rows)))
    if zeros_NG is None:
        q = F.pad(q_NK.to(torch.int16) + 128, (0, more_columns, 0, more_rows), value=128).to(torch.uint8)
        qweight = q.view(-1, PANEL, G, group // 4, 4).permute(0, 2, 3, 1, 4).contiguous()
        return PackedWeight(bits, group, (N, K), qweight, scales)
    q = q_NK.to(torch.uint8)
    if more_columns:
        q = torch.cat([q, zeros_NG[:, -1:].to(torch.uint8).clamp(max=15).expand(-1, more_columns)], dim=1)
    halves = F.pad(q, (0, 0, 0, more_rows)).view(-1, PANEL, G, group // 8, 2, 4)
    qweight = (halves[..., 0, :] | halves[..., 1, :] << 4).permute(0, 2, 3, 1, 4).contiguous()
    zeros = _panels(F.pad(zeros_NG.to(torch.uint8), (0, 0, 0, more_rows)))
    return PackedWeight(bits, group, (N, K), qweight, scales, zeros)


def unpack(packed: PackedWeight) -> tuple[Tensor, Tensor, Tensor | None]:
    """What :func:`pack` was given: q_NK (int16), scales_NG (float16), zeros_NG (uint8) or None."""
    N, K = packed.shape
    zeros_NG = None if packed.zeros is None else _rows(packed.zeros)[:N]
    return _integers(packed.qweight, packed.bits)[:N, :K], _rows(packed.scales)[:N], zeros_NG


def _panels(small_NG: Tensor) -> Tensor:
    return small_NG.view(-1, PANEL, small_NG.shape[1]).transpose(1, 2).contiguous()


def _rows(small_PGO: Tensor) -> Tensor:
    return small_PGO.transpose(1, 2).flatten(0, 1)


def _integers(qweight: Tensor, bits: int) -> Tensor:
    """q of whole panels: int16, (16 P, G * group)."""
    panels = len(qweight)
    if bits == 8:
        return qweight.permute(0, 3, 1, 2, 4).reshape(panels * PANEL, -1).to(torch.int16) - 128
    halves = torch.stack([qweight & 15, qweight >> 4], dim=-2)
    return halves.permute(0, 3, 1, 2, 4, 5).reshape(panels * PANEL, -1).to(torch.int16)


# From weights to integers and back


def quantize_int8(weight_NK: Tensor) -> PackedWeight:
    """``weight_NK`` (floating-point) in 8 bits, rounded to nearest: scale = max|weight| / 127 of each group.

    Raises NonFiniteError for a weight that holds NaN, infinity or numbers that no float16 scale reaches.
    """
    return _in_pieces(weight_NK, 32, _int8_integers)


def quantize_int4(weight_NK: Tensor, group: int, *, shrink: tuple[float, ...] = (1.0,)) -> PackedWeight:
    """``weight_NK`` (floating-point) in 4 bits, rounded to nearest.

    ``shrink``: which fractions of a group's range are tried; the one with the least squared error is taken,
    as cutting off the ends can pay. Raises as :func:`quantize_int8`, and ConfigError for a group not offered.
    """
    packed_shapes(4, group, (PANEL, group))
    return _in_pieces(weight_NK, group, lambda groups: int4_integers(groups, shrink))


def _in_pieces(weight_NK: Tensor, group: int, integers: Any) -> PackedWeight:
    """Some panels at a time, so that no more of the weight is in float32 at once."""
    pieces = []
    for piece_NK in weight_NK.split(PANEL * _PIECE):
        N, K = piece_NK.shape
        wide = F.pad(piece_NK.float(), (0, -K % group)).view(N, -1, group)
        q, scales_NG, zeros_NG = integers(wide)
        if not bool(torch.isfinite(scales_NG).all()):
            raise NonFiniteError("a weight holds NaN, infinity or numbers too large to be quantized")
        pieces.append(pack(q.view(N, -1)[:, :K], scales_NG, zeros_NG, group=group))
    return joined(pieces)


def joined(pieces: list[PackedWeight]) -> PackedWeight:
    """Weights of the same inputs, one below the other; all but the last have whole panels of outputs."""
    first, rows = pieces[0], sum(piece.shape[0] for piece in pieces)
    if len(pieces) == 1:
        return first
    return PackedWeight(
        first.bits,
        first.group,
        (rows, first.shape[1]),
        torch.cat([piece.qweight for piece in pieces]),
        torch.cat([piece.scales for piece in pieces]),
        None if first.zeros is None else torch.cat([p.zeros for p in pieces if p.zeros is not None]),
    )


def _int8_integers(w: Tensor) -> tuple[Tensor, Tensor, None]:
    """Of groups (N, G, group): q, and float16 scales (N, G)."""
    scales = int8_scales(w)
    return integers_of(w, scales, None), scales, None


def int8_scales(w: Tensor) -> Tensor:
    """float16 scales (...) of groups (..., group) in 8 bits."""
    return _float16_scale(w.abs().amax(-1) / 127)


def int4_integers(w: Tensor, shrink: tuple[float, ...] = (1.0,)) -> tuple[Tensor, Tensor, Tensor]:
    """Of groups (..., group): q, float16 scales (...) and uint8 zero points (...).

    Zero is always inside the range, so that it is hit exactly.
    """
    low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
    best: tuple[Tensor, ...] | None = None
    for fraction in shrink:
        scales = _float16_scale((high - low) * (fraction / 15))
        zeros = torch.round(-low * fraction / scales.float().clamp(min=_TINIEST)).clamp(0, 15)
        q = integers_of(w, scales, zeros)
        if len(shrink) == 1:
            return q, scales, zeros.to(torch.uint8)
        error = ((q - zeros[..., None]) * scales.float()[..., None] - w).square().sum(-1)
        if best is None:
            best = (error, q, scales, zeros)
        else:
            better = error < best[0]
            new = (error, q, scales, zeros)
            best = tuple(
                torch.where(better[..., None] if n.ndim > better.ndim else better, n, old)
                for n, old in zip(new, best, strict=True)
            )
    assert best is not None  # one fraction at least
    return best[1], best[2], best[3].to(torch.uint8)


def integers_of(w: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """The nearest integers (floating-point) for groups (..., group) under given scales and zero points."""
    q = torch.round(w / scales.float().clamp(min=_TINIEST)[..., None])
    return q.clamp(-127, 127) if zeros is None else (q + zeros.float()[..., None]).clamp(0, 15)


def _float16_scale(scale: Tensor) -> Tensor:
    """In float16. Where that has few digits left, rounded up: the ends of the range must not be cut off."""
    few = torch.ceil(scale / _TINIEST) * _TINIEST
    return torch.where(scale < _LAST_FULL, few, scale).to(torch.float16)


def dequantize(packed: PackedWeight) -> Tensor:
    """The weight (N, K) that ``packed`` stands for, in float32."""
    return torch.cat(list(_dequantized(packed)))


def _dequantized(packed: PackedWeight) -> Iterator[Tensor]:
    """The rows of the weight in float32, some panels at a time, without those that fill the last panel."""
    N, K = packed.shape
    for start in range(0, len(packed.qweight), _PIECE):
        part = slice(start, start + _PIECE)
        q = (
            _integers(packed.qweight[part], packed.bits)
            .view(-1, packed.scales.shape[1], packed.group)
            .float()
        )
        if packed.zeros is not None:
            q -= _rows(packed.zeros[part]).float()[..., None]
        q *= _rows(packed.scales[part]).float()[..., None]
        yield q.view(len(q), -1)[: N - start * PANEL, :K]


# Products


def quantized_linear(
    x_TK: Tensor, packed: PackedWeight, bias: Tensor | None = None, *, exact: bool = False
) -> Tensor:
    """x @ weight.T + bias, in the dtype of x.

    x_TK: floating-point (..., K). bias: (N,). exact: take x as it is; otherwise x is quantized to 8 bits as
    it comes, each row in groups of 32 inputs (scale = max|x| / 127, q = x / scale, both in float32, q rounded
    half to even), as the processors' integer products want it. Sums are kept in float32. The gradient reaches
    x, in exact mode alone: UnsupportedError where another is asked for. Raises InputError for an x of another
    width.
    """
    if x_TK.shape[-1] != packed.shape[1] or not x_TK.is_floating_point():
        raise InputError(
            f"x has shape {tuple(x_TK.shape)} and dtype {x_TK.dtype}; "
            f"expected floating-point (..., {packed.shape[1]})"
        )
    rows_TK = x_TK.reshape(-1, x_TK.shape[-1])
    if rows_TK.requires_grad and torch.is_grad_enabled():
        y_TN = _Product.apply(rows_TK, packed, bias, exact)
    else:
        y_TN = _product(rows_TK, packed, bias, exact)
    return y_TN.view(*x_TK.shape[:-1], packed.shape[0])


def _product(x_TK: Tensor, packed: PackedWeight, bias: Tensor | None, exact: bool) -> Tensor:
    """The product itself, of contiguous or strided (T, K): by qvl's kernels where they are, else by torch."""
    offered = kernels()
    if offered is not None and _fits_kernels(x_TK, packed, bias):
        rows_TK = x_TK if x_TK.stride(1) == 1 else x_TK.contiguous()
        p = packed
        return offered.quantized_product(
            rows_TK, p.shape[0], p.bits, p.group, p.qweight, p.scales, p.zeros, bias, exact=exact
        )
    wide_TK = x_TK.float() if exact else quantized_rows(x_TK)
    y_TN = torch.cat([wide_TK @ weight_NK.T for weight_NK in _dequantized(packed)], dim=-1)
    return (y_TN if bias is None else y_TN + bias.float()).to(x_TK.dtype)


def _fits_kernels(x_TK: Tensor, packed: PackedWeight, bias: Tensor | None) -> bool:
    tensors = (x_TK,) if bias is None else (x_TK, bias)
    return packed.qweight.is_cpu and tensors[-1].dtype == x_TK.dtype and plain(*tensors)


def quantized_rows(x_TK: Tensor) -> Tensor:
    """x as 8-bit integers times their scales see it: float32 (T, K). NaN stays NaN, infinity becomes it."""
    T, K = x_TK.shape
    padded = F.pad(x_TK.float(), (0, -K % ACTIVATION_GROUP))
    groups = padded.view(T, padded.shape[1] // ACTIVATION_GROUP, ACTIVATION_GROUP)
    scale = groups.abs().amax(-1, keepdim=True) / 127
    q = torch.round(groups / torch.where(scale == 0, 1, scale)).clamp(-127, 127)
    return (q * scale).view_as(padded)[:, :K]


class _Product(torch.autograd.Function):
    """The product with a gradient for x (and bias); the weight has none."""

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, packed: PackedWeight, bias: Tensor | None, exact: bool) -> Tensor:
        ctx.packed, ctx.exact = packed, exact
        return _product(x_TK, packed, bias, exact)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if not ctx.exact:
            raise UnsupportedError(
                "there is no gradient through activations that are quantized as they come; "
                "load the model with exact products (exact=True) to train what is in front of it"
            )
        gradient_TN = gradients[0]
        grad_x = _transposed_product(gradient_TN, ctx.packed) if ctx.needs_input_grad[0] else None
        grad_bias = gradient_TN.sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, None, grad_bias, None


def _transposed_product(gradient_TN: Tensor, packed: PackedWeight) -> Tensor:
    """gradient @ weight: (T, K) in the gradient's dtype."""
    total = torch.zeros(len(gradient_TN), packed.shape[1], device=gradient_TN.device)
    start = 0
    for weight_NK in _dequantized(packed):
        total += gradient_TN[:, start : start + len(weight_NK)].float() @ weight_NK
        start += len(weight_NK)
    return total.to(gradient_TN.dtype)
