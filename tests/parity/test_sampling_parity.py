"""Scores after our strategies equal those after transformers' logits processors, bit for bit."""

import pytest
import torch

from qvl.ops import penalties, sampling
from qvl.types import SamplingParams

pytestmark = pytest.mark.oracle
V, PROMPT = 60, 9
EOS = (3, 17)


def theirs(name, *args, **kwargs):
    from transformers.generation import logits_process

    return getattr(logits_process, name)(*args, **kwargs)


IDS = [4, 3, 7, 4, 3, 7, 9, 4, 3, 11, 4, 3]
BIAS = (((4, 3, 9), 2.5), ((5,), -1.5), ((3, 8), -4.0), ((1, 2), 3.0))
NEW = len(IDS) - PROMPT

PAIRS = {
    "temperature": (sampling.Temperature(0.7), ("TemperatureLogitsWarper", 0.7)),
    "tiny temperature": (sampling.Temperature(1e-6), ("TemperatureLogitsWarper", 1e-6)),
    "top_k": (sampling.TopK(7), ("TopKLogitsWarper", 7)),
    "top_k kept": (sampling.TopK(2, keep=5), ("TopKLogitsWarper", 2, -float("inf"), 5)),
    "top_p": (sampling.TopP(0.8), ("TopPLogitsWarper", 0.8)),
    "top_p kept": (sampling.TopP(0.01, keep=3), ("TopPLogitsWarper", 0.01, -float("inf"), 3)),
    "min_p": (sampling.MinP(0.2), ("MinPLogitsWarper", 0.2)),
    "min_p kept": (sampling.MinP(0.99, keep=3), ("MinPLogitsWarper", 0.99, -float("inf"), 3)),
    "typical_p": (sampling.TypicalP(0.6), ("TypicalLogitsWarper", 0.6)),
    "typical_p kept": (sampling.TypicalP(0.01, keep=4), ("TypicalLogitsWarper", 0.01, -float("inf"), 4)),
    "epsilon": (sampling.EpsilonCutoff(0.03), ("EpsilonLogitsWarper", 0.03)),
    "epsilon kept": (sampling.EpsilonCutoff(0.9, keep=3), ("EpsilonLogitsWarper", 0.9, -float("inf"), 3)),
    "eta": (sampling.EtaCutoff(0.1), ("EtaLogitsWarper", 0.1)),
    "eta kept": (sampling.EtaCutoff(0.9, keep=3), ("EtaLogitsWarper", 0.9, -float("inf"), 3)),
    "normalize": (sampling.Normalize(), ("LogitNormalization",)),
    "repetition": (penalties.RepetitionPenalty(1.3), ("RepetitionPenaltyLogitsProcessor", 1.3)),
    "prompt reward": (
        penalties.PromptReward(1.3),
        ("EncoderRepetitionPenaltyLogitsProcessor", 1.3, torch.tensor([IDS[:PROMPT]])),
    ),
    **{f"{n}-gram": (penalties.NoRepeatNgram(n), ("NoRepeatNGramLogitsProcessor", n)) for n in (1, 2, 3, 20)},
    "prompt 2-gram": (
        penalties.NoRepeatNgram(2, prompt_only=True),
        ("EncoderNoRepeatNGramLogitsProcessor", 2, torch.tensor([IDS[:PROMPT]])),
    ),
    "bias": (penalties.SequenceBias(BIAS), ("SequenceBiasLogitsProcessor", dict(BIAS))),
    "min length": (penalties.MinLength(13, EOS), ("MinLengthLogitsProcessor", 13, list(EOS))),
    "min length reached": (penalties.MinLength(12, EOS), ("MinLengthLogitsProcessor", 12, list(EOS))),
    "min new": (
        penalties.MinNewTokens(NEW + 1, EOS),
        ("MinNewTokensLengthLogitsProcessor", PROMPT, NEW + 1, list(EOS)),
    ),
    "min new reached": (
        penalties.MinNewTokens(NEW, EOS),
        ("MinNewTokensLengthLogitsProcessor", PROMPT, NEW, list(EOS)),
    ),
    "forced last": (
        penalties.ForcedLast(EOS, NEW + 1),
        ("ForcedEOSTokenLogitsProcessor", len(IDS) + 1, list(EOS)),
    ),
    "not yet last": (
        penalties.ForcedLast(EOS, NEW + 2),
        ("ForcedEOSTokenLogitsProcessor", len(IDS) + 2, list(EOS)),
    ),
    "decay": (
        penalties.LengthDecay(1, 1.4, EOS),
        ("ExponentialDecayLengthPenalty", (1, 1.4), list(EOS), PROMPT),
    ),
    "suppress": (penalties.Suppress(EOS), ("SuppressTokensLogitsProcessor", list(EOS))),
    "invalid": (penalties.RemoveInvalid(), ("InfNanRemoveLogitsProcessor",)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_one_strategy(name):
    ours, (their_name, *args) = PAIRS[name]
    processor = theirs(their_name, *args)
    generator = torch.Generator().manual_seed(0)
    for scale in (0.5, 3.0, 20.0):
        scores = torch.randn(1, V, generator=generator) * scale
        if name == "invalid":
            scores[0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        expected = processor(torch.tensor([IDS]), scores.clone())
        assert torch.equal(ours(scores, torch.tensor(IDS), PROMPT), expected)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_first_tokens(length):
    scores = torch.randn(1, V, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(length)
    expected = theirs("ForcedBOSTokenLogitsProcessor", 6)(ids[None], scores)
    assert torch.equal(penalties.ForcedFirst(6)(scores, ids, 1), expected)
    expected = theirs("SuppressTokensAtBeginLogitsProcessor", [1, 2], 2)(ids[None], scores)
    assert torch.equal(penalties.Suppress((1, 2), first_only=True)(scores, ids, 2), expected)


SETTINGS = [
    {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95},
    {"do_sample": True, "top_k": 0, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02, "renormalize_logits": True},
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "bad_words_ids": [[4], [3], [7, 9], [4, 3, 2]]},
    {"min_length": 20, "min_new_tokens": 5, "suppress_tokens": [1, 2], "begin_suppress_tokens": [8]},
    {"sequence_bias": [[[4, 3], 2.0], [[6], -1.0]], "encoder_repetition_penalty": 1.1},
    {"forced_eos_token_id": 3, "exponential_decay_length_penalty": (1, 1.1), "remove_invalid_values": True},
]


def sampling_params(settings, new_tokens):
    """`SamplingParams` as generate() would make them of these settings."""
    renamed = dict(settings)
    sample = renamed.pop("do_sample", False)
    if "bad_words_ids" in renamed:
        renamed["bad_words_ids"] = tuple(map(tuple, renamed["bad_words_ids"]))
    if "sequence_bias" in renamed:
        renamed["sequence_bias"] = tuple((tuple(ids), bias) for ids, bias in renamed["sequence_bias"])
    if "forced_eos_token_id" in renamed:
        renamed["forced_eos_token_ids"] = (renamed.pop("forced_eos_token_id"),)
    temperature = renamed.pop("temperature", 1.0) if sample else 0.0
    return SamplingParams(
        **{"max_new_tokens": new_tokens, "eos_token_ids": EOS, "temperature": temperature, **renamed}
    )


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "+".join(s))
def test_the_whole_chain(settings):
    """Order included: the list that transformers builds from the same settings, along an answer."""
    from transformers import GenerationConfig
    from transformers.generation.utils import GenerationMixin

    new_tokens = 8
    config = GenerationConfig(**{"top_k": 0, **settings}, max_length=PROMPT + new_tokens)
    config._eos_token_tensor = torch.tensor(EOS)
    prompt, rest = IDS[:PROMPT], [11, 4, 3, 8, 7, 9, 4, 3]
    chain = GenerationMixin()._get_logits_processor(
        config, PROMPT, encoder_input_ids=torch.tensor([prompt]), device="cpu"
    )
    made = sampling.strategies(sampling_params(settings, new_tokens), vocab_size=V)
    generator = torch.Generator().manual_seed(2)
    for n in range(new_tokens):
        ids = torch.tensor(prompt + rest[:n])
        scores = torch.randn(1, V, generator=generator) * 3
        got = scores
        for strategy in (*made.before, *made.after):
            got = strategy(got, ids, PROMPT)
        assert torch.equal(got, chain(ids[None], scores.clone())), n
