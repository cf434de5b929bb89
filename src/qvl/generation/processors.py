"""Logits processors: a caller's own change of the scores, and transformers' ready-made ones to put beside
it.

A processor is called with ids (B, L), the row as the caller handed it in plus what was generated, and
scores (B, V) in float32, and returns scores. The ready-made ones are thin: the arithmetic lives in
`qvl.ops`.

Legend: B batch, L length so far, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qvl.errors import GenerationError
from qvl.ops import penalties, sampling

AllowedTokens = Callable[[int, Tensor], Sequence[int]]
TokenIds = int | Iterable[int] | Tensor


class LogitsProcessor:
    """Base of all processors."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        raise NotImplementedError("a LogitsProcessor must define __call__(input_ids, scores)")


class LogitsProcessorList(list[LogitsProcessor]):
    """Applies its processors one after the other."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        for processor in self:
            scores = processor(input_ids, scores, **kwargs)
        return scores


class PrefixConstrainedLogitsProcessor(LogitsProcessor):
    """Lets through only the ids that ``prefix_allowed_tokens_fn(row, ids so far)`` returns.

    ``row``: the index of the prompt in the batch. Raises GenerationError when the function allows nothing.
    """

    def __init__(self, prefix_allowed_tokens_fn: AllowedTokens, num_beams: int = 1) -> None:
        self.allowed_tokens = prefix_allowed_tokens_fn
        self.num_beams = num_beams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = [self.constrained(i // self.num_beams, ids, scores[i]) for i, ids in enumerate(input_ids)]
        return torch.stack(rows)

    def constrained(self, row: int, ids_L: Tensor, scores_V: Tensor) -> Tensor:
        allowed = torch.as_tensor(
            list(self.allowed_tokens(row, ids_L)), dtype=torch.int64, device=scores_V.device
        )
        if not len(allowed):
            raise GenerationError(
                f"prefix_allowed_tokens_fn allows no token after {ids_L.shape[0]} tokens of row {row}; "
                "it must always return at least one id (an end-of-sequence id to finish)."
            )
        closed_V = torch.full_like(scores_V, -math.inf)
        return closed_V.index_copy(0, allowed, scores_V[allowed])


class _Ready(LogitsProcessor):
    """A processor made of one strategy, applied row by row."""

    # The setting of a GenerationConfig that asks for the same; a caller's own instance replaces it.
    setting = ""

    def __init__(self, strategy: sampling.Strategy, prompt_length: int = 0) -> None:
        self.strategy = strategy
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = zip(input_ids, scores, strict=True)
        return torch.stack([self.strategy(row, ids, self.prompt_length) for ids, row in rows])


class TemperatureLogitsWarper(_Ready):
    """Divides by ``temperature``."""

    def __init__(self, temperature: float) -> None:
        super().__init__(sampling.Temperature(temperature))


class TopKLogitsWarper(_Ready):
    """Keeps the ``top_k`` likeliest tokens."""

    def __init__(self, top_k: int, filter_value: float = -math.inf, min_tokens_to_keep: int = 1) -> None:
        _only_minus_infinity(filter_value)
        super().__init__(sampling.TopK(top_k, min_tokens_to_keep))


class TopPLogitsWarper(_Ready):
    """Keeps the likeliest tokens that together reach probability ``top_p``."""

    def __init__(self, top_p: float, filter_value: float = -math.inf, min_tokens_to_keep: int = 1) -> None:
        _only_minus_infinity(filter_value)
        super().__init__(sampling.TopP(top_p, min_tokens_to_keep))


class MinPLogitsWarper(_Ready):
    """Keeps tokens at least ``min_p`` times as likely as the likeliest."""

    def __init__(self, min_p: float, filter_value: float = -math.inf, min_tokens_to_keep: int = 1) -> None:
        _only_minus_infinity(filter_value)
        super().__init__(sampling.MinP(min_p, min_tokens_to_keep))


class TypicalLogitsWarper(_Ready):
    """Keeps the most typical tokens that together reach probability ``mass``."""

    def __init__(
        self, mass: float = 0.9, filter_value: float = -math.inf, min_tokens_to_keep: int = 1
    ) -> None:
        _only_minus_infinity(filter_value)
        super().__init__(sampling.TypicalP(mass, min_tokens_to_keep))


class RepetitionPenaltyLogitsProcessor(_Ready):
    """Makes every token that occurred less likely by ``penalty``."""

    setting = "repetition_penalty"

    def __init__(self, penalty: float) -> None:
        super().__init__(penalties.RepetitionPenalty(penalty))


class NoRepeatNGramLogitsProcessor(_Ready):
    """Forbids every n-gram of ``ngram_size`` tokens that occurred."""

    setting = "no_repeat_ngram_size"

    def __init__(self, ngram_size: int) -> None:
        super().__init__(penalties.NoRepeatNgram(ngram_size))


class SequenceBiasLogitsProcessor(_Ready):
    """Adds a bias to the last token of each sequence: ``{(ids): bias}`` or ``[[ids, bias], ...]``."""

    setting = "sequence_bias"

    def __init__(self, sequence_bias: Any) -> None:
        super().__init__(penalties.SequenceBias(biases(sequence_bias)))


class NoBadWordsLogitsProcessor(_Ready):
    """Forbids the sequences ``bad_words_ids``."""

    setting = "bad_words_ids"

    def __init__(self, bad_words_ids: Sequence[Sequence[int]], eos_token_id: TokenIds | None = None) -> None:
        eos = () if eos_token_id is None else id_tuple(eos_token_id)
        words = [tuple(word) for word in bad_words_ids if tuple(word) not in [(e,) for e in eos]]
        super().__init__(penalties.SequenceBias(tuple((word, -math.inf) for word in words)))


class MinLengthLogitsProcessor(_Ready):
    """Forbids the end before ``min_length`` tokens, prompt included."""

    setting = "min_length"

    def __init__(self, min_length: int, eos_token_id: TokenIds, device: Any = None) -> None:
        super().__init__(penalties.MinLength(min_length, id_tuple(eos_token_id)))


class MinNewTokensLengthLogitsProcessor(_Ready):
    """Forbids the end before ``min_new_tokens`` tokens after the first ``prompt_length_to_skip``."""

    setting = "min_new_tokens"

    def __init__(
        self, prompt_length_to_skip: int, min_new_tokens: int, eos_token_id: TokenIds, device: Any = None
    ) -> None:
        super().__init__(
            penalties.MinNewTokens(min_new_tokens, id_tuple(eos_token_id)), prompt_length_to_skip
        )


class SuppressTokensLogitsProcessor(_Ready):
    """Forbids ``suppress_tokens``."""

    setting = "suppress_tokens"

    def __init__(self, suppress_tokens: Sequence[int], device: Any = None) -> None:
        super().__init__(penalties.Suppress(id_tuple(suppress_tokens)))


class InfNanRemoveLogitsProcessor(_Ready):
    """Replaces NaN by 0 and infinities by the largest finite numbers."""

    setting = "remove_invalid_values"

    def __init__(self) -> None:
        super().__init__(penalties.RemoveInvalid())


class LogitNormalization(_Ready):
    """Log-probabilities of the scores."""

    setting = "renormalize_logits"

    def __init__(self) -> None:
        super().__init__(sampling.Normalize())


def replaced_settings(processors: Iterable[Any]) -> set[str]:
    """Settings for which the caller brought a processor of the same class, which then holds instead."""
    return {p.setting for p in processors if isinstance(p, _Ready) and p.setting}


def biases(sequence_bias: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """``sequence_bias`` in either of its spellings as (ids, bias) pairs; raises GenerationError."""
    if sequence_bias is None:
        return ()
    pairs = sequence_bias.items() if isinstance(sequence_bias, Mapping) else sequence_bias
    try:
        return tuple((tuple(int(i) for i in ids), float(bias)) for ids, bias in pairs)
    except (TypeError, ValueError):
        raise GenerationError(
            "sequence_bias must map tuples of token ids to numbers, {(ids): bias}, or be a list of "
            "[ids, bias]."
        ) from None


def id_tuple(ids: TokenIds) -> tuple[int, ...]:
    """One id, several, or a tensor of them."""
    listed = ids.flatten().tolist() if isinstance(ids, Tensor) else ids
    return (int(listed),) if isinstance(listed, int) else tuple(int(i) for i in listed)


def _only_minus_infinity(filter_value: float) -> None:
    if filter_value != -math.inf:
        raise GenerationError(f"filter_value is always -inf here, not {filter_value!r}.")
