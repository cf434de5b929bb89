"""The cache of one sequence, and attention through it."""

import pytest
import torch

from qvl.engine.attends import cached_attends
from qvl.engine.kv import SequenceKV
from qvl.errors import CacheError
from qvl.ops.attention import get_backend, packed_attend

LAYERS, G, D = 2, 2, 4


def make(**settings):
    return SequenceKV(LAYERS, G, D, dtype=torch.float32, device="cpu", **settings)


def fill(kv, count, seed=0):
    """Write ``count`` random tokens to every layer; what was written, per layer (k, v)."""
    generator = torch.Generator().manual_seed(seed)
    written = []
    for layer in range(LAYERS):
        k, v = torch.randn(2, count, G, D, generator=generator)
        kv.write(layer, k, v)
        written.append((k, v))
    kv.advance(count)
    return written


def test_what_was_written_is_read():
    kv = make()
    first, second = fill(kv, 3, seed=1), fill(kv, 2, seed=2)
    assert kv.length == 5
    for layer in range(LAYERS):
        for which in (0, 1):
            expected = torch.cat([first[layer][which], second[layer][which]])
            assert torch.equal(kv.read(layer)[which], expected)


def test_write_shows_old_and_new_without_a_copy():
    kv = make(capacity=8)
    fill(kv, 3)
    k, v = kv.write(0, torch.ones(2, G, D), torch.ones(2, G, D))
    assert k.shape == v.shape == (5, G, D)
    kv.advance(2)
    assert kv.read(0)[0].data_ptr() == k.data_ptr()
    assert k.transpose(0, 1)[0].is_contiguous()  # a head's keys lie side by side


def test_room_doubles():
    kv = make()
    sizes = set()
    for i in range(200):
        fill(kv, 1, seed=i)
        sizes.add(kv.capacity)
    assert sizes == {64, 128, 256}
    assert kv.nbytes == 2 * LAYERS * 256 * G * D * 4


def test_a_wall_is_an_error():
    kv = make(capacity=4, max_capacity=4)
    fill(kv, 4)
    with pytest.raises(CacheError, match="at most 4 tokens and 5 are needed"):
        fill(kv, 1)
    assert kv.length == 4
    with pytest.raises(CacheError):
        make(capacity=5, max_capacity=4)


def test_growth_stops_at_the_wall():
    kv = make(max_capacity=70)
    fill(kv, 60)
    fill(kv, 5)
    assert kv.capacity == 70


def test_truncate_and_copy():
    kv = make()
    written = fill(kv, 5)
    twin = kv.copy()
    kv.truncate(2)
    fill(kv, 3, seed=9)
    assert twin.length == 5
    assert torch.equal(twin.read(1)[1], written[1][1])
    assert torch.equal(kv.read(1)[1][:2], written[1][1][:2])
    assert not torch.equal(kv.read(1)[1][2:], written[1][1][2:])
    for wrong in (-1, 6):
        with pytest.raises(CacheError):
            kv.truncate(wrong)


def test_one_token_appended_is_one_token_written():
    """Past the first doubling; and another dtype is refused as it is by `write`."""
    written, appended = make(capacity=2), make(capacity=2)
    for i in range(70):
        k, v = torch.randn(2, 1, G, D, generator=torch.Generator().manual_seed(i))
        for layer in range(LAYERS):
            expected = written.write(layer, k, v)
            got = appended.append(layer, k, v)
            assert all(torch.equal(a.transpose(0, 1), b) for a, b in zip(got, expected, strict=True))
        written.advance(1)
        appended.advance(1)
    assert appended.capacity == written.capacity
    with pytest.raises(CacheError, match=r"float32.*float16"):
        appended.append(0, k.half(), v.half())


def test_following_another_cache_that_begins_alike():
    leader, follower = make(), make(capacity=4)
    for kv in (leader, follower):
        fill(kv, 3, seed=1)
    fill(leader, 80, seed=2)
    fill(follower, 1, seed=3)
    follower.follow(leader, 3)
    assert follower.length == 83
    for layer in range(LAYERS):
        for mine, theirs in zip(follower.read(layer), leader.read(layer), strict=True):
            assert torch.equal(mine, theirs)
    before = leader.read(0)[0].clone()
    fill(follower, 1)
    assert leader.length == 83 and torch.equal(leader.read(0)[0], before)


