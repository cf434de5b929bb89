"""The back-ends against each other, on odd sizes; what each refuses."""

import sys
from types import SimpleNamespace

import pytest
import torch

from qvl.errors import InputError, MissingDependencyError, UnknownNameError, UnsupportedError
from qvl.ops.attention import get_backend, packed_attend, recording_backend, sdpa
from qvl.ops.attention.flash import flash_attention


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch):
    """The back-ends themselves: test_packed_attention.py has the compiled kernel that "sdpa" prefers."""
    monkeypatch.setenv("QVL_KERNELS", "off")


def tensors(q_lengths, k_lengths, heads, kv_heads, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = ((sum(q_lengths), heads), (sum(k_lengths), kv_heads), (sum(k_lengths), kv_heads))
    return [torch.randn(rows, n, dim, generator=generator) for rows, n in sizes]


def by_hand(q_THD, k_SGD, v_SGD, causal, window):
    """One sequence, one query and head at a time, in float64."""
    (T, H, D), (S, G, _) = q_THD.shape, k_SGD.shape
    out = torch.empty(T, H, D, dtype=torch.float64)
    for t in range(T):
        i = S - T + t
        keys = [j for j in range(S) if not causal or (j <= i and (window is None or i - j < window))]
        for h in range(H):
            k, v = (x[keys, h * G // H].double() for x in (k_SGD, v_SGD))
            out[t, h] = torch.softmax(k @ q_THD[t, h].double() / D**0.5, dim=0) @ v
    return out.float()


RULES = [(False, None), (True, None), (True, 1), (True, 3), (True, 100)]
SHAPES = [
    ([5], [5]),
    ([1], [7]),
    ([3], [9]),
    ([1, 1, 1], [4, 4, 4]),
    ([2, 2, 5, 1], [2, 2, 8, 6]),
    ([4, 0, 4, 3], [4, 0, 4, 11]),
    ([7, 7, 7, 2], [7, 7, 7, 2]),
]


@pytest.mark.parametrize("name", ["eager", "sdpa"])
@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("causal,window", RULES)
def test_against_the_definition(name, heads, kv_heads, causal, window):
    for q_lengths, k_lengths in SHAPES:
        q, k, v = tensors(q_lengths, k_lengths, heads, kv_heads)
        found = get_backend(name)(q, k, v, q_lengths, k_lengths, causal=causal, window=window)
        parts = zip(q.split(q_lengths), k.split(k_lengths), v.split(k_lengths), strict=True)
        expected = torch.cat([by_hand(*part, causal, window) for part in parts])
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_sdpa_equals_eager_on_random_sizes(seed, monkeypatch):
    monkeypatch.setattr(sdpa, "BLOCK", 5)  # several blocks of rows even at these sizes
    generator = torch.Generator().manual_seed(seed)
    past = torch.randint(0, 9, (4,), generator=generator).tolist()
    q_lengths = torch.randint(1, 14, (4,), generator=generator).tolist()
    k_lengths = [q + p for q, p in zip(q_lengths, past, strict=True)]
    q, k, v = tensors(q_lengths, k_lengths, 4, 2, dim=12, seed=seed)
    for causal, window in RULES:
        one, two = (
            get_backend(name)(q, k, v, q_lengths, k_lengths, causal=causal, window=window, scale=0.3)
            for name in ("eager", "sdpa")
        )
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
@pytest.mark.parametrize("window", [None, 6])
def test_packed_equals_single_and_chunked_equals_whole(name, window):
    lengths, backend = [9, 1, 16], get_backend(name)
    q, k, v = tensors(lengths, lengths, 4, 2)
    packed = packed_attend(backend, lengths, causal=True, window=window)(q, k, v)
    starts = [0, 9, 10]
    for start, length in zip(starts, lengths, strict=True):
        rows = slice(start, start + length)
        alone = packed_attend(backend, [length], causal=True, window=window)(q[rows], k[rows], v[rows])
        torch.testing.assert_close(packed[rows], alone, atol=1e-6, rtol=1e-5)
    start = starts[-1]
    for low, high in [(0, 7), (7, 8), (8, 13), (13, 16)]:  # as a cache feeds it: new queries, all keys so far
        part = backend(
            q[start + low : start + high],
            k[start : start + high],
            v[start : start + high],
            [high - low],
            [high],
            causal=True,
            window=window,
        )
        torch.testing.assert_close(part, packed[start + low : start + high], atol=1e-6, rtol=1e-5)


def test_keys_that_are_views_of_a_cache():
    q, k, v = tensors([3], [10], 4, 2)
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (k, v)]
    for name in ("eager", "sdpa"):
        expected = get_backend(name)(q, k, v, [3], [10], causal=True)
        found = get_backend(name)(q, *strided, [3], [10], causal=True)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_gradients_agree():
    grads = {}
    for name in ("eager", "sdpa"):
        inputs = [x.requires_grad_() for x in tensors([6, 6, 3], [6, 6, 8], 4, 2)]
        out = get_backend(name)(*inputs, [6, 6, 3], [6, 6, 8], causal=True, window=4)
        out.square().sum().backward()
        grads[name] = [x.grad for x in inputs]
    for one, two in zip(*grads.values(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_equal_neighbours_share_a_call(monkeypatch):
    calls = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, v, **options: calls.append((tuple(q.shape), k.shape[1])) or kernel(q, k, v, **options),
    )
    lengths = [16] * 5 + [12] * 2 + [9]
    sdpa.sdpa_attention(*tensors(lengths, lengths, 2, 2), lengths, lengths)
    assert [shape[0] for shape, _ in calls] == [5, 2, 1]
    calls.clear()
    sdpa.sdpa_attention(*tensors([1, 1], [6, 6], 6, 2), [1, 1], [6, 6], causal=True)
    assert calls == [((2, 2, 3, 8), 2)]  # three queries share each of two key heads, which are not repeated


def test_shared_keys_are_not_copied(monkeypatch):
    seen = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, v, **options: seen.append((k, v)) or kernel(q, k, v, **options),
    )
    q, k, v = tensors([4], [9], 6, 2)
    sdpa.sdpa_attention(q, k, v, [4], [9], causal=True)
    assert [x.data_ptr() for x in seen[0]] == [k.data_ptr(), v.data_ptr()]


def test_no_mask_is_larger_than_a_block(monkeypatch):
    masks = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watch(q, k, v, attn_mask=None, **options):
        masks.append(None if attn_mask is None else tuple(attn_mask.shape))
        return kernel(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    monkeypatch.setattr(sdpa, "BLOCK", 8)
    sdpa.sdpa_attention(*tensors([20], [20], 2, 2), [20], [20], causal=True)
    assert masks == [None]
    masks.clear()
    sdpa.sdpa_attention(*tensors([20], [30], 2, 2), [20], [30], causal=True, window=4)
    assert masks == [(8, 11), (8, 11), (4, 7)]  # the keys of a window and a block, whatever the length


def test_weights_are_recorded():
    store = []
    lengths = [3, 5]
    q, k, v = tensors(lengths, lengths, 4, 2)
    out = packed_attend(recording_backend(store), lengths, causal=True, window=2)(q, k, v)
    assert [tuple(weights.shape) for weights in store] == [(4, 3, 3), (4, 5, 5)]
    torch.testing.assert_close(store[1].sum(-1), torch.ones(4, 5))
    assert (store[1] > 0).sum() == 4 * (1 + 2 * 4)
    torch.testing.assert_close(out[3:, 0], store[1][0] @ v[3:, 0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_dropout_drops_and_keeps_the_mean(name):
    torch.manual_seed(0)
    length = 512
    q = k = torch.zeros(length, 2, 4)
    out = get_backend(name)(q, k, torch.ones(length, 2, 4), [length], [length], dropout=0.5)
    assert out.std() > 0.01
    assert abs(out.mean() - 1) < 0.02


@pytest.mark.parametrize("name", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name, dtype):
    q, k, v = tensors([5, 5], [7, 7], 4, 2)
    exact = get_backend("eager")(q, k, v, [5, 5], [7, 7], causal=True)
    found = get_backend(name)(*(x.to(dtype) for x in (q, k, v)), [5, 5], [7, 7], causal=True)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    "q_lengths,k_lengths,causal",
    [([4], [5, 5], False), ([3], [10], False), ([4], [9], False), ([4], [0], False), ([4], [3], True)],
)
def test_lengths_that_do_not_fit(q_lengths, k_lengths, causal):
    q, k, v = tensors([4], [sum(k_lengths) if causal or k_lengths == [0] else 10], 4, 2)
    for name in ("eager", "sdpa"):
        with pytest.raises(InputError):
            get_backend(name)(q, k, v, q_lengths, k_lengths, causal=causal)


def test_heads_that_do_not_divide():
    q, k, v = tensors([4], [4], 3, 2)
    with pytest.raises(InputError, match="3 query heads"):
        get_backend("sdpa")(q, k, v, [4], [4])


def test_unknown_name_lists_the_offered():
    with pytest.raises(UnknownNameError, match="eager, sdpa, flash_attention_2"):
        get_backend("flash")


def test_flash_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(MissingDependencyError, match="pip install flash-attn"):
        get_backend("flash_attention_2")
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match="NVIDIA GPU"):
        get_backend("flash_attention_2")


def package_kernel(q, k, v, *, cu_seqlens_q, cu_seqlens_k, causal, window_size, softmax_scale, **rest):
    """flash_attn_varlen_func by its documentation, over the eager back-end."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    q_lengths, k_lengths = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    assert (rest["max_seqlen_q"], rest["max_seqlen_k"]) == (max(q_lengths), max(k_lengths))
    window = None if window_size == (-1, -1) else window_size[0] + 1
    assert window is None or window_size[1] == 0
    eager = get_backend("eager")
    return eager(q, k, v, q_lengths, k_lengths, causal=causal, window=window, scale=softmax_scale)


@pytest.mark.parametrize("causal,window", RULES)
def test_flash_tells_the_package_the_same(causal, window, monkeypatch):
    fake = SimpleNamespace(flash_attn_varlen_func=package_kernel)
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    arguments = [x.bfloat16() for x in tensors([2, 5], [6, 5], 4, 2)]
    found, expected = (
        get_backend(name)(*arguments, [2, 5], [6, 5], causal=causal, window=window)
        for name in ("flash_attention_2", "eager")
    )
    assert torch.equal(found, expected)


def test_flash_refuses_float32():
    with pytest.raises(UnsupportedError, match="bfloat16"):
        flash_attention(package_kernel, *tensors([2], [2], 2, 2), [2], [2])
