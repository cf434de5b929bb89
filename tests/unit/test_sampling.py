"""The strategies one by one, on scores small enough to work out by hand."""

import math
from dataclasses import fields

import pytest
import torch

from qvl.engine.sampler import TokenBuffer
from qvl.errors import GenerationError
from qvl.ops import penalties, sampling
from qvl.ops.sampling import strategies
from qvl.types import SamplingParams

SCORES = torch.tensor([[3.0, 1.0, 0.0, -1.0, -2.0, 2.0]])


def kept(strategy, scores=SCORES, ids=(), prompt_length=0):
    """Indices that the strategy leaves possible."""
    before = scores.clone()
    out = strategy(scores, torch.tensor(ids, dtype=torch.long), prompt_length)
    assert torch.equal(scores, before)  # never changed in place
    assert torch.equal(strategy(scores[0], torch.tensor(ids, dtype=torch.long), prompt_length), out[0])
    return [i for i, score in enumerate(out[0].tolist()) if score != -math.inf]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (sampling.TopK(2), [0, 5]),
        (sampling.TopK(99), [0, 1, 2, 3, 4, 5]),
        (sampling.TopK(1, keep=3), [0, 1, 5]),
        (sampling.TopP(0.5), [0]),
        (sampling.TopP(0.8), [0, 5]),
        (sampling.TopP(0.0), [0]),
        (sampling.TopP(0.0, keep=2), [0, 5]),
        (sampling.MinP(0.3), [0, 5]),
        (sampling.MinP(0.9, keep=2), [0, 5]),
        (sampling.EpsilonCutoff(0.05), [0, 1, 5]),
        (sampling.EpsilonCutoff(0.99), [0]),
        (sampling.EtaCutoff(0.2), [0, 5]),
        (sampling.TypicalP(0.2), [5]),
        (penalties.Suppress((0, 5)), [1, 2, 3, 4]),
        (penalties.ForcedLast((4,), 1), [4]),
        (penalties.MinNewTokens(1, (0, 99)), [1, 2, 3, 4, 5]),
        (penalties.MinLength(1, (0,)), [1, 2, 3, 4, 5]),
    ],
    ids=repr,
)
def test_what_is_left(strategy, expected):
    assert kept(strategy) == expected


@pytest.mark.parametrize(
    ("size", "ids", "banned"),
    [(1, [2, 4], {2, 4}), (2, [1, 2, 5, 1], {2}), (3, [1, 2, 3, 1, 2, 4, 1, 2], {3, 4}), (4, [1, 2], set())],
)
def test_no_ngram_twice(size, ids, banned):
    assert set(range(6)) - set(kept(penalties.NoRepeatNgram(size), ids=ids)) == banned


def test_no_ngram_of_the_prompt():
    ids = [1, 2, 3, 1, 5, 1]
    assert set(range(6)) - set(
        kept(penalties.NoRepeatNgram(2, prompt_only=True), ids=ids, prompt_length=3)
    ) == {2}


def test_repetition_weakens_either_sign():
    ids = torch.tensor([0, 3, 3])
    out = penalties.RepetitionPenalty(2.0)(SCORES, ids, 3)
    assert out.tolist() == [[1.5, 1.0, 0.0, -2.0, -2.0, 2.0]]
    out = penalties.PromptReward(2.0)(SCORES, torch.tensor([0, 3, 4]), 2)
    assert out.tolist() == [[6.0, 1.0, 0.0, -0.5, -2.0, 2.0]]


def test_presence_and_frequency_count_the_answer_alone():
    ids = torch.tensor([0, 5, 3, 3, 1])  # the first two are the prompt
    out = penalties.Occurrence(0.5, 0.25)(SCORES, ids, 2)
    assert out.tolist() == [[3.0, 0.25, 0.0, -2.0, -2.0, 2.0]]
    assert penalties.Occurrence(-1.0, 0.0)(SCORES, ids, 2).tolist() == [[3.0, 2.0, 0.0, 0.0, -2.0, 2.0]]
    assert torch.equal(penalties.Occurrence(0.5, 0.25)(SCORES, ids, 5), SCORES)
    assert kept(penalties.Occurrence(2.0, 2.0), ids=[1, 1, 2], prompt_length=0) == list(range(6))


