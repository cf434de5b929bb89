"""One row of an answer while it grows, and the caller's callbacks as the engine's hooks.

The engine knows sequences without padding; callbacks expect the row as it was handed in, padding included,
with the new tokens behind. This file is the translation.

Legend: L columns handed in, V vocabulary; a leading 1 is the batch axis that callbacks expect.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qvl.engine.sequence import Hooks, Sequence
from qvl.errors import InputTypeError
from qvl.generation.processors import AllowedTokens, LogitsProcessorList, PrefixConstrainedLogitsProcessor
from qvl.generation.stopping import StoppingCriteriaList

SMALLEST_ROOM = 64  # new tokens that a row's buffer holds before it doubles


def callables(name: str, given: Any) -> list[Any]:
    """What the caller gave as ``logits_processor`` or ``stopping_criteria``.

    Raises InputTypeError for anything but a list of callables.
    """
    if given is None:
        return []
    if not isinstance(given, (list, tuple)) or not all(callable(one) for one in given):
        raise InputTypeError(
            f"{name} must be a list of callables, not {given!r:.80}; put a single one into []."
        )
    return list(given)


@dataclass(frozen=True)
class Callbacks:
    """What the caller wants to decide or to keep. ``processors`` act after the built-in penalties."""

    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    criteria: StoppingCriteriaList = field(default_factory=StoppingCriteriaList)
    prefix_allowed_tokens_fn: AllowedTokens | None = None
    keep_scores: bool = False
    keep_logits: bool = False


class OutputRow:
    """A row of the answer: ids handed in, ids generated, and what was recorded of each step.

    ``prompt``: index of the row's prompt in the batch. ``beams``: whether this is a beam search, whose
    sequences do not simply grow, so that their ids are written anew for every callback.
    """

    def __init__(self, prompt: int, handed_L: Tensor, callbacks: Callbacks, *, beams: bool = False) -> None:
        self.prompt = prompt
        self.token_ids: tuple[int, ...] = ()
        self.scores: list[Tensor] = []
        self.logits: list[Tensor] = []
        self._handed_L = handed_L
        self._callbacks = callbacks
        self._beams = beams
        self._buffer_1L: Tensor | None = None
        self._written = 0
        self._prefix = (
            None
            if callbacks.prefix_allowed_tokens_fn is None
            else PrefixConstrainedLogitsProcessor(callbacks.prefix_allowed_tokens_fn)
        )

    def hooks(
        self,
        on_tokens: Callable[[Sequence, SequenceOf[int]], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Hooks:
        """Only the hooks that somebody needs: without any, the engine takes its fast path."""
        keep = self._callbacks.keep_scores or self._callbacks.keep_logits
        return Hooks(
            process=self._process if self._callbacks.processors or self._prefix else None,
            stop=self._stop if self._callbacks.criteria else None,
            record=self._record if keep and not self._beams else None,
            on_tokens=on_tokens,
            progress=progress,
        )

    def ids_so_far(self, output_ids: SequenceOf[int]) -> Tensor:
        """(1, L + new) int64: the row as handed in and ``output_ids`` behind it.

        A view of one buffer that doubles when it is full; views of earlier steps stay as they were.
        """
        columns, count = self._handed_L.shape[0], len(output_ids)
        if self._beams:
            self._buffer_1L = None
        if self._buffer_1L is None or columns + count > self._buffer_1L.shape[1]:
            room = max(SMALLEST_ROOM, 2 * count)
            self._buffer_1L = self._handed_L.new_empty(1, columns + room)
            self._buffer_1L[0, :columns] = self._handed_L
            self._written = 0
        if count > self._written:
            fresh = torch.tensor(output_ids[self._written :], dtype=torch.int64)
            self._buffer_1L[0, columns + self._written : columns + count] = fresh
        self._written = count
        return self._buffer_1L[:, : columns + count]

    def _process(self, sequence: Sequence, scores_1V: Tensor) -> Tensor:
        ids = self.ids_so_far(sequence.output_ids)
        if self._prefix is not None:
            scores_1V = self._prefix.constrained(self.prompt, ids[0], scores_1V[0])[None]
        processed = self._callbacks.processors(ids, scores_1V)
        if not isinstance(processed, Tensor) or processed.shape != scores_1V.shape:
            raise InputTypeError(
                f"A logits processor must return scores of shape {tuple(scores_1V.shape)}, not "
                f"{tuple(processed.shape) if isinstance(processed, Tensor) else type(processed).__name__}."
            )
        return processed

    def _stop(self, sequence: Sequence, scores_1V: Tensor) -> bool:
        scores: tuple[Tensor, ...] | None = None
        if self._callbacks.keep_scores:
            scores = (scores_1V,) if self._beams else tuple(self.scores)
        return bool(self._callbacks.criteria(self.ids_so_far(sequence.output_ids), scores).any())

    def _record(self, sequence: Sequence, logits_1V: Tensor, scores_1V: Tensor) -> None:
        # Copied: both are rows of a tensor that holds a whole step of many sequences.
        if self._callbacks.keep_scores:
            self.scores.append(scores_1V.clone())
        if self._callbacks.keep_logits:
            self.logits.append(logits_1V.clone())
