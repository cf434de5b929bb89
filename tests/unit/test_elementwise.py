"""Norm, rotary turn and gate: every instruction set against torch's operators; what goes to torch."""

import pytest
import torch
from torch.nn import functional as F

from qvl.network import layers
from qvl.ops import gate, norm, rope
from qvl.ops.gate import silu_product
from qvl.ops.kernels import elementwise
from qvl.ops.norm import rms_norm
from qvl.ops.rope import apply_rotary
from tests.support.instruction_sets import offered  # noqa: F401  (a fixture)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def numbers(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_torch(monkeypatch, function, *arguments):
    with monkeypatch.context() as patch:
        patch.setenv("QVL_KERNELS", "off")
        return function(*arguments)


def close(got, want, steps=1):
    """Equal up to so many last digits of bfloat16, or to 2e-6 of the value in float32."""
    assert got.dtype == want.dtype and got.shape == want.shape
    rtol = 2e-6 if want.dtype == torch.float32 else steps * 2**-7
    torch.testing.assert_close(got.float(), want.float(), rtol=rtol, atol=1e-6)


@DTYPES
@pytest.mark.parametrize("rows,width", [(1, 1), (3, 5), (2, 16), (7, 33), (5, 80), (9, 200), (600, 128)])
def test_norm(offered, monkeypatch, dtype, rows, width):  # noqa: F811
    x, weight = numbers(rows, width, dtype=dtype), numbers(width, dtype=dtype, seed=1)
    close(rms_norm(x, weight, 1e-6), with_torch(monkeypatch, rms_norm, x, weight, 1e-6))


def test_norm_of_rows_that_lie_apart_and_of_more_axes(offered, monkeypatch):  # noqa: F811
    x, weight = numbers(6, 3, 40), numbers(40, seed=1)
    for view in (x, x[:, 1], x[:, :, :20].mT):
        w = weight[: view.shape[-1]]
        close(rms_norm(view, w, 1e-5), with_torch(monkeypatch, rms_norm, view, w, 1e-5))


@pytest.mark.parametrize("angles", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@DTYPES
@pytest.mark.parametrize("tokens,heads,width", [(1, 1, 2), (3, 2, 10), (5, 3, 32), (4, 2, 80), (70, 16, 128)])
def test_rotary(offered, monkeypatch, dtype, angles, tokens, heads, width):  # noqa: F811
    x = numbers(tokens, 3 * heads, width, dtype=dtype)[:, heads : 3 * heads]  # neither axis lies close
    angle = numbers(tokens, width // 2, seed=1)
    cos, sin = angle.cos().to(angles), angle.sin().to(angles)
    got, want = apply_rotary(x, cos, sin), with_torch(monkeypatch, apply_rotary, x, cos, sin)
    assert torch.equal(got, want)  # every product and sum is rounded where torch rounds it


@DTYPES
@pytest.mark.parametrize("shape", [(1,), (3, 7), (16,), (5, 33), (300, 171)])
def test_gate(offered, monkeypatch, dtype, shape):  # noqa: F811
    x, up = 8 * numbers(*shape, dtype=dtype), numbers(*shape, dtype=dtype, seed=1)
    close(silu_product(x, up), with_torch(monkeypatch, silu_product, x, up), steps=2)


def test_gate_at_the_ends(offered):  # noqa: F811
    x = torch.tensor([-1e30, -200.0, -88.5, -87.0, 0.0, 87.0, 200.0, 1e30, float("inf"), float("nan")])
    got, want = silu_product(x, torch.ones_like(x)), F.silu(x)
    torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-30, equal_nan=True)


@DTYPES
def test_nan_and_infinity_are_not_lost(offered, dtype):  # noqa: F811
    for bad in (float("nan"), float("inf")):
        x = numbers(3, 40, dtype=dtype)
        x[1, 17] = bad
        y = rms_norm(x, torch.ones(40, dtype=dtype), 1e-6)
        assert y[1].isnan().any() and y[[0, 2]].isfinite().all()
        assert not silu_product(x, x)[1, 17].isfinite()


@pytest.mark.parametrize("call", ["norm", "rotary", "gate"])
def test_what_needs_a_gradient_goes_to_torch(monkeypatch, call):
    for name in ("rms_norm", "rotary", "silu_product"):
        monkeypatch.setattr(elementwise, name, lambda *arguments: pytest.fail("no graph behind the kernel"))
    x, ones = numbers(4, 2, 8).requires_grad_(), torch.ones(4, 4)
    y = {
        "norm": lambda: norm.rms_norm(x, torch.ones(8), 1e-6),
        "rotary": lambda: rope.apply_rotary(x, ones, ones),
        "gate": lambda: gate.silu_product(x, x),
    }[call]()
    y.sum().backward()
    assert x.grad is not None


def test_mixed_dtypes_go_to_torch():
    half = numbers(4, 8, dtype=torch.bfloat16)
    assert rms_norm(half, torch.ones(8), 1e-6).dtype == torch.float32
    assert silu_product(half, numbers(4, 8)).dtype == torch.float32
    assert apply_rotary(half.half()[:, None], torch.ones(4, 4), torch.ones(4, 4)).dtype == torch.float16


def test_a_long_mlp_goes_in_equal_parts(monkeypatch):
    monkeypatch.setattr(layers, "MLP_VALUES", 12 * 20)
    mlp, seen = layers.SwiGLU(8, 12, "silu", bias=True), []
    mlp.gate_proj.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    x = numbers(50, 8)
    with torch.inference_mode():
        parts = mlp(x)
    assert seen == [17, 17, 16]
    seen.clear()
    whole = mlp(x)  # with a graph: in one piece
    assert seen == [50]
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
