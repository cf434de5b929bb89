"""When a sequence is done, beside its eos token and its length: time, text, a caller's own rule.

Criteria see token ids, never the network. Each is called with ids (B, L), the row as the caller handed it
in plus what was generated, and answers with one bool per row.

Legend: B batch, L length so far.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from qvl.errors import GenerationError

Scores = tuple[Tensor, ...] | None


class StoppingCriteria:
    """Base of all criteria. ``scores``: the processed scores of every step so far if the call asked for
    ``output_scores``, otherwise None."""

    def __call__(self, input_ids: Tensor, scores: Scores, **kwargs: Any) -> Tensor | bool:
        raise NotImplementedError("a StoppingCriteria must define __call__(input_ids, scores)")


class MaxLengthCriteria(StoppingCriteria):
    """Done at ``max_length`` tokens, prompt included. ``max_position_embeddings``: the engine's to watch."""

    def __init__(self, max_length: int, max_position_embeddings: int | None = None) -> None:
        self.max_length = max_length

    def __call__(self, input_ids: Tensor, scores: Scores, **kwargs: Any) -> Tensor:
        return _same_for_all(input_ids, input_ids.shape[1] >= self.max_length)


class MaxTimeCriteria(StoppingCriteria):
    """Done ``max_time`` seconds after ``initial_timestamp`` (``time.time()``; None: when this was made)."""

    def __init__(self, max_time: float, initial_timestamp: float | None = None) -> None:
        self.max_time = max_time
        self.initial_timestamp = time.time() if initial_timestamp is None else initial_timestamp

    def __call__(self, input_ids: Tensor, scores: Scores, **kwargs: Any) -> Tensor:
        return _same_for_all(input_ids, time.time() - self.initial_timestamp > self.max_time)


class EosTokenCriteria(StoppingCriteria):
    """Done when the last token is one of ``eos_token_id`` (an id, a list or a tensor of ids)."""

    def __init__(self, eos_token_id: int | Sequence[int] | Tensor) -> None:
        self.eos_token_id = torch.as_tensor(eos_token_id, dtype=torch.int64).flatten()

    def __call__(self, input_ids: Tensor, scores: Scores, **kwargs: Any) -> Tensor:
        return torch.isin(input_ids[:, -1], self.eos_token_id.to(input_ids.device))


class StopStringCriteria(StoppingCriteria):
    """Done when the last token completes one of ``stop_strings`` in the decoded text.

    The string may begin in earlier tokens (of the prompt too) and end inside the last one. Only as many
    tokens are decoded as the longest string has bytes, since a token holds at least one: the cost of a step
    does not grow with the length. ``tokenizer``: anything with ``decode(ids, skip_special_tokens=...)``;
    special tokens count as text here.
    """

    def __init__(self, tokenizer: Any, stop_strings: str | Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stop_strings = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        if not self.stop_strings or not all(self.stop_strings):
            raise GenerationError("stop_strings must hold at least one string, and no empty one.")
        self.reach = max(len(text.encode()) for text in self.stop_strings)

    def __call__(self, input_ids: Tensor, scores: Scores, **kwargs: Any) -> Tensor:
        done = [self.completes(row) for row in input_ids[:, -self.reach :].tolist()]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)

    def completes(self, ids: Sequence[int]) -> bool:
        """Whether the last of ``ids`` brings a stop string to its end."""
        window = list(ids[-self.reach :])
        text = self._text(window)
        # Compared as text, because a character that was incomplete before may be complete now.
        settled = _common_length(text, self._text(window[:-1]))
        return any(text.find(stop, max(0, settled - len(stop) + 1)) >= 0 for stop in self.stop_strings)

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


class StoppingCriteriaList(list[StoppingCriteria]):
    """Done when any of its criteria says so."""

    def __call__(self, input_ids: Tensor, scores: Scores, **kwargs: Any) -> Tensor:
        done = _same_for_all(input_ids, False)
        for criterion in self:
            done = done | torch.as_tensor(criterion(input_ids, scores, **kwargs), device=done.device)
        return done

    @property
    def max_length(self) -> int | None:
        """The length of the first MaxLengthCriteria in the list."""
        return next((c.max_length for c in self if isinstance(c, MaxLengthCriteria)), None)


def merged(own: Iterable[Any], custom: Iterable[Any]) -> list[Any]:
    """``own`` objects, each replaced by the caller's object of the same class, then the caller's others."""
    given = list(custom)
    kept = [next((g for g in given if type(g) is type(o)), o) for o in own]
    return kept + [g for g in given if not any(g is k for k in kept)]


def _common_length(a: str, b: str) -> int:
    """Characters that two texts have in common from the start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _same_for_all(input_ids: Tensor, done: bool) -> Tensor:
    return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)
