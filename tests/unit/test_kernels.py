"""Every instruction set of the kernels that runs here gives what the formulas say, for odd sizes too."""

import shutil
import sys

import pytest
import torch
from torch.nn import functional as F

from qvl.errors import UnsupportedError
from qvl.ops import kernels as library
from qvl.ops.kernels import BY_COUNT, FEW, MANY, load
from qvl.ops.linear import Linear, linear, ways
from qvl.ops.quantized import dequantize, quantize_int4, quantize_int8, quantized_linear, quantized_rows

SETS = ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "neon")
SIZES = (
    (1, 1, 1),
    (1, 5, 7),
    (2, 16, 32),
    (3, 17, 33),
    (9, 50, 100),
    (17, 300, 530),
    (13, 100, 259),
    (250, 130, 600),
    (6, 49, 3420),
)
# Of the largest value. A float32 sum of 3,420 products in a row is good to 5e-6; bfloat16 keeps 8 bits.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}


@pytest.fixture(params=SETS)
def offered(request):
    if load("") is None:
        pytest.skip("qvl was installed without its kernels: no C++ compiler")
    try:
        return load(request.param)
    except UnsupportedError:
        pytest.skip(f"this processor has no {request.param}")


@pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")) or sys.platform == "win32",
    reason="no C++ compiler for GCC's or Clang's options",
)
def test_where_there_is_a_compiler_there_are_kernels():
    """An install goes on without them: a mistake in their source would otherwise only skip these tests."""
    assert load("") is not None, "the kernels were not built: scripts/setup, or cmake, says why"


def close(got, want, dtype):
    assert got.dtype == dtype
    assert (got.double() - want).abs().max() <= TOLERANCE[dtype] * want.abs().max() + 1e-30


def numbers(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("way", [BY_COUNT, FEW, MANY], ids=["by-count", "few", "many"])
def test_plain_products(offered, way, dtype):
    for M, N, K in SIZES:
        x, weight, bias = (numbers(*s, dtype=dtype, seed=i) for i, s in enumerate(((M, K), (N, K), (N,))))
        for b in (bias, None):
            want = F.linear(x.double(), weight.double(), None if b is None else b.double())
            close(offered.product(x, weight, b, way), want, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("form", [(8, 32), (4, 32), (4, 64), (4, 128)], ids=["8", "4-32", "4-64", "4-128"])
def test_quantized_products(offered, form, dtype):
    bits, group = form
    for M, N, K in SIZES:
        x, weight, bias = (numbers(*s, seed=i) for i, s in enumerate(((M, K), (N, K), (N,))))
        packed = quantize_int8(weight) if bits == 8 else quantize_int4(weight, group)
        x, bias, wide = x.to(dtype), bias.to(dtype), dequantize(packed).double()
        fields = (x, N, bits, group, packed.qweight, packed.scales, packed.zeros, bias)
        for way in (BY_COUNT, FEW, MANY):
            want = F.linear(x.double(), wide, bias.double())
            close(offered.quantized_product(*fields, exact=True, way=way), want, dtype)
        want = F.linear(quantized_rows(x).double(), wide, bias.double())
        close(offered.quantized_product(*fields, exact=False), want, dtype)


def test_extreme_integers(offered):
    """The largest products of bytes: 16 bits in between must not overflow."""
    x = torch.tensor([1.0, -1.0]).repeat(64)[None] * torch.tensor([[1.0], [-1.0]])
    for bits, group in ((8, 32), (4, 128)):
        weight = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]).repeat(1, 64)
        packed = quantize_int8(weight) if bits == 8 else quantize_int4(weight, group)
        got = offered.quantized_product(
            x, 3, bits, group, packed.qweight, packed.scales, packed.zeros, None, exact=False
        )
        want = F.linear(quantized_rows(x).double(), dequantize(packed).double())
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-3)


