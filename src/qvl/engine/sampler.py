"""Drawing the next tokens of one sequence, with everything that draw depends on: it lives on the sequence.

The rows of logits that a step gives a sequence are taken in order: each token is appended before the next
row is looked at. So a checked guess leaves ids, penalties and random numbers exactly as one step per token
would have.

Legend: N rows of one sequence in a step, V vocabulary, T tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from qvl.engine.sequence import Sequence
from qvl.ops.sampling import Strategy, check_draw, draw, draw_rows, strategies
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
        return self._apply(self.strategies.after, self.penalised(sequence, logits_1V))

    def penalised(self, sequence: Sequence, logits_1V: Tensor) -> Tensor:
        """The scores before truncation."""
        scores_1V = self._apply(self.strategies.before, logits_1V)
        if sequence.hooks.process is None:
            return scores_1V
        # The hook may write into what it gets; the raw logits are recorded too.
        given = scores_1V.clone() if scores_1V is logits_1V else scores_1V
        return sequence.hooks.process(sequence, given)

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for samplers that do the same to penalised scores."""
        return (self.greedy, self.strategies.after)

    def truncated(self, scores_NV: Tensor) -> Tensor:
        """Truncation, of many rows at once: unlike penalties it does not look at the ids."""
        return self._apply(self.strategies.after, scores_NV)

    def choose(self, scores_1V: Tensor, drafted: int = 0, probs_1V: Tensor | None = None) -> int:
        """A token from the distribution of the scores: ``drafted``, drawn from ``probs_1V``, where it can
        stay."""
        if self.greedy:
            return int(scores_1V.argmax())
        if probs_1V is None:
            return draw(scores_1V, self.generator)
        return check_draw(scores_1V, drafted, probs_1V, self.generator)

    def guess(self, logits_1V: Tensor) -> tuple[int, Tensor]:
        """A draft from a draft model's logits, and the probabilities (1, V) that it was taken from.

        Penalties and truncation act as on the real token, which makes drafts that hold; the caller's hook is
        left alone, because it may keep count of what it sees. The draft counts as a token until the caller
        takes it back.
        """
        scores_1V = self.truncated(self._apply(self.strategies.before, logits_1V))
        token = int(scores_1V.argmax()) if self.greedy else draw(scores_1V, self.generator)
        self.append(token)
        return token, scores_1V.softmax(dim=-1)

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


@dataclass(frozen=True)
class Choice:
    """A token and the scores that it was drawn from."""

    token: int
    scores_1V: Tensor


def choose_together(rows: SequenceOf[tuple[Sequence, Tensor]]) -> list[Choice | Exception]:
    """The next token of many sequences, each with its row of logits (1, V), or what went wrong for it alone.

    Sequences with the same truncation go through it, and through softmax, in one tensor: row by row that is
    the same arithmetic, and for N sequences N times fewer calls.
    """
    kinds: dict[tuple[object, ...], list[int]] = {}
    chosen: dict[int, Choice | Exception] = {}
    penalised: dict[int, Tensor] = {}
    for i, (sequence, logits_1V) in enumerate(rows):
        try:
            penalised[i] = sequence.sampler.penalised(sequence, logits_1V)
            kinds.setdefault(sequence.sampler.kind, []).append(i)
        except Exception as error:
            chosen[i] = error
    for members in kinds.values():
        samplers = [rows[i][0].sampler for i in members]
        chosen |= zip(members, _chosen(samplers, [penalised[i] for i in members]), strict=True)
    return [chosen[i] for i in range(len(rows))]


def _chosen(samplers: SequenceOf[Sampler], penalised: SequenceOf[Tensor]) -> list[Choice | Exception]:
    """Tokens of sequences with the same truncation."""
    try:
        scores_NV = samplers[0].truncated(penalised[0] if len(penalised) == 1 else torch.cat(list(penalised)))
    except Exception as error:
        if len(samplers) == 1:
            return [error]
        # Somebody's scores cannot be truncated. Nothing was drawn yet: each by itself.
        return [_chosen([s], [p])[0] for s, p in zip(samplers, penalised, strict=True)]
    rows = scores_NV.split(1)
    if samplers[0].greedy:
        return [Choice(*pair) for pair in zip(scores_NV.argmax(dim=-1).tolist(), rows, strict=True)]
    drawn = draw_rows(scores_NV, [s.generator for s in samplers])
    return [
        token if isinstance(token, Exception) else Choice(token, row)
        for token, row in zip(drawn, rows, strict=True)
    ]


def extend(
    sequence: Sequence,
    logits_NV: Tensor,
    likeliest: SequenceOf[int] | None = None,
    choice: Choice | None = None,
) -> list[int]:
    """Draw new tokens from the rows, one after the other, while the guesses hold and the sequence goes on.

    A guess that nobody drew (looked up, or a likeliest token) is compared with what the row draws: that is
    speculative sampling's rule for a certain guess, with the random numbers of one step per token.

    logits_NV: float32, 1 + number of draft tokens rows. likeliest: the argmax of each row for a plain
    sequence, None for others. choice: what was drawn already from a single row. The tokens are appended to
    the sequence and returned.
    """
    drafts, probs = sequence.draft_ids, sequence.draft_probs
    sequence.draft_ids, sequence.draft_probs = (), ()
    new: list[int] = []
    for i in range(len(logits_NV)):
        logits_1V = logits_NV[i : i + 1]
        if likeliest is not None:
            choice = Choice(likeliest[i], logits_1V)
        elif choice is None or i:
            scores_1V = sequence.sampler.scores(sequence, logits_1V)
            drawn = (drafts[i], probs[i]) if i < len(probs) else ()
            choice = Choice(sequence.sampler.choose(scores_1V, *drawn), scores_1V)
        new.append(_extend_by_one(sequence, logits_1V, choice))
        if sequence.status == "finished" or i == len(drafts) or drafts[i] != new[-1]:
            break
    sequence.guessed += len(drafts)
    sequence.accepted += sum(a == b for a, b in zip(drafts, new, strict=False))
    return new


def _extend_by_one(sequence: Sequence, logits_1V: Tensor, choice: Choice) -> int:
    hooks, sampler = sequence.hooks, sequence.sampler
    token, scores_1V = choice.token, choice.scores_1V
    if hooks.record is not None:
        hooks.record(sequence, logits_1V, scores_1V)
    sampler.append(token)
    sequence.append(token)
    if hooks.stop is not None:
        why = hooks.stop(sequence, scores_1V)
        if why and sequence.status != "finished":
            sequence.finish(why if isinstance(why, str) else "stop")
    return token
