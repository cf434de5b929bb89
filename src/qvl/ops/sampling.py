"""From the scores of the next token to the scores that it is drawn from: truncation, and the order of it all.

Strategies follow `qvl.ops.penalties`: called as ``strategy(scores, ids_T, prompt_length)`` on float32 scores
of shape (1, V) or (V,). `strategies` makes the tuple that `SamplingParams` asks for, in transformers' order.
``keep`` is the number of tokens that every truncation leaves in any case.

Legend: V vocabulary, T tokens so far, N sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qvl.errors import GenerationError
from qvl.ops import penalties
from qvl.types import SamplingParams


class Strategy(Protocol):
    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor: ...


def _in_unit(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise GenerationError(f"{name} must lie between 0 and 1, not {value!r}.")


def _without(scores: Tensor, remove: Tensor) -> Tensor:
    return scores.masked_fill(remove, -math.inf)


def _below_top(scores: Tensor, count: int) -> Tensor:
    """Which scores are smaller than the ``count``-th largest."""
    return scores < torch.topk(scores, min(count, scores.shape[-1])).values[..., -1:]


@dataclass(frozen=True)
class Temperature:
    """Below 1 sharpens, above 1 flattens."""

    value: float

    def __post_init__(self) -> None:
        if not self.value > 0:
            raise GenerationError(f"temperature must be above 0 (0 means greedy), not {self.value!r}.")

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        return scores / self.value


@dataclass(frozen=True)
class TopK:
    """The ``count`` likeliest tokens, and those that tie with the last of them."""

    count: int
    keep: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise GenerationError(f"top_k must be 0 (off) or a positive integer, not {self.count!r}.")

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        return _without(scores, _below_top(scores, max(self.count, self.keep)))


@dataclass(frozen=True)
class TopP:
    """The likeliest tokens whose probabilities together reach ``mass`` (nucleus sampling, 1904.09751)."""

    mass: float
    keep: int = 1

    def __post_init__(self) -> None:
        _in_unit("top_p", self.mass)

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        rising, order = torch.sort(scores, descending=False)
        remove = rising.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.mass
        remove[..., -self.keep :] = False
        return _without(scores, remove.scatter(-1, order, remove))


@dataclass(frozen=True)
class MinP:
    """Tokens at least ``share`` times as likely as the likeliest one (2407.01082)."""

    share: float
    keep: int = 1

    def __post_init__(self) -> None:
        _in_unit("min_p", self.share)

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        probabilities = torch.softmax(scores, dim=-1)
        remove = probabilities < self.share * probabilities.amax(dim=-1, keepdim=True)
        order = torch.argsort(scores, descending=True, dim=-1)
        remove = torch.gather(remove, -1, order)
        remove[..., : self.keep] = False
        return _without(scores, remove.scatter(-1, order, remove))


@dataclass(frozen=True)
class TypicalP:
    """Tokens whose surprise is nearest to the expected one, up to ``mass`` together (2202.00666)."""

    mass: float
    keep: int = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.mass < 1.0:
            raise GenerationError(f"typical_p must lie between 0 and 1, not {self.mass!r}.")

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        log_p = torch.log_softmax(scores, dim=-1)
        entropy = -(log_p * log_p.exp()).nansum(-1, keepdim=True)
        oddness, order = torch.sort(torch.abs(-log_p - entropy), descending=False)
        reached = scores.gather(-1, order).softmax(dim=-1).cumsum(dim=-1)
        last = (reached < self.mass).sum(dim=-1, keepdim=True).clamp_(max=scores.shape[-1] - 1)
        remove = oddness > oddness.gather(-1, last)
        remove[..., : self.keep] = False
        return _without(scores, remove.scatter(-1, order, remove))


@dataclass(frozen=True)
class EpsilonCutoff:
    """Tokens of at least this probability (2210.15191, section 3)."""

    epsilon: float
    keep: int = 1

    def __post_init__(self) -> None:
        _in_unit("epsilon_cutoff", self.epsilon)

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        remove = scores.softmax(dim=-1) < self.epsilon
        return _without(scores, remove & _below_top(scores, self.keep))


@dataclass(frozen=True)
class EtaCutoff:
    """Epsilon, lowered where the distribution is flat: min(e, sqrt(e) * exp(-entropy)) (2210.15191)."""

    epsilon: float
    keep: int = 1

    def __post_init__(self) -> None:
        _in_unit("eta_cutoff", self.epsilon)

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        epsilon = torch.tensor(self.epsilon, device=scores.device)
        entropy = torch.distributions.Categorical(logits=scores).entropy()
        eta = torch.min(epsilon, torch.sqrt(epsilon) * torch.exp(-entropy)).unsqueeze(-1)
        return _without(scores, (scores.softmax(dim=-1) < eta) & _below_top(scores, self.keep))


@dataclass(frozen=True)
class Normalize:
    """``renormalize_logits``: log-probabilities of what is left."""

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        return scores.log_softmax(dim=-1)


@dataclass(frozen=True)
class Strategies:
    """What happens to the scores ``before`` and ``after`` the caller's own logits processors."""

    before: tuple[Strategy, ...] = ()
    after: tuple[Strategy, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.before or self.after)


def strategies(params: SamplingParams, *, vocab_size: int, keep: int = 1) -> Strategies:
    """The strategies that ``params`` ask for, in transformers' order; fields at their neutral value add none.

    ``keep``: 1, or for beams one more than there are end-of-sequence ids, so that a beam can always go on.
    Raises `GenerationError` for values out of range and for ids that the vocabulary doesn't have.
    """
    _check(params, vocab_size)
    sampled = () if params.greedy else tuple(_truncations(params, keep))
    final = (Normalize(),) if params.renormalize_logits else ()
    return Strategies(tuple(_penalties(params)), sampled + final)


