"""The kernel for many queries: every instruction set against the definition; what goes to torch."""

import pytest
import torch

from qvl.ops.attention import compiled, sdpa
from qvl.ops.attention.eager import eager_attention
from qvl.ops.kernels.packed import packed_attention
from tests.support.instruction_sets import offered  # noqa: F401  (a fixture)

# Heads, key heads, width: vision; shared keys; a width that fills no vector; one wider than all tiles.
HEADS = [(2, 2, 80), (6, 2, 16), (2, 1, 5), (2, 1, 200)]
# Rows of queries, of keys: one row; windows; both more than a block; a past; none at all in between.
LENGTHS = [([1], [1]), ([16, 16, 12, 3], [16, 16, 12, 3]), ([301], [301]), ([7, 0, 61], [150, 0, 301])]
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2}  # absolute, of values near 1


def strided(q_lengths, k_lengths, heads, kv_heads, width, dtype, seed=0):
    """Queries, keys and values as a joint projection leaves them: rows of heads side by side, far apart."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(sum(q_lengths), heads + 1, width, generator=generator).to(dtype)[:, 1:]
    kv = torch.randn(sum(k_lengths), 2 * kv_heads, width + 3, generator=generator).to(dtype)[..., :width]
    return q, kv[:, :kv_heads], kv[:, kv_heads:]


def check(offered, q_lengths, k_lengths, heads, dtype, causal, window, scale=None, looser=1):  # noqa: F811
    q, k, v = strided(q_lengths, k_lengths, *heads, dtype)
    rules = {"causal": causal, "window": window, "scale": scale}
    got = packed_attention(offered, q, k, v, q_lengths, k_lengths, **rules)
    want = eager_attention(q.double(), k.double(), v.double(), q_lengths, k_lengths, **rules)
    assert got.dtype == dtype and got.is_contiguous()
    torch.testing.assert_close(got.double(), want, rtol=0, atol=looser * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("causal,window", [(False, None), (True, None), (True, 1), (True, 70)])
def test_against_the_definition(offered, dtype, causal, window):  # noqa: F811
    for heads in HEADS:
        for q_lengths, k_lengths in LENGTHS:
            check(offered, q_lengths, k_lengths, heads, dtype, causal, window)


def test_scale_and_scores_that_overflow_without_the_maximum(offered):  # noqa: F811
    # Scores of some 100: a last digit of theirs, in float32, is 1e-5 of a weight.
    check(offered, [30], [200], (2, 2, 80), torch.float32, False, None, scale=3.0, looser=10)


def test_nan_stays_in_its_rows(offered):  # noqa: F811
    q, k, v = strided([64], [64], 2, 2, 80, torch.float32)
    q[5, 1, 3] = float("nan")
    out = packed_attention(offered, q, k, v, [64], [64], causal=False, window=None, scale=None)
    assert out[5, 1].isnan().all() and out[:, 0].isfinite().all() and out[6].isfinite().all()


@pytest.mark.parametrize("seed", range(6))
def test_random_sizes(offered, seed):  # noqa: F811
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    shared, kv_heads = draw(1, 4), draw(1, 4)
    k_lengths = [draw(1, 280) for _ in range(3)]
    q_lengths = [draw(1, length + 1) for length in k_lengths]
    window = draw(1, 200) if seed % 2 else None
    check(
        offered,
        q_lengths,
        k_lengths,
        (shared * kv_heads, kv_heads, draw(1, 100)),
        torch.float32,
        True,
        window,
    )


def test_the_backend_takes_it_for_many_queries_only(monkeypatch):
    calls = []
    monkeypatch.setattr(compiled, "kernels", lambda: "offered")
    monkeypatch.setattr(
        compiled, "packed_attention", lambda _, q, *rest, **rules: calls.append(len(q)) or torch.zeros_like(q)
    )
    q, k, v = strided([8], [8], 2, 2, 8, torch.float32)
    assert not sdpa.sdpa_attention(q, k, v, [8], [8]).any()
    assert calls == [8]
    for options in ({"dropout": 0.5}, {"q_lengths": [1] * 8, "k_lengths": [1] * 8}):
        lengths = {"q_lengths": [8], "k_lengths": [8], **options}
        assert sdpa.sdpa_attention(q, k, v, **lengths).any()
    assert sdpa.sdpa_attention(*(x.double() for x in (q, k, v)), [8], [8]).any()
    assert sdpa.sdpa_attention(q.clone().requires_grad_(), k, v, [8], [8]).requires_grad
    assert calls == [8]
