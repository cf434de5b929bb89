"""Sequences of one length together: what each gives alone, values and gradients."""

import pytest
import torch

from qvl.ops.attention import gathered, sdpa
from qvl.ops.attention.eager import eager_attention
from qvl.ops.attention.sdpa import sdpa_attention

LENGTHS = (3, 7, 3, 1, 7, 7, 2, 3)


def inputs(heads, key_heads, lengths=LENGTHS):
    torch.manual_seed(1)
    return [torch.randn(sum(lengths), n, 8, requires_grad=True) for n in (heads, key_heads, key_heads)]


def run(backend, qkv, lengths, **rule):
    out = backend(*qkv, lengths, lengths, **rule)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), qkv)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=["alike", "shared"])
@pytest.mark.parametrize("lengths", [LENGTHS, (5,) * 4, (4,), (2, 0, 3, 2)], ids=str)
def test_values_and_gradients_are_those_of_the_plain_formula(causal, heads, lengths):
    qkv = inputs(*heads, lengths)
    for own, plain in zip(
        run(sdpa_attention, qkv, lengths, causal=causal),
        run(eager_attention, qkv, lengths, causal=causal),
        strict=True,
    ):
        assert torch.allclose(own, plain, atol=1e-5)


def test_a_window_and_shared_heads(causal=True):
    qkv = inputs(6, 2)
    for own, plain in zip(
        run(sdpa_attention, qkv, LENGTHS, causal=causal, window=2),
        run(eager_attention, qkv, LENGTHS, causal=causal, window=2),
        strict=True,
    ):
        assert torch.allclose(own, plain, atol=1e-5)


def test_one_call_for_each_length(monkeypatch):
    calls = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        sdpa.F,
        "scaled_dot_product_attention",
        lambda q, *a, **k: calls.append(q.shape[0]) or kernel(q, *a, **k),
    )
    sdpa_attention(*inputs(4, 2), LENGTHS, LENGTHS, causal=True)
    assert sorted(calls) == [1, 1, 3, 3]


def test_nothing_is_gathered_where_nothing_is_trained(monkeypatch):
    monkeypatch.setattr(sdpa, "gathered_attention", None)
    with torch.no_grad():
        sdpa_attention(*inputs(4, 2), LENGTHS, LENGTHS, causal=True)


def test_rows_are_kept_for_the_next_layer():
    gathered._rows_by_length.cache_clear()
    qkv = inputs(4, 2)
    for _ in range(3):
        sdpa_attention(*qkv, LENGTHS, LENGTHS)
    assert gathered._rows_by_length.cache_info().misses == 1
