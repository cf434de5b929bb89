"""Attention of a step over caches: kernel and torch agree, whoever asks and however keys are kept."""

import pytest
import torch

from qvl.config import Qwen2_5_VLConfig
from qvl.engine import attends
from qvl.engine.attends import cached_attends
from qvl.engine.kv import SequenceKV
from qvl.network.vlm import CausalLM
from qvl.ops.attention import get_backend
from qvl.ops.kernels import load
from support.tiny import random_ids, tiny_settings

LAYERS, H, G, D = 3, 4, 2, 20
STEPS = ((5, 70, 1), (1, 1, 1), (3, 1, 9), (0, 2, 1))


@pytest.fixture(params=["off", ""], ids=["torch", "kernels"])
def path(request, monkeypatch):
    """Either way of attending; with kernels, how often they were called."""
    if request.param == "" and load("") is None:
        pytest.skip("qvl was installed without its kernels: no C++ compiler")
    monkeypatch.setenv("QVL_KERNELS", request.param)
    calls = []
    real = attends.CachedAttention.__call__
    monkeypatch.setattr(
        attends.CachedAttention, "__call__", lambda self, *args: calls.append(args[0]) or real(self, *args)
    )
    return request.param, calls


def make(stored=None, dtype=torch.float32):
    return SequenceKV(LAYERS, G, D, dtype=dtype, device="cpu", stored=stored)


def tokens(count, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, heads, D, generator=generator).to(dtype) for heads in (H, G, G)]


def run_steps(kvs, *, backend="sdpa", samples=None, window=None, dtype=torch.float32):
    """Outputs of the first and the last layer, of all steps."""
    first, last = [], []
    for step, counts in enumerate(STEPS):
        q, k, v = tokens(sum(counts), step, dtype)
        asking = None if samples is None else samples[step]
        layers = cached_attends(get_backend(backend), kvs, counts, [window] * LAYERS, asking)
        for attend in layers[:-1]:
            out = attend(q, k, v)
        first.append(out)
        if asking is not None:
            pieces = zip(q.split(counts), asking, strict=True)
            q = torch.cat([piece[len(piece) - n :] for piece, n in pieces])
        last.append(layers[-1](q, k, v))
        for kv, count in zip(kvs, counts, strict=True):
            kv.advance(count)
    return first, last


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_the_last_layer_answers_only_those_who_ask(path, backend, window):
    samples = ((1, 0, 1), (1, 1, 1), (3, 1, 2), (0, 0, 1))
    _, whole = run_steps([make() for _ in range(3)], backend=backend, window=window)
    kvs = [make() for _ in range(3)]
    _, asked = run_steps(kvs, backend=backend, samples=samples, window=window)
    for counts, asking, all_rows, rows in zip(STEPS, samples, whole, asked, strict=True):
        pieces = zip(all_rows.split(counts), asking, strict=True)
        wanted = torch.cat([piece[len(piece) - n :] for piece, n in pieces])
        torch.testing.assert_close(rows, wanted, rtol=1e-5, atol=1e-6)
    assert [kv.length for kv in kvs] == [9, 74, 12]
    assert bool(path[1]) == (path[0] == "" and backend == "sdpa")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("stored", [None, torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_kernels_write_and_read_what_torch_does(monkeypatch, stored, dtype):
    if load("") is None:
        pytest.skip("qvl was installed without its kernels: no C++ compiler")
    kvs, outs = {}, {}
    for name in ("off", ""):
        monkeypatch.setenv("QVL_KERNELS", name)
        kvs[name] = [make(stored, dtype) for _ in range(3)]
        outs[name] = run_steps(kvs[name], dtype=dtype)[1]
    for a, b in zip(kvs["off"], kvs[""], strict=True):
        for layer in range(LAYERS):
            for mine, theirs in zip(a.read(layer), b.read(layer), strict=True):
                assert mine.dtype == dtype
                assert torch.equal(mine, theirs)
        assert a.nbytes == b.nbytes
    off = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for a, b in zip(outs["off"], outs[""], strict=True):
        torch.testing.assert_close(a, b, rtol=off, atol=off)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.int8], ids=str)
def test_a_cache_in_fewer_bits_is_copied_cut_and_followed(path, stored):
    kvs = [make(stored) for _ in range(3)]
    run_steps(kvs)
    twin, spare = kvs[1].copy(), make(stored)
    spare.follow(kvs[1], 0)
    twin.truncate(10)
    twin.follow(kvs[1], 10)
    for other in (twin, spare):
        for layer in range(LAYERS):
            for a, b in zip(other.read(layer), kvs[1].read(layer), strict=True):
                assert torch.equal(a, b)
    q, k, v = tokens(1, 9)
    outs = [
        cached_attends(get_backend("sdpa"), [kv], [1], [None])[0](q, k, v) for kv in (kvs[1], twin, spare)
    ]
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


def test_gradients_go_past_the_kernel(path):
    kv = make()
    q, k, v = (t.requires_grad_() for t in tokens(3, 0))
    out = cached_attends(get_backend("sdpa"), [kv], [3], [None] * LAYERS)[0](q, k, v)
    out.sum().backward()
    assert not path[1]
    assert all(t.grad is not None for t in (q, k, v))


def test_wanted_rows_of_the_decoder_are_those_of_a_whole_pass():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CausalLM(Qwen2_5_VLConfig(**tiny_settings()))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    decoder, lengths = model.eval().model.language_model, (6, 3)
    config = decoder.config
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(3, -1)
    outputs, caches, states = [], [], []
    for rows, samples in ((None, None), (torch.tensor([5]), (1, 0))):
        kvs = [
            SequenceKV(
                config.num_hidden_layers,
                config.num_key_value_heads,
                config.head_dim,
                dtype=torch.float32,
                device="cpu",
            )
            for _ in lengths
        ]
        kept: list[torch.Tensor] = []
        with torch.no_grad():
            outputs.append(
                decoder.packed(
                    model.model.embed(random_ids(9)),
                    positions,
                    cached_attends(get_backend("sdpa"), kvs, lengths, decoder.windows, samples),
                    lengths=lengths,
                    hidden_states=kept,
                    rows_N=rows,
                )
            )
        for kv, count in zip(kvs, lengths, strict=True):
            kv.advance(count)
        caches.append([t for kv in kvs for layer in range(kv.num_layers) for t in kv.read(layer)])
        states.append(kept)
    torch.testing.assert_close(outputs[1], outputs[0][[5]])
    for whole, asked in zip(*caches, strict=True):
        torch.testing.assert_close(whole, asked)
    for whole, asked in zip(states[0][:-1], states[1][:-1], strict=True):
        torch.testing.assert_close(whole, asked)