def test_rows_that_are_apart_and_what_lies_behind_them(offered):
    """Only the K inputs of a row count: what stands between rows and behind the weight may be anything."""
    K = 37
    wide = torch.full((5, 64), float("nan"))
    wide[:, :K] = numbers(5, K)
    memory = torch.full((20 * K + 64,), float("nan"))
    weight = memory[: 20 * K].view(20, K).copy_(numbers(20, K, seed=1))
    for way in (FEW, MANY):
        close(
            offered.product(wide[:, :K], weight, None, way),
            wide[:, :K].double() @ weight.double().T,
            torch.float32,
        )
    packed = quantize_int8(weight)
    for exact in (True, False):
        fields = (20, 8, 32, packed.qweight, packed.scales, packed.zeros, None)
        assert offered.quantized_product(wide[:, :K], *fields, exact=exact).isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_lost(offered, bad):
    x, weight = numbers(2, 64), numbers(4, 64, seed=1)
    x[1, 40] = bad
    packed = quantize_int8(weight)
    fields = (4, 8, 32, packed.qweight, packed.scales, packed.zeros, None)
    for got in (
        offered.product(x, weight, None, FEW),
        offered.product(x, weight, None, MANY),
        offered.quantized_product(x, *fields, exact=False),
    ):
        assert got[0].isfinite().all()
        assert not got[1].isfinite().any()


def test_the_same_numbers_on_one_thread_and_two(offered):
    """Who takes which block decides nothing: every sum is made by one thread in one order."""
    x, weight = numbers(70, 1024), numbers(1000, 1024, seed=1)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append([offered.product(x[:rows], weight, None) for rows in (1, 8, 70)])
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("form", [(8, 32), (4, 64)], ids=["8", "4-64"])
def test_a_row_of_bytes_is_the_same_among_others(offered, form):
    """Sums of a quantized product are made in one order, however many rows there are."""
    bits, group = form
    x, weight = numbers(40, 300), numbers(50, 300, seed=1)
    packed = quantize_int8(weight) if bits == 8 else quantize_int4(weight, group)
    fields = (50, bits, group, packed.qweight, packed.scales, packed.zeros, None)
    together = offered.quantized_product(x, *fields, exact=False)
    for rows in (slice(0, 1), slice(7, 9), slice(20, 25), slice(3, 16)):
        assert torch.equal(offered.quantized_product(x[rows], *fields, exact=False), together[rows])


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_a_bias_alone_can_be_trained(packed):
    x, weight, bias = numbers(3, 8), numbers(4, 8, seed=1), numbers(4, seed=2).requires_grad_()
    got = quantized_linear(x, quantize_int8(weight), bias) if packed else linear(x, weight, bias)
    got.sum().backward()
    assert bias.grad.tolist() == [3.0] * 4


def test_torch_takes_what_the_kernels_do_not():
    """Gradients, half precision, mixed dtypes and traced calls: the same answers, by torch."""
    x, layer = numbers(3, 8), Linear(8, 4)
    got = layer(x)
    got.sum().backward()
    assert layer.weight.grad is not None
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), got.detach())
        torch.testing.assert_close(layer(x[None])[0], got.detach())
        assert layer(x.view(3, 1, 8)).shape == (3, 1, 4)
        assert layer(x[:0]).shape == (0, 4)
        half = layer.half()
        assert half(x.half()).dtype == torch.float16
        with pytest.raises(RuntimeError):
            linear(x, half.weight)


def test_every_way_of_many_rows_gives_the_same():
    if load("") is None:
        pytest.skip("qvl was installed without its kernels: no C++ compiler")
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, bias = numbers(70, 96, dtype=dtype), numbers(40, 96, dtype=dtype), numbers(40, dtype=dtype)
        want = F.linear(x.double(), weight.double(), bias.double())
        with torch.inference_mode():
            for way in ways(dtype, load("")).values():
                close(way(x, weight, bias), want, dtype)


def test_the_environment_chooses(monkeypatch):
    monkeypatch.setenv("QVL_KERNELS", "off")
    assert library.kernels() is None
    with torch.inference_mode():
        assert Linear(8, 4)(numbers(3, 8)).shape == (3, 4)
    monkeypatch.setenv("QVL_KERNELS", "mmx")
    with pytest.raises(UnsupportedError, match="mmx"):
        library.kernels()


def test_without_a_compiler_torch_does_it_all(monkeypatch):
    monkeypatch.setattr(library, "_library", lambda: None)
    library.load.cache_clear()
    try:
        assert library.load("") is None
        with pytest.raises(UnsupportedError, match="without its kernels"):
            library.load("avx2")
    finally:
        library.load.cache_clear()
