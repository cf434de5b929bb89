"""The product that is trained: `F.linear`'s values and gradients, whoever computes them."""

import pytest
import torch
from torch.nn import functional as F

from qvl.ops import trained_linear as module
from qvl.ops.trained_linear import trained_linear


@pytest.fixture(params=[True, False], ids=["onednn", "torch"])
def way(request, monkeypatch):
    monkeypatch.setattr(module, "onednn_is_faster", lambda: request.param)
    return request.param


def tensors(*shapes, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def gradients(function, inputs, weights):
    (function(*inputs) * weights).sum().backward()
    found = [x.grad for x in inputs if x is not None]
    for x in inputs:
        if x is not None:
            x.grad = None
    return found


@pytest.mark.parametrize("shape", [(65, 7), (130, 33), (2, 70, 16)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_torch(way, shape, bias):
    x, weight, b = tensors(shape, (19, shape[-1]), (19,))
    inputs = (x, weight, b if bias else None)
    assert torch.allclose(trained_linear(*inputs), F.linear(*inputs), atol=1e-5)
    weights = torch.randn(*shape[:-1], 19)
    for own, torchs in zip(
        gradients(trained_linear, inputs, weights), gradients(F.linear, inputs, weights), strict=True
    ):
        assert torch.allclose(own, torchs, atol=1e-4)


def test_frozen_weights_get_no_gradient(way):
    x, weight = tensors((80, 8), (5, 8))
    weight.requires_grad_(False)
    trained_linear(x, weight).sum().backward()
    assert weight.grad is None
    assert torch.allclose(x.grad, weight.sum(0).expand(80, 8), atol=1e-5)


def test_gradients_have_gradients(way):
    x, weight = tensors((70, 4), (3, 4))
    (first,) = torch.autograd.grad((trained_linear(x, weight) ** 2).sum(), x, create_graph=True)
    first.pow(2).sum().backward()
    own = weight.grad
    weight.grad = None
    (first,) = torch.autograd.grad((F.linear(x, weight) ** 2).sum(), x, create_graph=True)
    first.pow(2).sum().backward()
    assert torch.allclose(own, weight.grad, rtol=1e-3, atol=1e-2)


def test_onednn_is_taken_for_many_rows_only(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(module, "onednn", lambda x, w: calls.append(len(x)) or F.linear(x, w))
    x, weight = tensors((module.FEWEST_ROWS, 8), (5, 8))
    trained_linear(x, weight)
    trained_linear(x[:-1], weight)
    trained_linear(x.double(), weight.double())
    with torch.no_grad():
        trained_linear(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        trained_linear(x, weight)
    assert calls == [module.FEWEST_ROWS]


def test_whoever_is_faster_is_found_by_measuring():
    assert module.onednn_is_faster() in (True, False)
    assert module.onednn_is_faster.cache_info().currsize == 1