def test_advance_needs_written_tokens():
    with pytest.raises(CacheError):
        make().advance(1)


def test_keys_of_another_model_or_dtype():
    kv = make()
    with pytest.raises(CacheError, match="another model"):
        kv.write(0, torch.ones(1, G + 1, D), torch.ones(1, G + 1, D))
    fill(kv, 1)
    with pytest.raises(CacheError, match="float16"):
        kv.write(0, torch.ones(1, G, D).half(), torch.ones(1, G, D).half())


def test_an_empty_cache_takes_the_dtype_of_the_keys():
    kv = make(capacity=8)
    for layer in range(LAYERS):
        k, _ = kv.write(layer, torch.ones(1, G, D).bfloat16(), torch.ones(1, G, D).bfloat16())
        assert k.dtype == torch.bfloat16
    assert kv.capacity == 8


def test_a_cache_filled_in_inference_mode_can_be_used_outside():
    kv = make()
    with torch.inference_mode():
        fill(kv, 65)
    fill(kv, 1)
    assert kv.length == 66


@pytest.mark.parametrize("stored", [None, torch.bfloat16, torch.int8], ids=str)
def test_just_so_much_room(stored):
    """Made larger and smaller to the token, or copied in part: the tokens stay, and bytes are counted."""
    kv = make(stored=stored)
    fill(kv, 10)
    before = [kv.read(layer) for layer in range(LAYERS)]
    for capacity, wanted in ((23, 23), (12, 12), (3, 10)):
        kv.resize(capacity)
        assert kv.capacity == wanted and kv.nbytes == wanted * kv.token_bytes
    twin = kv.copy(6, 17)
    assert (twin.length, twin.capacity, kv.length) == (6, 17, 10)
    for layer in range(LAYERS):
        for mine, copied, was in zip(kv.read(layer), twin.read(layer), before[layer], strict=True):
            assert torch.equal(mine, was) and torch.equal(copied, was[:6])
    fill(twin, 5)  # one does not write into the other
    assert torch.equal(kv.read(0)[0], before[0][0])
    size = {None: 128, torch.bfloat16: 64, torch.int8: 48}[stored]
    assert make(stored=stored).token_bytes == kv.token_bytes == size


def test_a_wall_holds_when_room_is_asked_for():
    kv = make(max_capacity=8)
    kv.resize(100)
    assert kv.capacity == 8


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_attention_in_steps_equals_attention_at_once(name, window):
    """Two sequences of 7 and 5 tokens, in steps of changing sizes, against one cacheless pass over each."""
    backend, totals = get_backend(name), (7, 5)
    q, k, v = (torch.randn(12, h, D, generator=torch.Generator().manual_seed(h)) for h in (4, 2, 2))
    expected = packed_attend(backend, totals, causal=True, window=window)(q, k, v)
    kvs = [make(), make()]
    rows = [[*range(7)], [*range(7, 12)]]
    got = torch.empty_like(expected)
    for counts in ((3, 1), (1, 1), (1, 2), (1, 1), (1, 0)):
        picked = [i for row, count in zip(rows, counts, strict=True) for i in row[:count]]
        for attend in cached_attends(backend, kvs, counts, [window] * LAYERS):
            got[picked] = attend(q[picked], k[picked], v[picked])
        for kv, row, count in zip(kvs, rows, counts, strict=True):
            kv.advance(count)
            del row[:count]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_gradients_reach_the_new_keys_and_leave_the_past_alone():
    kv = make()
    past = fill(kv, 3)
    q, k, v = (torch.randn(2, h, D, requires_grad=True) for h in (4, 2, 2))
    attend = cached_attends(get_backend("sdpa"), [kv], [2], [None] * LAYERS)[0]
    out = attend(q, k, v)
    kv.write(1, k, v)
    kv.advance(2)
    fill(kv, 1)  # writing on must not disturb the graph
    out.sum().backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in (q, k, v))
    assert not kv.read(0)[0].requires_grad
    assert torch.equal(kv.read(0)[0][:3], past[0][0])
    assert torch.equal(kv.read(0)[0][3:5], k.detach())