def test_bias_waits_for_its_beginning():
    bias = penalties.SequenceBias((((1, 2, 3), -5.0), ((5,), 1.0), ((2, 3), 0.5)))

    def change(*ids):
        return (bias(SCORES, torch.tensor(ids, dtype=torch.long), 0) - SCORES)[0].tolist()

    assert change() == [0, 0, 0, 0, 0, 1]
    assert change(4, 2) == [0, 0, 0, 0.5, 0, 1]
    assert change(4, 1, 2) == [0, 0, 0, -4.5, 0, 1]
    assert change(2) == [0, 0, 0, 0, 0, 1]  # as in transformers: not before there are as many tokens
    assert change(1, 2) == [0, 0, 0, 0.5, 0, 1]


def test_length_decay_starts_after_its_index():
    decay = penalties.LengthDecay(1, 2.0, (0,))
    assert torch.equal(decay(SCORES, torch.zeros(3, dtype=torch.long), 2), SCORES)
    assert decay(SCORES, torch.zeros(5, dtype=torch.long), 2)[0, 0] == 3.0 + 3.0 * (2.0**2 - 1)


def test_order_and_neutral_values():
    assert not strategies(SamplingParams(temperature=1.0), vocab_size=6)
    assert not strategies(SamplingParams(), vocab_size=6)
    params = SamplingParams(
        temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, typical_p=0.9, repetition_penalty=1.1,
        no_repeat_ngram_size=2, bad_words_ids=((1, 2), (4,)), min_length=3, min_new_tokens=2,
        eos_token_ids=(4,), renormalize_logits=True,
    )  # fmt: skip
    made = strategies(params, vocab_size=6)
    assert [type(s).__name__ for s in made.before] == [
        "RepetitionPenalty", "NoRepeatNgram", "SequenceBias", "MinLength", "MinNewTokens",
    ]  # fmt: skip
    assert [type(s).__name__ for s in made.after] == [
        "Temperature", "TopK", "TopP", "MinP", "TypicalP", "Normalize",
    ]  # fmt: skip
    assert made.before[2].biases == (((1, 2), -math.inf),)  # forbidding the end would make endless answers


def test_greedy_does_not_truncate():
    made = strategies(SamplingParams(top_k=3, top_p=0.5, repetition_penalty=1.1), vocab_size=6)
    assert [type(s).__name__ for s in (*made.before, *made.after)] == ["RepetitionPenalty"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"typical_p": 0.0},
        {"epsilon_cutoff": 2.0},
        {"eta_cutoff": -1.0},
        {"repetition_penalty": 0.0},
        {"presence_penalty": math.inf},
        {"frequency_penalty": math.nan},
        {"encoder_repetition_penalty": -1.0},
        {"no_repeat_ngram_size": -1},
        {"bad_words_ids": ((),)},
        {"bad_words_ids": ((1, 6),)},
        {"sequence_bias": (((-1,), 1.0),)},
        {"suppress_tokens": (6,)},
        {"forced_eos_token_ids": (7,)},
    ],
    ids=repr,
)
def test_values_out_of_range(wrong):
    (name,) = wrong
    params = SamplingParams(**{"temperature": 0.9, "eos_token_ids": (1,), **wrong})
    with pytest.raises(GenerationError, match=name.removesuffix("_ids").removesuffix("_size")):
        strategies(params, vocab_size=6)


def test_every_field_does_something():
    """A field that is not neutral changes what is made of the params, or belongs to the engine."""
    engines = {
        "max_new_tokens",
        "seed",
        "prompt_lookup_num_tokens",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "eos_token_ids",
    }
    values = {
        "bad_words_ids": ((1,),),
        "sequence_bias": (((1,), 2.0),),
        "suppress_tokens": (1,),
        "begin_suppress_tokens": (1,),
        "forced_bos_token_id": 1,
        "forced_eos_token_ids": (1,),
        "exponential_decay_length_penalty": (1, 2.0),
        "temperature": 0.5,
    }
    base = {"temperature": 1.0, "eos_token_ids": (0,)}
    for field in fields(SamplingParams):
        if field.name not in engines:
            default = field.default
            value = values.get(
                field.name,
                (not default) if isinstance(default, bool) else 0.5 if isinstance(default, float) else 2,
            )
            assert strategies(SamplingParams(**{**base, field.name: value}), vocab_size=6), field.name


def test_token_buffer_grows():
    buffer = TokenBuffer([1, 2], "cpu", room=1)
    for token in range(10):
        buffer.append(token)
    twin = buffer.copy()
    twin.append(99)
    assert buffer.ids_T.tolist() == [1, 2, *range(10)]
    assert twin.ids_T.tolist() == [1, 2, *range(10), 99]
