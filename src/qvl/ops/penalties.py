"""Changes to next-token scores that depend on the tokens so far or on particular ids.

Every strategy is a frozen setting that is called as ``strategy(scores, ids_T, prompt_length)``: scores of
shape (1, V) or (V,) in float32, the ids so far (int64, T of them, the first ``prompt_length`` from the
prompt). It returns new scores and leaves its input alone. Scores equal those of transformers' logits
processors of similar names bit for bit (`Occurrence` has none there).

Legend: V vocabulary, T tokens so far, N n-gram windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qvl.errors import GenerationError


def _require(good: bool, name: str, wanted: str, value: object) -> None:
    if not good:
        raise GenerationError(f"{name} must be {wanted}, not {value!r}.")


def _filled(scores: Tensor, ids: list[int] | tuple[int, ...] | Tensor, value: float) -> Tensor:
    index = torch.as_tensor(ids, dtype=torch.long, device=scores.device)
    return scores.index_fill(-1, index[index < scores.shape[-1]], value)


def _rescaled(scores: Tensor, ids_T: Tensor, penalty: float) -> Tensor:
    """Scores of the given ids, made less likely by ``penalty`` > 1 whatever their sign (CTRL, 1909.05858)."""
    old = scores[..., ids_T]
    out = scores.clone()
    out[..., ids_T] = torch.where(old < 0, old * penalty, old / penalty)
    return out


def _banned(source_T: Tensor, tail: Tensor) -> Tensor:
    """Tokens that followed ``tail`` anywhere in ``source_T``."""
    size = tail.shape[0] + 1
    if source_T.shape[0] < size:
        return source_T[:0]
    windows_N = source_T.unfold(0, size, 1)
    return windows_N[(windows_N[:, :-1] == tail).all(dim=-1), -1]


@dataclass(frozen=True)
class RepetitionPenalty:
    """Every token that occurred, in the prompt or after it, once: above 1 discourages it."""

    penalty: float

    def __post_init__(self) -> None:
        _require(self.penalty > 0, "repetition_penalty", "a number above 0", self.penalty)

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        return _rescaled(scores, ids_T, self.penalty)


@dataclass(frozen=True)
class PromptReward:
    """``encoder_repetition_penalty``: above 1 *encourages* the tokens of the prompt."""

    penalty: float

    def __post_init__(self) -> None:
        _require(self.penalty > 0, "encoder_repetition_penalty", "a number above 0", self.penalty)

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        return _rescaled(scores, ids_T[:prompt_length], 1 / self.penalty)


@dataclass(frozen=True)
class Occurrence:
    """What has come in the answer so far comes less: ``presence`` is taken off once, ``frequency`` for every
    time that it came. The prompt does not count. Negative numbers encourage.

    The formula, and the range of -2 to 2 that a server may want to hold callers to, are OpenAI's
    (https://platform.openai.com/docs/api-reference/chat/create).
    """

    presence: float
    frequency: float

    def __post_init__(self) -> None:
        _require(math.isfinite(self.presence), "presence_penalty", "a finite number", self.presence)
        _require(math.isfinite(self.frequency), "frequency_penalty", "a finite number", self.frequency)

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        new = ids_T[prompt_length:]
        if not len(new):
            return scores
        ids_N, counts_N = new.unique(return_counts=True)
        out = scores.clone()
        out[..., ids_N] -= self.frequency * counts_N.to(scores.dtype) + self.presence
        return out


@dataclass(frozen=True)
class NoRepeatNgram:
    """No n-gram of ``size`` tokens comes twice; with ``prompt_only``, none of the prompt comes again."""

    size: int
    prompt_only: bool = False

    def __post_init__(self) -> None:
        _require(self.size > 0, "no_repeat_ngram_size", "0 (off) or a positive integer", self.size)

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        if ids_T.shape[0] < self.size - 1:
            return scores
        source_T = ids_T[:prompt_length] if self.prompt_only else ids_T
        return _filled(scores, _banned(source_T, ids_T[ids_T.shape[0] - self.size + 1 :]), -math.inf)


@dataclass(frozen=True)
class SequenceBias:
    """Adds a bias to the last token of a sequence when the tokens before it have just been produced.

    A bias of minus infinity forbids the sequence (``bad_words_ids``).
    """

    biases: tuple[tuple[tuple[int, ...], float], ...]

    def __post_init__(self) -> None:
        bad = [ids for ids, _ in self.biases if not ids or min(ids) < 0]
        _require(not bad, "every entry of bad_words_ids and sequence_bias", "a list of token ids", bad[:1])

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        longest = max(len(ids) for ids, _ in self.biases)
        tail = tuple(ids_T[max(0, ids_T.shape[0] - longest + 1) :].tolist())
        bias = torch.zeros_like(scores)
        for ids, value in sorted(self.biases, key=lambda item: len(item[0]) > 1):
            fits = len(ids) == 1 or len(ids) <= ids_T.shape[0]
            if fits and tail[len(tail) - len(ids) + 1 :] == ids[:-1]:
                bias[..., ids[-1]] += value
        return scores + bias


@dataclass(frozen=True)
class MinLength:
    """No end-of-sequence token before prompt and answer together have ``length`` tokens."""

    length: int
    eos_token_ids: tuple[int, ...]

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        return _filled(scores, self.eos_token_ids, -math.inf) if ids_T.shape[0] < self.length else scores


@dataclass(frozen=True)
class MinNewTokens:
    """No end-of-sequence token before the answer has ``count`` tokens."""

    count: int
    eos_token_ids: tuple[int, ...]

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        early = ids_T.shape[0] - prompt_length < self.count
        return _filled(scores, self.eos_token_ids, -math.inf) if early else scores


@dataclass(frozen=True)
class ForcedFirst:
    """``forced_bos_token_id``: the token after a prompt of one token."""

    token_id: int

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        if ids_T.shape[0] != 1:
            return scores
        return _filled(torch.full_like(scores, -math.inf), (self.token_id,), 0.0)


@dataclass(frozen=True)
class ForcedLast:
    """``forced_eos_token_id``: the token with which an answer of ``max_new_tokens`` ends."""

    token_ids: tuple[int, ...]
    max_new_tokens: int

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        if ids_T.shape[0] - prompt_length != self.max_new_tokens - 1:
            return scores
        return _filled(torch.full_like(scores, -math.inf), self.token_ids, 0.0)


@dataclass(frozen=True)
class RemoveInvalid:
    """NaN becomes 0, infinities become the largest and smallest float."""

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        return torch.nan_to_num(scores, nan=0.0)


@dataclass(frozen=True)
class LengthDecay:
    """``exponential_decay_length_penalty``: the end grows likelier with each token after ``start``."""

    start: int
    factor: float
    eos_token_ids: tuple[int, ...]

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        beyond = ids_T.shape[0] - prompt_length - self.start
        if beyond <= 0:
            return scores
        eos = list(self.eos_token_ids)
        penalties = torch.zeros_like(scores)
        penalties[..., eos] = torch.abs(scores[..., eos]) * (self.factor**beyond - 1)
        return scores + penalties


@dataclass(frozen=True)
class Suppress:
    """Tokens that never come; with ``first_only``, that don't open the answer.

    A forced first token moves the opening of the answer one token back, as in transformers.
    """

    token_ids: tuple[int, ...]
    first_only: bool = False
    forced_first: bool = False

    def __call__(self, scores: Tensor, ids_T: Tensor, prompt_length: int) -> Tensor:
        opening = prompt_length + int(self.forced_first and prompt_length <= 1)
        if self.first_only and ids_T.shape[0] != opening:
            return scores
        return _filled(scores, self.token_ids, -math.inf)
