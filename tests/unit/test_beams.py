"""Beam search in the engine, on a toy network; its rules are held against transformers elsewhere."""

import math

import pytest
import torch

from qvl.engine.beams import BeamParams
from qvl.engine.engine import Engine, EngineSettings
from qvl.engine.sequence import Hooks
from qvl.errors import GenerationError
from qvl.types import Prompt, SamplingParams
from support.fake_network import VOCAB, FakeNetwork


def text(*ids):
    return Prompt(list(ids), torch.arange(len(ids)).expand(3, -1))


def search(params, beams, prompt=None, *, settings=None, network=None, **more):
    engine = Engine(network or FakeNetwork(), settings)
    engine.add_beams(prompt or text(1, 2, 3), params, beams, **more)
    (delta,) = engine.run()
    assert not engine.has_work
    assert delta.token_ids == delta.extras["beams"].token_ids[0]
    return delta


def log_probability(ids, prompt=(1, 2, 3)):
    """Of the tokens after the prompt, from greedy runs of the engine that record the logits."""
    total = 0.0
    for n, token in enumerate(ids):
        seen = []
        engine = Engine(FakeNetwork())
        hooks = Hooks(record=lambda sequence, logits, scores, seen=seen: seen.append(logits))
        engine.add(text(*prompt, *ids[:n]), SamplingParams(max_new_tokens=1), hooks=hooks)
        list(engine.run())
        total += float(torch.log_softmax(seen[0], -1)[0, token])
    return total


def test_wide_enough_finds_the_best_answer():
    """As many beams as there are prefixes of two tokens: nothing is lost, so the best of all is found."""
    beams = BeamParams(VOCAB, num_return_sequences=3, length_penalty=0.0)
    result = search(SamplingParams(max_new_tokens=2), beams).extras["beams"]
    every = {(a, b): log_probability((a, b)) for a in range(VOCAB) for b in range(VOCAB)}
    best = sorted(every, key=every.get, reverse=True)[:3]
    assert result.token_ids == tuple(best)
    assert result.scores_R.tolist() == pytest.approx([every[ids] for ids in best], abs=1e-5)


def test_score_is_the_log_probability_over_the_length():
    for penalty in (0.0, 1.0, 2.0):
        beams = BeamParams(3, num_return_sequences=3, length_penalty=penalty)
        result = search(SamplingParams(max_new_tokens=6), beams).extras["beams"]
        for ids, score in zip(result.token_ids, result.scores_R.tolist(), strict=True):
            assert score == pytest.approx(log_probability(ids) / len(ids) ** penalty, abs=1e-5)


def test_scores_and_parents_tell_the_same_story():
    """The parents name the running beam of each token: its recorded scores add up to the answer's."""
    beams = BeamParams(4, num_return_sequences=4, keep_scores=True, keep_logits=True)
    result = search(SamplingParams(max_new_tokens=8), beams).extras["beams"]
    assert [t.shape for t in result.step_scores] == [(4, VOCAB)] * 8
    for ids, parents, score in zip(
        result.token_ids, result.beam_indices, result.scores_R.tolist(), strict=True
    ):
        steps = enumerate(zip(ids, parents, strict=True))
        total = sum(float(result.step_scores[n][parent, token]) for n, (token, parent) in steps)
        assert total / len(ids) == pytest.approx(score, abs=1e-5)
    torch.testing.assert_close(torch.log_softmax(result.step_logits[3], -1), result.step_scores[3])


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_beside_others_and_in_chunks_it_stays_the_same(early_stopping):
    prompt, beams = text(*range(12)), BeamParams(3, 2, early_stopping=early_stopping)
    params = SamplingParams(max_new_tokens=10, eos_token_ids=(4, 7), repetition_penalty=1.2)
    expected = search(params, beams, prompt).extras["beams"]
    engine = Engine(FakeNetwork(), EngineSettings(max_step_tokens=8))
    others = [engine.add(text(5, n), SamplingParams(max_new_tokens=15)) for n in range(3)]
    number = engine.add_beams(prompt, params, beams)
    deltas = {d.sequence_id: d for d in engine.run() if d.finish_reason}
    assert set(deltas) == {*others, number}
    got = deltas[number].extras["beams"]
    assert got.token_ids == expected.token_ids and got.beam_indices == expected.beam_indices
    torch.testing.assert_close(got.scores_R, expected.scores_R)


def test_ends():
    beams = BeamParams(3, 3, early_stopping=True)
    everything = tuple(range(VOCAB))
    delta = search(SamplingParams(max_new_tokens=10, eos_token_ids=everything), beams)
    assert [len(ids) for ids in delta.extras["beams"].token_ids] == [1, 1, 1]
    assert delta.finish_reason == "stop"
    assert search(SamplingParams(max_new_tokens=4), beams).finish_reason == "length"


def test_hooks_and_strategies():
    asked = []

    def stop(sequence, scores_1V):
        asked.append(len(sequence.output_ids))
        return len(sequence.output_ids) == 3

    def never_five(sequence, scores_1V):
        scores_1V[:, 5] = -math.inf
        return scores_1V

    plain = search(SamplingParams(max_new_tokens=8), BeamParams(2, 2)).extras["beams"]
    banned = plain.token_ids[0][0]
    params = SamplingParams(max_new_tokens=8, suppress_tokens=(banned,))
    progress = []
    hooks = Hooks(process=never_five, stop=stop, progress=lambda *pair: progress.append(pair))
    delta = search(params, BeamParams(2, 2), hooks=hooks)
    result = delta.extras["beams"]
    assert delta.finish_reason == "length"  # nothing ended before the longest
    assert all(len(ids) == 3 and not {5, banned} & set(ids) for ids in result.token_ids)
    assert asked == [1] * 4 + [2] * 4 + [3] * 4
    assert progress == [(3, 3)]


def test_drawn_beams_follow_the_seed():
    def draw(seed):
        params = SamplingParams(max_new_tokens=12, temperature=30.0, seed=seed)
        return search(params, BeamParams(3)).token_ids

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(5)}) > 1


def test_caches_are_copied_once_and_then_handed_on(monkeypatch):
    """When the beams part, one for each but the first; later a second child takes over a dropped beam's."""
    from qvl.engine.kv import SequenceKV

    copies = []
    real = SequenceKV.copy
    monkeypatch.setattr(SequenceKV, "copy", lambda kv: copies.append(kv) or real(kv))
    result = search(SamplingParams(max_new_tokens=6), BeamParams(3, 1, keep_scores=True), keep_kv=True)
    kvs = result.extras["beams"].kvs
    assert len({id(kv) for kv in kvs}) == 3 and [kv.length for kv in kvs] == [3 + 5] * 3
    assert len(copies) == 2


def test_refusals():
    for wrong in ({"num_beams": 0}, {"num_beams": 2, "num_return_sequences": 3}):
        with pytest.raises(GenerationError, match="num_return_sequences"):
            BeamParams(**wrong)
    with pytest.raises(GenerationError, match="early_stopping"):
        BeamParams(2, early_stopping="sometimes")
    with pytest.raises(GenerationError, match="do not fit"):
        search(SamplingParams(), BeamParams(9), settings=EngineSettings(max_step_tokens=8))


def test_abort_of_a_search():
    engine = Engine(FakeNetwork())
    number = engine.add_beams(text(1, 2), SamplingParams(), BeamParams(2))
    engine.step()
    assert engine.abort(number)
    (delta,) = engine.run()
    assert delta.finish_reason == "abort" and delta.extras["beams"] is None
