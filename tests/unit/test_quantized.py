"""Weights in 8 and 4 bits: the packed form element by element, rounding, products against written sums."""

import pytest
import torch

from qvl.errors import ConfigError, InputError, NonFiniteError, UnsupportedError
from qvl.ops.quantized import (
    PackedWeight,
    dequantize,
    joined,
    pack,
    packed_shapes,
    quantize_int4,
    quantize_int8,
    quantized_linear,
    quantized_rows,
    unpack,
)

# (N, K): whole panels and groups; outputs that fill no panel; inputs that fill no group; one of each
SHAPES = [(32, 128), (21, 64), (16, 3420), (1, 1), (47, 171)]
FORMATS = [(8, 32), (4, 32), (4, 64), (4, 128)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(weight, bits, group):
    return quantize_int8(weight) if bits == 8 else quantize_int4(weight, group)


def integers(N, K, bits, group, seed=0):
    """Random q, scales and zeros, as a checkpoint could hold them."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (-127, 128) if bits == 8 else (0, 16)
    q = torch.randint(low, high, (N, K), generator=generator)
    scales = torch.rand(N, -(-K // group), generator=generator).half() + 0.01
    zeros = None if bits == 8 else torch.randint(0, 16, tuple(scales.shape), generator=generator)
    return q, scales, zeros


def written_out(x_TK, packed, *, exact):
    """The product in float64, integer by integer: group of x times group of the weight, then both scales."""
    q, scales, zeros = unpack(packed)
    N, K = packed.shape
    w = q.double() - (0 if zeros is None else zeros.double().repeat_interleave(packed.group, 1)[:, :K])
    y = torch.zeros(len(x_TK), N, dtype=torch.float64)
    for start in range(0, K, 32):
        end = min(start + 32, K)
        x = x_TK[:, start:end].double()
        step = torch.ones(len(x), 1, dtype=torch.float64)
        if not exact:
            narrow = x_TK[:, start:end].float()
            step = narrow.abs().amax(1, keepdim=True) / 127
            x = torch.where(step == 0, 0, narrow / step).round().double()
            step = step.double()
        y += step * (x @ w[:, start:end].T) * scales[:, start // packed.group].double()
    return y


@pytest.mark.parametrize("bits, group", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_packing_loses_nothing(shape, bits, group):
    q, scales, zeros = integers(*shape, bits, group)
    packed = pack(q, scales, zeros, group=group)
    assert packed.bits == bits
    again = unpack(packed)
    assert torch.equal(again[0], q.short())
    assert torch.equal(again[1], scales)
    assert zeros is None if again[2] is None else torch.equal(again[2], zeros.byte())


def test_every_element_of_8_bits_lies_where_the_kernels_look():
    q, scales, _ = integers(37, 75, 8, 32)
    packed = pack(q, scales, group=32)
    assert packed.qweight.shape == (3, 3, 8, 16, 4)
    for output in range(37):
        for k in range(75):
            p, g, s, o, j = output // 16, k // 32, k % 32 // 4, output % 16, k % 4
            assert packed.qweight[p, g, s, o, j] == q[output, k] + 128
            assert packed.scales[p, g, o] == scales[output, g]


@pytest.mark.parametrize("group", [32, 64])
def test_every_element_of_4_bits_lies_where_the_kernels_look(group):
    q, scales, zeros = integers(37, 75, 4, group)
    packed = pack(q, scales, zeros, group=group)
    assert packed.qweight.shape == (3, -(-75 // group), group // 8, 16, 4)
    for output in range(37):
        for k in range(75):
            p, g, s, o, j = output // 16, k // group, k % group // 8, output % 16, k % 4
            byte = int(packed.qweight[p, g, s, o, j])
            assert (byte >> 4 if k % 8 >= 4 else byte & 15) == q[output, k]
            assert packed.zeros[p, g, o] == zeros[output, g]


def test_what_fills_the_panels_is_nothing():
    q, scales, zeros = integers(5, 40, 4, 32)
    four, eight = pack(q, scales, zeros, group=32), pack(q, scales, group=32)
    for packed in (four, eight):
        assert not packed.scales[:, :, 5:].any()
    assert (eight.qweight[:, 1, 2:] == 128).all()
    rest = four.qweight[0, 1, 1:, :5]
    assert (rest == (zeros[:, 1] * 17).byte()[:, None]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits, group", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_nearest_integer_is_taken(shape, bits, group, dtype):
    weight = normal(*shape).to(dtype)
    packed = quantized(weight, bits, group)
    step = unpack(packed)[1].float().repeat_interleave(group, 1)[:, : shape[1]]
    # half a step, and what rounding the scale to float16 cuts off at the end of the range
    assert ((dequantize(packed) - weight.float()).abs() <= step * (0.5 + 127 * 2**-11)).all()


def test_8_bits_are_symmetric_and_4_bits_hit_zero():
    weight = normal(32, 64)
    q, scales, _ = unpack(quantize_int8(weight))
    assert q.abs().amax() == 127
    torch.testing.assert_close(scales.float(), weight.view(32, 2, 32).abs().amax(-1) / 127, rtol=1e-3, atol=0)
    weight = weight.abs() + 1  # zero is outside of every group's values
    weight[:, ::3] = 0
    assert not dequantize(quantize_int4(weight, 32))[:, ::3].any()


def test_a_tighter_range_is_taken_where_it_is_nearer():
    weight = normal(64, 256)
    weight[:, 5] *= 3
    wide, tight = quantize_int4(weight, 64), quantize_int4(weight, 64, shrink=(1.0, 0.9, 0.8, 0.7))
    errors = [(dequantize(p) - weight).view(64, 4, 64).square().sum(-1) for p in (wide, tight)]
    assert (errors[1] <= errors[0] + 1e-6).all()
    assert errors[1].sum() < 0.98 * errors[0].sum()


def test_small_and_empty_groups_survive():
    weight = normal(16, 96) * 1e-6
    weight[:, 32:64] = 0
    for packed, steps in ((quantize_int8(weight), 0.6), (quantize_int4(weight, 32), 0.6)):
        near = dequantize(packed)
        assert not near[:, 32:64].any()
        assert ((near - weight).abs() <= steps * unpack(packed)[1].float().repeat_interleave(32, 1)).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_weights_that_have_no_scale(value):
    weight = normal(20, 40)
    weight[17, 3] = value
    for bits in (8, 4):
        with pytest.raises(NonFiniteError, match="too large to be quantized"):
            quantized(weight, bits, 32)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "dynamic"])
@pytest.mark.parametrize("bits, group", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_the_written_out_sums(shape, bits, group, exact):
    packed = pack(*integers(*shape, bits, group), group=group)
    x = normal(3, shape[1], seed=1)
    expected = written_out(x, packed, exact=exact)
    y = quantized_linear(x, packed, exact=exact)
    assert y.dtype == torch.float32
    assert (y - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "dynamic"])
@pytest.mark.parametrize("dtype, error", [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_is_rounded_once_at_the_end(dtype, error, exact):
    packed, x = quantize_int8(normal(24, 96) / 10), normal(4, 96, seed=1).to(dtype)
    bias = normal(24, seed=2).to(dtype)
    y = quantized_linear(x, packed, bias, exact=exact)
    expected = written_out(x, packed, exact=exact) + bias.double()
    assert y.dtype == dtype
    assert ((y.double() - expected).abs() <= expected.abs() * error + 1e-6).all()


def test_activations_are_rounded_half_to_even_in_groups_of_32():
    x = torch.zeros(1, 64)
    x[0, :4] = torch.tensor([127.0, 0.5, 1.5, -2.5])
    x[0, 32:34] = torch.tensor([1.27, 0.004])  # its own, finer scale
    rows = quantized_rows(x)
    assert rows[0, :4].tolist() == [127, 0, 2, -2]
    torch.testing.assert_close(rows[0, 32:34], torch.tensor([1.27, 0.0]))


def test_shapes_bias_and_rows():
    weight = normal(21, 40)
    packed, bias = quantize_int8(weight), normal(21, seed=2)
    x = normal(2, 3, 40, seed=1)
    y = quantized_linear(x, packed, bias)
    assert y.shape == (2, 3, 21)
    torch.testing.assert_close(y[1, 2], quantized_linear(x[1, 2], packed) + bias)
    torch.testing.assert_close(
        quantized_linear(x.transpose(0, 1), packed, bias, exact=True).transpose(0, 1),
        quantized_linear(x, packed, bias, exact=True),
    )
    assert quantized_linear(x[:0], packed, bias).shape == (0, 3, 21)
    x[1] = 0  # an empty row has no scale
    assert torch.equal(quantized_linear(x, packed, bias)[1], bias.expand(3, -1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_in_its_row(value):
    packed, x = quantize_int8(normal(16, 64)), normal(2, 64, seed=1)
    x[0, 5] = value
    y = quantized_linear(x, packed)
    assert not y[0].isfinite().any()
    assert y[1].isfinite().all()


def test_the_gradient_reaches_x_in_exact_mode():
    packed, bias = quantize_int4(normal(21, 40), 32), normal(21, seed=2).requires_grad_()
    x = normal(3, 40, seed=1).requires_grad_()
    (quantized_linear(x, packed, bias, exact=True) * normal(3, 21, seed=3)).sum().backward()
    torch.testing.assert_close(x.grad, normal(3, 21, seed=3) @ dequantize(packed), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias.grad, normal(3, 21, seed=3).sum(0))
    y = quantized_linear(x, packed, bias)
    with pytest.raises(UnsupportedError, match="exact=True"):
        y.sum().backward()


def test_pieces_of_a_weight_are_joined():
    weight = normal(53, 64)
    for bits in (8, 4):
        whole = quantized(weight, bits, 32)
        parts = joined([quantized(weight[:32], bits, 32), quantized(weight[32:], bits, 32)])
        assert torch.equal(dequantize(parts), dequantize(whole))


@pytest.mark.parametrize("bits, group", [(8, 64), (4, 16), (4, 256), (3, 32)])
def test_formats_that_are_not_offered(bits, group):
    with pytest.raises(ConfigError, match="4 bits and one of 32, 64, 128"):
        packed_shapes(bits, group, (16, 256))


def test_tensors_and_inputs_that_do_not_fit():
    packed = quantize_int8(normal(21, 40))
    with pytest.raises(InputError, match=r"do not fit a weight of shape .*: qweight, scales; expected"):
        PackedWeight(8, 32, (21, 70), packed.qweight, packed.scales)
    with pytest.raises(InputError, match=": zeros; expected"):
        PackedWeight(8, 32, (21, 40), packed.qweight, packed.scales, packed.scales.byte())
    with pytest.raises(InputError, match=r"expected floating-point \(..., 40\)"):
        quantized_linear(normal(2, 39), packed)
    with pytest.raises(InputError, match=r"dtype torch\.int64"):
        quantized_linear(torch.ones(2, 40, dtype=torch.int64), packed)
