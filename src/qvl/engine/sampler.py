"""Drawing the next tokens of one sequence, with everything that draw depends on: it lives on the sequence.

The rows of logits that a step gives a sequence are taken in order: each token is appended before the next
row is looked at. So a checked guess leaves ids, penalties and random numbers exactly as one step per token
would have.

Legend: N rows of one sequence in a step, V vocabulary, T tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from qvl.engine.sequence import Sequence
from qvl.ops.sampling import Strategy, draw, strategies
from qvl.types import SamplingParams


class TokenBuffer:
    """A growing int64 tensor of ids: appending costs the same at every length."""

    def __init__(self, ids: SequenceOf[int], device: torch.device | str, room: int = 64) -> None:
        self.length = len(ids)
        self._cells = torch.empty(self.length + room, dtype=torch.long, device=device)
        self._cells[: self.length] = torch.tensor(ids, dtype=torch.long)

    @property
    def ids_T(self) -> Tensor:
        """A view of all ids so far."""
        return self._cells[: self.length]

    def append(self, token: int) -> None:
        if self.length == len(self._cells):
            self._cells = torch.cat([self._cells, torch.empty_like(self._cells)])
        self._cells[self.length] = token
        self.length += 1

    def copy(self) -> TokenBuffer:
        twin = object.__new__(TokenBuffer)
        twin.length, twin._cells = self.length, self._cells.clone()
        return twin


class Sampler:
    """Scores and draws for one sequence.

    ``likeliest_only``: greedy with untouched scores, so that the engine can take the argmax of many
    sequences at once.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: SequenceOf[int],
        *,
        vocab_size: int,
        device: torch.device | str,
        keep: int = 1,
    ) -> None:
        self.greedy = params.greedy
        self.strategies = strategies(params, vocab_size=vocab_size, keep=keep)
        self.prompt_length = len(prompt_ids)
        self.generator: torch.Generator | None = None
        if params.seed is not None:
            self.generator = torch.Generator(device).manual_seed(params.seed)
        # Only strategies read the ids.
        self.tokens = TokenBuffer(prompt_ids, device) if self.strategies else None

    @property
    def likeliest_only(self) -> bool:
        return self.greedy and not self.strategies

    def scores(self, sequence: Sequence, logits_1V: Tensor) -> Tensor:
        """What the next token is drawn from: penalties, the caller's hook, then truncation."""
        scores_1V = self._apply(self.strategies.before, logits_1V)
        if sequence.hooks.process is not None:
            # The hook may write into what it gets; the raw logits are recorded too.
            given = scores_1V.clone() if scores_1V is logits_1V else scores_1V
            scores_1V = sequence.hooks.process(sequence, given)
        return self._apply(self.strategies.after, scores_1V)

    def choose(self, scores_1V: Tensor) -> int:
        return int(scores_1V.argmax()) if self.greedy else draw(scores_1V, self.generator)

    def append(self, token: int) -> None:
        """Let the strategies know of a new token."""
        if self.tokens is not None:
            self.tokens.append(token)

    def fork(self) -> Sampler:
        """A twin with its own ids and the same random generator."""
        twin = object.__new__(Sampler)
        twin.__dict__.update(self.__dict__)
        twin.tokens = None if self.tokens is None else self.tokens.copy()
        return twin

    def _apply(self, chain: tuple[Strategy, ...], scores_1V: Tensor) -> Tensor:
        for strategy in chain:
            assert self.tokens is not None  # made with the strategies
            scores_1V = strategy(scores_1V, self.tokens.ids_T, self.prompt_length)
        return scores_1V


def is_plain(sequence: Sequence) -> bool:
    """Whether the sequence takes the argmax of the raw logits."""
    return sequence.sampler.likeliest_only and sequence.hooks.process is None


def extend(sequence: Sequence, logits_NV: Tensor, likeliest: SequenceOf[int] | None) -> list[int]:
    """Draw new tokens from the rows, one after the other, while the guesses hold and the sequence goes on.

    logits_NV: float32, 1 + number of draft tokens rows. likeliest: the argmax of each row for a plain
    sequence, None for others. The tokens are appended to the sequence and returned.
    """
    drafts = sequence.draft_ids
    sequence.draft_ids = ()
    new: list[int] = []
    for i in range(len(logits_NV)):
        new.append(_extend_by_one(sequence, logits_NV[i : i + 1], likeliest[i] if likeliest else None))
        if sequence.status == "finished" or i == len(drafts) or drafts[i] != new[-1]:
            break
    return new


def _extend_by_one(sequence: Sequence, logits_1V: Tensor, likeliest: int | None) -> int:
    hooks, sampler = sequence.hooks, sequence.sampler
    scores_1V = logits_1V if likeliest is not None else sampler.scores(sequence, logits_1V)
    token = likeliest if likeliest is not None else sampler.choose(scores_1V)
    if hooks.record is not None:
        hooks.record(sequence, logits_1V, scores_1V)
    sampler.append(token)
    sequence.append(token)
    if hooks.stop is not None and hooks.stop(sequence, scores_1V) and sequence.status != "finished":
        sequence.finish("stop")
    return token
