"""The attention kernel over caches, on every instruction set here, against softmax in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from qvl.errors import UnsupportedError
from qvl.ops.kernels import Kernels, load
from qvl.ops.kernels.attention import CachedAttention, dequantize_keys, quantize_keys

NAMES = ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "neon")


def offered(name: str) -> Kernels:
    try:
        found = load(name)
    except UnsupportedError:
        pytest.skip(f"{name} does not run here")
    assert found is not None
    return found


@dataclass(frozen=True)
class Case:
    past: tuple[int, ...]
    counts: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 2
    width: int = 24
    window: int | None = None
    queries: tuple[int, ...] | None = None


CASES = {
    "one token": Case((7,), (1,)),
    "first token": Case((0,), (1,)),
    "streams": Case((5, 130, 49, 0, 1), (1, 1, 1, 1, 1), 6, 2, 16),
    "one head for all": Case((97,), (1,), 8, 1, 128),
    "no sharing": Case((50, 3), (1, 2), 3, 3, 20),
    "odd width": Case((70, 5), (2, 9), 4, 2, 13),
    "guesses": Case((300, 11, 64), (5, 1, 16), 8, 2, 32),
    "chunk": Case((100,), (67,), 4, 2, 80),
    "prompt": Case((0, 3), (300, 1), 4, 4, 36),
    "mixed": Case((40, 257, 0), (1, 3, 150), 8, 2, 64),
    "window": Case((200, 20), (1, 40), 4, 2, 32, window=17),
    "window of a long prompt": Case((10,), (400,), 4, 2, 32, window=33),
    "cut by keys": Case((3000, 9), (1, 1), 4, 2, 128),
    "cut by keys, guesses": Case((2500,), (7,), 8, 2, 64),
    "last rows ask": Case((40, 257, 0, 9), (1, 30, 150, 7), 8, 2, 64, queries=(1, 0, 1, 5)),
    "nobody asks": Case((0,), (20,), queries=(0,)),
    "cut by keys, window": Case((2500,), (30,), 8, 2, 64, window=1200),
}


@dataclass
class Buffers:
    """Caches of one layer that hold random pasts, and what lies behind them is NaN."""

    keys: list[Tensor]
    values: list[Tensor]
    scales: list[tuple[Tensor, Tensor]]

    def table(self) -> Tensor:
        rows = [
            [k.data_ptr(), v.data_ptr(), *(s.data_ptr() for s in scales), k.stride(0)]
            for k, v, scales in zip(self.keys, self.values, self.scales, strict=True)
        ]
        return torch.tensor([rows])

    def read(self, i: int) -> tuple[Tensor, Tensor]:
        pair = (self.keys[i], self.values[i])
        if pair[0].dtype != torch.int8:
            return pair
        k, v = (dequantize_keys(x, s, torch.float32) for x, s in zip(pair, self.scales[i], strict=True))
        return k, v


def buffers(case: Case, stored: torch.dtype) -> Buffers:
    made = Buffers([], [], [])
    for past, count in zip(case.past, case.counts, strict=True):
        shape = (case.kv_heads, past + count + 3)
        if stored == torch.int8:
            pairs = [quantize_keys(torch.randn(*shape, case.width)) for _ in range(2)]
            for _, scales in pairs:
                scales[:, past:] = math.nan
            made.scales.append((pairs[0][1], pairs[1][1]))
            k, v = pairs[0][0], pairs[1][0]
        else:
            k, v = (torch.randn(*shape, case.width).to(stored) for _ in range(2))
            for x in (k, v):
                x[:, past:] = math.nan
            made.scales.append((torch.empty(0), torch.empty(0)))
        made.keys.append(k)
        made.values.append(v)
    return made


def expected(q_THD: Tensor, k_GSD: Tensor, v_GSD: Tensor, window: int | None) -> Tensor:
    T, H, D = q_THD.shape
    G, S = k_GSD.shape[:2]
    k, v = (x.double().repeat_interleave(H // G, 0) for x in (k_GSD, v_GSD))
    scores = q_THD.double().transpose(0, 1) @ k.transpose(1, 2) / math.sqrt(D)
    i, j = torch.arange(S - T, S)[:, None], torch.arange(S)
    hidden = (j > i) if window is None else (j > i) | (i - j >= window)
    return (scores.masked_fill(hidden, -math.inf).softmax(-1) @ v).transpose(0, 1)


def run(
    kernels: Kernels, case: Case, dtype: torch.dtype, stored: torch.dtype
) -> tuple[Tensor, Tensor, float]:
    """The kernel's answer, the expected one, and how far what was written is from what was given."""
    torch.manual_seed(0)
    made, T = buffers(case, stored), sum(case.counts)
    widths = [case.heads * case.width, case.kv_heads * case.width, case.kv_heads * case.width]
    joined = torch.randn(T, sum(widths) + 3).to(dtype)[:, :-3]  # q, k, v beside each other: rows with gaps
    q, k, v = (x.unflatten(1, (-1, case.width)) for x in joined.split(widths, 1))
    asking = case.queries or case.counts
    pieces = [piece[len(piece) - n :] for piece, n in zip(q.split(case.counts), asking, strict=True)]
    attention = CachedAttention(kernels, made.table(), case.past, case.counts, stored, case.queries)
    out = attention(0, case.window, torch.cat(pieces) if case.queries else q, k, v)
    parts, far, at = [], 0.0, 0
    for i, (past, count) in enumerate(zip(case.past, case.counts, strict=True)):
        mine = slice(at, at + count)
        keys, values = (x[:, : past + count] for x in made.read(i))
        for stored_now, given in ((keys, k), (values, v)):
            gap = (stored_now[:, past:].float() - given[mine].transpose(0, 1).float()).abs()
            far = max(far, gap.max().item())
        parts.append(expected(pieces[i], keys, values, case.window))
        at += count
    return out, torch.cat(parts), far


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_is_softmax_attention_in_float32(name: str, case: Case) -> None:
    out, wanted, far = run(offered(name), case, torch.float32, torch.float32)
    assert far == 0
    torch.testing.assert_close(out.double(), wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize(
    ("dtype", "stored", "off"),
    [
        (torch.bfloat16, torch.bfloat16, 0.0),
        (torch.float32, torch.bfloat16, 0.02),
        (torch.float32, torch.int8, 0.03),
        (torch.bfloat16, torch.int8, 0.03),
        (torch.bfloat16, torch.float32, 0.0),
    ],
    ids=str,
)
def test_every_dtype(name: str, case: Case, dtype: torch.dtype, stored: torch.dtype, off: float) -> None:
    """Attention is exact over what was written; what was written is as near as its dtype allows."""
    out, wanted, far = run(offered(name), case, dtype, stored)
    assert far <= off
    rounded = dtype == torch.bfloat16
    torch.testing.assert_close(
        out.double(), wanted, rtol=8e-3 if rounded else 2e-5, atol=2e-3 if rounded else 2e-6
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_show(name: str, threads: int) -> None:
    kernels, before = offered(name), torch.get_num_threads()
    case = replace(CASES["cut by keys"], past=(5000, 9))
    try:
        torch.set_num_threads(threads)
        out, wanted, _ = run(kernels, case, torch.float32, torch.float32)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(out.double(), wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_scores_far_apart_and_many_blocks(name: str) -> None:
    """The largest score comes late, so what was added up before must shrink to nothing."""
    kernels = offered(name)
    made = buffers(Case((200,), (1,), 2, 1, 16), torch.float32)
    made.keys[0][0, :200] = 0.0
    made.keys[0][0, 190] = 100.0
    q, k, v = torch.full((1, 2, 16), 1.0), torch.zeros(1, 1, 16), torch.zeros(1, 1, 16)
    out = CachedAttention(kernels, made.table(), (200,), (1,), torch.float32)(0, None, q, k, v)
    torch.testing.assert_close(out[0, 0], made.values[0][0, 190])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_no_number_shows(name: str, stored: torch.dtype, wrong: float, which: int) -> None:
    """Else an overflow would pass in silence, and the model go on with nonsense."""
    kernels = offered(name)
    made = buffers(Case((60,), (30,), 2, 1, 16), stored)
    qkv = [torch.randn(30, heads, 16) for heads in (2, 1, 1)]
    qkv[0].abs_()  # infinity times a negative number would rightly hide the key
    qkv[which][3, 0, 5] = wrong
    out = CachedAttention(kernels, made.table(), (60,), (30,), stored)(0, None, *qkv)
    assert not out[3, 0].isfinite().all()
    if which < 2:  # a weight of 0 times what is no number is none
        assert out[2].isfinite().all()


def test_the_reference_quantizes_as_the_kernel_does() -> None:
    x = torch.randn(2, 40, 50) * torch.tensor([1e-3, 30.0])[:, None, None]
    x[0, 3] = 0.0
    case = Case((0,), (40,), 2, 2, 50)
    made = buffers(case, torch.int8)
    given = x.transpose(0, 1).contiguous()
    for name in NAMES:
        try:
            kernels = load(name)
        except UnsupportedError:
            continue
        assert kernels is not None
        CachedAttention(kernels, made.table(), (0,), (40,), torch.int8)(0, None, given, given, given)
        whole, scales = quantize_keys(x)
        assert torch.equal(made.scales[0][0][:, :40], scales)
        assert torch.equal(made.keys[0][:, :40], whole)
        assert torch.equal(made.values[0][:, :40], whole)
