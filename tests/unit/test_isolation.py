"""What goes wrong for one request ends that one; the others never notice."""

import pytest
import torch

from qvl.engine.beams import BeamParams
from qvl.engine.engine import Engine, EngineSettings
from qvl.engine.sequence import Hooks
from qvl.errors import InputError, NonFiniteError
from qvl.types import Grid, Medium, Prompt, SamplingParams, Span
from support.fake_network import PATCH_VALUES, VOCAB, FakeNetwork

SETTINGS = [EngineSettings(), EngineSettings(5, kv_bytes=64 * 400, keep_prefixes=True, step_seconds=1e-9)]
KINDS = [
    {},
    {"temperature": 0.9, "seed": 3},
    {"repetition_penalty": 1.4},
    {"temperature": 0.9, "seed": 4, "top_k": 6},
]


class Picky(FakeNetwork):
    """Refuses pictures with a negative first value, as a tower refuses patches that do not fit."""

    def encode(self, patches_PC, grids):
        if bool((patches_PC[:, 0] == -9).any()):
            raise InputError("these patches do not fit")
        return super().encode(patches_PC, grids)


def text(*ids):
    return Prompt(list(ids), torch.arange(len(ids)).expand(3, -1))


def picture(seed, *, bad=False):
    grid = Grid(1, 4, 4)
    patches = torch.randn(grid.patches, PATCH_VALUES, generator=torch.Generator().manual_seed(seed))
    if bad:
        patches[3, 0] = -9
    ids = [1, *[0] * 4, 2, seed]
    return Prompt(
        ids, torch.arange(7).expand(3, -1), 0, (Span("image", 1, 4),), (Medium("image", grid, patches),)
    )


def run(engine, *requests):
    """Answers, ends and errors by request; of each a prompt, params and hooks."""
    for prompt, params, hooks in requests:
        engine.add(prompt, SamplingParams(max_new_tokens=8, **params), hooks=hooks)
    answers, ends = {n: [] for n in range(len(requests))}, {}
    for delta in engine.run():
        answers[delta.sequence_id] += delta.token_ids
        if delta.finish_reason:
            ends[delta.sequence_id] = (delta.finish_reason, delta.extras.get("error"))
            assert delta.extras["sequence"].kv is None
    assert engine.stats().kv_bytes == engine.stats().kept_bytes and not engine._requests
    return answers, ends


def alone(prompt, params):
    return run(Engine(Picky()), (prompt, params, None))[0][0]


def raising_at(count):
    def hook(*args):
        sequence = args[0]
        if len(getattr(sequence, "output_ids", "")) == count:
            raise ZeroDivisionError("at my own fault")
        return args[1] if len(args) == 2 and isinstance(args[1], torch.Tensor) else None

    return hook


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "served"])
@pytest.mark.parametrize(("hook", "said"), [("process", 3), ("record", 3), ("on_tokens", 3), ("progress", 0)])
def test_a_hook_that_raises(settings, hook, said):
    """Among others of every kind, some of which share a tensor with it."""
    own = (lambda done, total: 1 / 0) if hook == "progress" else raising_at(3)
    requests = [(text(1, 2, n), kind, None) for n, kind in enumerate(KINDS)]
    requests.insert(2, (text(7, 8), KINDS[1], Hooks(**{hook: own})))
    answers, ends = run(Engine(Picky(), settings), *requests)
    assert ends[2][0] == "error" and isinstance(ends[2][1], ZeroDivisionError)
    assert answers[2] == alone(*requests[2][:2])[:said]
    for n in (0, 1, 3, 4):
        assert ends[n] == ("length", None) and answers[n] == alone(*requests[n][:2])


