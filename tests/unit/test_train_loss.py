"""The chunked cross entropy against torch's, and what it keeps alive."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qvl.ops.linear import Linear
from qvl.train import loss
from qvl.train.loss import CHUNK_BYTES, chunked_cross_entropy

SHAPES = {"one": (1, 3, 2), "odd": (37, 13, 101), "square": (64, 16, 64)}  # tokens, width, vocabulary
CHUNKS = {"one": 1, "odd": 7, "whole": 64, "by-bytes": None}


def inputs(shape, dtype=torch.float32, seed=0):
    N, D, V = shape
    generator = torch.Generator().manual_seed(seed)
    x_ND = torch.randn(N, D, generator=generator).to(dtype).requires_grad_()
    head = Linear(D, V, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(V, D, generator=generator))
    return x_ND, head, torch.randint(0, V, (N,), generator=generator)


def plain_loss(x_ND, head, targets_N):
    logits_NV = head(x_ND).float()
    return F.cross_entropy(logits_NV, targets_N, reduction="sum"), (logits_NV.argmax(1) == targets_N).sum()


def with_gradients(compute, x_ND, head, targets_N, scale=0.3, **options):
    """Value, number of right ones, and the gradients of ``scale`` times the value."""
    x_ND = x_ND.detach().requires_grad_()
    head.zero_grad(set_to_none=True)
    total, right = compute(x_ND, head, targets_N, **options)
    (scale * total).backward()
    return total.detach(), right, x_ND.grad, head.weight.grad


def assert_same(found, expected, **close):
    for left, right in zip(found, expected, strict=True):
        assert left.dtype == right.dtype
        torch.testing.assert_close(left, right, **close)


@pytest.mark.parametrize("chunk", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_are_torchs(shape, chunk):
    given = inputs(shape)
    found = with_gradients(chunked_cross_entropy, *given, chunk=chunk)
    assert_same(found, with_gradients(plain_loss, *given), atol=1e-5, rtol=1e-5)


def test_a_plain_head_is_multiplied_by_and_not_called(monkeypatch):
    """The short way: the products of a chunk are made once, not again in the backward pass."""
    x_ND, head, targets_N = inputs(SHAPES["odd"])
    monkeypatch.setattr(Linear, "forward", None)
    chunked_cross_entropy(x_ND, head, targets_N)[0].backward()
    assert head.weight.grad is not None


def test_right_tokens_are_counted():
    x_ND, head, _ = inputs(SHAPES["odd"])
    best_N = head(x_ND).argmax(1)
    targets_N = torch.where(torch.arange(37) < 30, best_N, (best_N + 1) % 101)
    assert chunked_cross_entropy(x_ND, head, targets_N, chunk=7)[1] == 30


def test_double_precision_stays_double():
    given = inputs(SHAPES["odd"], torch.float64)
    x_ND, head, targets_N = given
    found = with_gradients(chunked_cross_entropy, *given, chunk=7)
    total = F.cross_entropy(head(x_ND), targets_N, reduction="sum")
    gradients = torch.autograd.grad(0.3 * total, (x_ND, head.weight))
    assert_same([found[0], *found[2:]], [total.detach(), *gradients], atol=1e-12, rtol=1e-12)


def test_bfloat16_is_as_precise_as_torchs():
    """Against float32 on the same rounded numbers; the sums over chunks must not be rounded."""
    x_ND, head, targets_N = inputs((512, 32, 300), torch.bfloat16)
    wide = Linear(32, 300, bias=False)
    wide.weight.data.copy_(head.weight)
    exact = with_gradients(plain_loss, x_ND.float(), wide, targets_N)
    found = with_gradients(chunked_cross_entropy, x_ND, head, targets_N, chunk=3)
    theirs = with_gradients(plain_loss, x_ND, head, targets_N)
    assert found[0].dtype == torch.float32
    assert found[2].dtype == found[3].dtype == torch.bfloat16
    for at in (0, 2, 3):
        ours, others = ((kind[at].float() - exact[at]).abs().mean() for kind in (found, theirs))
        assert ours <= 1.05 * others


def test_autocast_computes_in_its_dtype_and_keeps_the_weights_gradient_wide():
    x_ND, head, targets_N = inputs(SHAPES["odd"])
    exact = with_gradients(plain_loss, x_ND, head, targets_N)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(chunked_cross_entropy, x_ND, head, targets_N, chunk=7)
    assert_same(found[2:], exact[2:], atol=0.05, rtol=0.05)
    assert (found[3] - exact[3]).abs().max() > 1e-3  # the products were bfloat16's


@pytest.mark.parametrize("chunk", [5, None], ids=str)
def test_a_frozen_weight_costs_no_gradient(chunk):
    x_ND, head, targets_N = inputs(SHAPES["odd"])
    expected = with_gradients(plain_loss, x_ND, head, targets_N)
    head.requires_grad_(False)
    found = with_gradients(chunked_cross_entropy, x_ND, head, targets_N, chunk=chunk)
    assert found[3] is None
    assert_same(found[:3], expected[:3], atol=1e-5, rtol=1e-5)


def test_frozen_states_leave_the_weights_gradient():
    x_ND, head, targets_N = inputs(SHAPES["odd"])
    expected = with_gradients(plain_loss, x_ND, head, targets_N)[3]
    head.zero_grad()
    total, _ = chunked_cross_entropy(x_ND.detach(), head, targets_N, chunk=7)
    (0.3 * total).backward()
    torch.testing.assert_close(head.weight.grad, expected)


def test_a_tied_weight_gets_both_gradients():
    _, head, targets_N = inputs(SHAPES["odd"])
    embedding = nn.Embedding(101, 13)
    embedding.weight = head.weight
    gradients = []
    for compute in (chunked_cross_entropy, plain_loss):
        head.zero_grad()
        compute(embedding(targets_N.flip(0)), head, targets_N)[0].backward()
        gradients.append(head.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


class Adapted(nn.Module):
    """A frozen linear map and a low-rank one beside it, as adapters are."""

    def __init__(self, head):
        super().__init__()
        self.base_layer = head.requires_grad_(False)
        self.weight = head.weight  # as wrappers have it: not what the calls multiply by alone
        self.low = nn.Parameter(torch.randn(2, 13, generator=torch.Generator().manual_seed(1)))
        self.high = nn.Parameter(torch.randn(101, 2, generator=torch.Generator().manual_seed(2)))

    def forward(self, x_ND):
        return self.base_layer(x_ND) + x_ND @ self.low.T @ self.high.T


def adapted(head):
    return Adapted(head)


def biased(head):
    other = nn.Linear(13, 101)
    other.weight = head.weight
    return other


def hooked(head):
    head.register_forward_hook(lambda module, given, y: 1.5 * y)
    return head


@pytest.mark.parametrize("make", [adapted, biased, hooked])
def test_other_heads_are_called(make):
    x_ND, head, targets_N = inputs(SHAPES["odd"])
    head = make(head)
    results = []
    for compute, options in ((chunked_cross_entropy, {"chunk": 7}), (plain_loss, {})):
        head.zero_grad(set_to_none=True)
        x_ND.grad = None
        total, right = compute(x_ND, head, targets_N, **options)
        (0.3 * total).backward()
        gradients = [p.grad.clone() for p in head.parameters() if p.requires_grad]
        results.append([total.detach(), right, x_ND.grad.clone(), *gradients])
    assert_same(*results, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [lambda head: head, adapted], ids=["plain", "adapted"])
def test_nothing_to_learn_is_zero(make):
    x_ND, head, targets_N = inputs(SHAPES["odd"])
    head = make(head)
    total, right = chunked_cross_entropy(x_ND[:0], head, targets_N[:0])
    total.backward()
    assert total == right == 0
    assert (x_ND.grad == 0).all()
    assert all((p.grad == 0).all() for p in head.parameters() if p.requires_grad)


def test_without_gradients_none_are_computed(monkeypatch):
    x_ND, head, targets_N = inputs(SHAPES["odd"])
    monkeypatch.setattr(loss, "_add_product", None)
    with torch.no_grad():
        total, right = chunked_cross_entropy(x_ND, head, targets_N, chunk=7)
    assert not total.requires_grad
    assert_same([total, right], [value.detach() for value in plain_loss(x_ND, head, targets_N)])


def test_a_second_backward_says_why_not():
    x_ND, head, targets_N = inputs(SHAPES["odd"])
    total, _ = chunked_cross_entropy(x_ND, head, targets_N)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="went backward before"):
        total.backward()


PEAK = """
import re, sys, torch
from pathlib import Path
from torch.nn import functional as F
from qvl.ops.linear import Linear
from qvl.train.loss import chunked_cross_entropy
# The mark that is set back here; ru_maxrss would begin at what the parent process has.
def peak(): return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
x = torch.ones(2048, 8, requires_grad=True)
head, targets = Linear(8, 50_000, bias=False), torch.zeros(2048, dtype=torch.long)
F.cross_entropy(head(x[:16]), targets[:16]).backward()
Path("/proc/self/clear_refs").write_text("5")
before = peak()
if sys.argv[1] == "chunked":
    chunked_cross_entropy(x, head, targets)[0].backward()
else:
    F.cross_entropy(head(x), targets, reduction="sum").backward()
print(peak() - before)
"""


def taken(way):
    ran = subprocess.run([sys.executable, "-c", PEAK, way], capture_output=True, text=True, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the mark of the most memory is Linux's")
def test_no_logits_of_all_tokens_are_ever_alive():
    logits = 2048 * 50_000 * 4  # bytes
    assert taken("plain") > 1.9 * logits
    assert taken("chunked") < CHUNK_BYTES["cpu"] + logits / 8