def draw(scores_1V: Tensor, generator: torch.Generator | None) -> int:
    """One token from the distribution that the scores describe; one call of torch's multinomial."""
    (drawn,) = draw_rows(scores_1V, [generator])
    if isinstance(drawn, Exception):
        raise drawn
    return drawn


def draw_rows(scores_NV: Tensor, generators: Sequence[torch.Generator | None]) -> list[int | RuntimeError]:
    """One token from each row, each with its own generator (None: torch's own, row after row).

    A row that is no distribution (NaN, or everything forbidden) gives torch's error, and others their tokens.
    """
    rows = torch.softmax(scores_NV, dim=-1).split(1)
    return [_drawn(row, generator) for row, generator in zip(rows, generators, strict=True)]


def _drawn(probs_1V: Tensor, generator: torch.Generator | None) -> int | RuntimeError:
    try:
        return int(torch.multinomial(probs_1V, 1, generator=generator))
    except RuntimeError as error:
        return error


def check_draw(scores_1V: Tensor, drafted: int, probs_1V: Tensor, generator: torch.Generator | None) -> int:
    """One token from the distribution p of the scores, given one that was drawn from another, q.

    The draft stays with probability min(1, p/q); else the token is drawn from what p has more than q. Either
    way it is distributed as p (speculative sampling, 2211.17192, section 2.3 and appendix A.1).
    ``probs_1V``: q, of which ``drafted`` was drawn.
    """
    p_1V, q_1V = torch.softmax(scores_1V, dim=-1), probs_1V.to(scores_1V)
    chance = torch.rand((), generator=generator, device=p_1V.device)
    if bool(chance * q_1V[0, drafted] < p_1V[0, drafted]):
        return drafted
    rest_1V = (p_1V - q_1V).clamp_(min=0)
    if not bool(rest_1V.sum() > 0):  # p equals q but for rounding
        rest_1V = p_1V
    return int(torch.multinomial(rest_1V, 1, generator=generator))


def draw_without_replacement(scores_1V: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """``count`` different indices (1, count), drawn from the distribution that the scores describe."""
    return torch.multinomial(torch.softmax(scores_1V, dim=-1), count, generator=generator)


def _penalties(params: SamplingParams) -> Iterator[Strategy]:
    eos = params.eos_token_ids
    if params.sequence_bias:
        yield penalties.SequenceBias(params.sequence_bias)
    if params.encoder_repetition_penalty != 1.0:
        yield penalties.PromptReward(params.encoder_repetition_penalty)
    if params.repetition_penalty != 1.0:
        yield penalties.RepetitionPenalty(params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        yield penalties.Occurrence(params.presence_penalty, params.frequency_penalty)
    if params.no_repeat_ngram_size:
        yield penalties.NoRepeatNgram(params.no_repeat_ngram_size)
    if params.encoder_no_repeat_ngram_size:
        yield penalties.NoRepeatNgram(params.encoder_no_repeat_ngram_size, prompt_only=True)
    # A bad word that is nothing but an end-of-sequence token would make endless answers: left out.
    if bad := tuple((ids, -math.inf) for ids in params.bad_words_ids if ids not in [(e,) for e in eos]):
        yield penalties.SequenceBias(bad)
    if eos and params.min_length > 0:
        yield penalties.MinLength(params.min_length, eos)
    if eos and params.min_new_tokens > 0:
        yield penalties.MinNewTokens(params.min_new_tokens, eos)
    yield from _forcings(params)


def _forcings(params: SamplingParams) -> Iterator[Strategy]:
    forced_first = params.forced_bos_token_id is not None
    if params.forced_bos_token_id is not None:
        yield penalties.ForcedFirst(params.forced_bos_token_id)
    if params.forced_eos_token_ids:
        yield penalties.ForcedLast(params.forced_eos_token_ids, params.max_new_tokens)
    if params.remove_invalid_values:
        yield penalties.RemoveInvalid()
    if params.exponential_decay_length_penalty is not None:
        yield penalties.LengthDecay(*params.exponential_decay_length_penalty, params.eos_token_ids)
    if params.suppress_tokens:
        yield penalties.Suppress(params.suppress_tokens)
    if params.begin_suppress_tokens:
        yield penalties.Suppress(params.begin_suppress_tokens, first_only=True, forced_first=forced_first)


def _truncations(params: SamplingParams, keep: int) -> Iterator[Strategy]:
    if params.temperature != 1.0:
        yield Temperature(params.temperature)
    if params.top_k:
        yield TopK(params.top_k, keep)
    if params.top_p != 1.0:
        yield TopP(params.top_p, keep)
    if params.min_p:
        yield MinP(params.min_p, keep)
    if params.typical_p != 1.0:
        yield TypicalP(params.typical_p, keep)
    if params.epsilon_cutoff:
        yield EpsilonCutoff(params.epsilon_cutoff, keep)
    if params.eta_cutoff:
        yield EtaCutoff(params.eta_cutoff, keep)


def _check(params: SamplingParams, vocab_size: int) -> None:
    named = {
        "bad_words_ids": [i for ids in params.bad_words_ids for i in ids],
        "sequence_bias": [i for ids, _ in params.sequence_bias for i in ids],
        "suppress_tokens": params.suppress_tokens,
        "begin_suppress_tokens": params.begin_suppress_tokens,
        "forced_bos_token_id": () if params.forced_bos_token_id is None else (params.forced_bos_token_id,),
        "forced_eos_token_id": params.forced_eos_token_ids,
    }
    for name, ids in named.items():
        if outside := [i for i in ids if not 0 <= i < vocab_size]:
            raise GenerationError(
                f"{name} names token {outside[0]}, but the vocabulary has ids 0 to {vocab_size - 1}."
            )