@pytest.mark.parametrize("kind", KINDS[1:], ids=["sampled", "penalised", "top-k"])
@pytest.mark.parametrize("ruined", ["not a number", "too narrow"])
def test_scores_that_spoil_the_tensor_they_share(kind, ruined):
    """Scores without a likeliest token, or of another width than everybody's."""

    def process(sequence, scores_1V):
        if len(sequence.output_ids) != 2:
            return scores_1V
        return scores_1V[:, :3] if ruined == "too narrow" else scores_1V.fill_(float("nan"))

    requests = [(text(n, 2), kind, Hooks(process=process) if n == 1 else None) for n in range(3)]
    answers, ends = run(Engine(Picky()), *requests)
    assert answers[0] == alone(text(0, 2), kind) and answers[2] == alone(text(2, 2), kind)
    if ruined == "not a number" and "temperature" in kind:
        assert ends[1][0] == "error" and len(answers[1]) == 2
    else:
        assert ends[1][0] == "length"


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "served"])
def test_numbers_that_are_not_finite(settings):
    """A token whose embedding is broken, in one prompt of three."""
    network = Picky()
    network.table[VOCAB - 1] = float("nan")
    requests = [
        (text(*ids), kind, None)
        for ids, kind in zip([(1, 2), (3, VOCAB - 1, 4), (5, 6)], KINDS[:3], strict=True)
    ]
    expected = [run(Engine(network), r)[0][0] for r in (requests[0], requests[2])]
    answers, ends = run(Engine(network, settings), *requests)
    assert ends[1][0] == "error" and isinstance(ends[1][1], NonFiniteError) and answers[1] == []
    assert [answers[0], answers[2]] == expected


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "served"])
def test_a_picture_that_cannot_be_encoded(settings):
    """All pictures of a step go through the tower together; when that fails, each goes by itself."""
    requests = [
        (picture(3), {}, None),
        (picture(4, bad=True), {}, None),
        (picture(5), {}, None),
        (text(1), {}, None),
    ]
    answers, ends = run(Engine(Picky(), settings), *requests)
    assert ends[1][0] == "error" and "do not fit" in str(ends[1][1])
    for n in (0, 2, 3):
        assert answers[n] == alone(*requests[n][:2])


def test_a_search():
    engine = Engine(Picky())
    engine.add_beams(text(1, 2), SamplingParams(), BeamParams(3), hooks=Hooks(stop=lambda s, x: 1 / 0))
    engine.add(text(3, 4), SamplingParams(max_new_tokens=8))
    ends = {d.sequence_id: d for d in engine.run() if d.finish_reason}
    assert ends[0].finish_reason == "error" and isinstance(ends[0].extras["error"], ZeroDivisionError)
    assert ends[1].extras["sequence"].output_ids == alone(text(3, 4), {})


def test_no_memory_for_a_cache():
    engine = Engine(Picky())
    prepare = engine.runner.prepare

    def short(sequence):
        if sequence.id == 1:
            raise RuntimeError("not enough memory")
        prepare(sequence)

    engine.runner.prepare = short
    answers, ends = run(engine, (text(1, 2), {}, None), (text(3, 4), {}, None))
    assert ends[1][0] == "error" and answers[0] == alone(text(1, 2), {})


def test_only_those_who_still_need_a_picture():
    """Somebody whose tokens are past it goes on, though it cannot be encoded for another."""
    engine = Engine(Picky(), EngineSettings(step_seconds=1e-9))
    prompt = picture(3)
    media = (Medium("image", Grid(1, 4, 4), prompt.media[0].patches_PC.clone(), digest=b"x"),)
    prompt = Prompt(prompt.token_ids, prompt.positions_3T, 0, prompt.spans, media)
    engine.add(prompt, SamplingParams(max_new_tokens=12))
    while not engine.sequence(0).output_ids:
        engine.step()
    media[0].patches_PC[0, 0] = -9
    engine.add(prompt, SamplingParams(max_new_tokens=12))
    ends = {d.sequence_id: d.finish_reason for d in engine.run() if d.finish_reason}
    assert ends == {0: "length", 1: "error"}


def test_a_pass_that_fails_takes_its_own_requests_along():
    """Nobody's fault: the step's requests go, their memory too, and whoever waits goes on."""
    network = Picky()
    engine = Engine(network, EngineSettings(8, 1, kv_bytes=64 * 100))
    first = engine.sequence(engine.add(text(1, 2), SamplingParams(max_new_tokens=8)))
    second = engine.add(text(3, 4), SamplingParams(max_new_tokens=8))
    embed, network.model.embed = network.model.embed, lambda *args: 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine.step()
    assert engine.stats().kv_bytes == 0 and engine.scheduler.memory.reserved == 0 and first.kv is None
    network.model.embed = embed
    tokens = [t for d in engine.run() for t in d.token_ids if d.sequence_id == second]
    assert tokens == alone(text(3, 4), {})
