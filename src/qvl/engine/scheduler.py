"""Who runs next: sequences that decode first, then prompts in chunks, within a budget of tokens.

Knows counts, not tensors. A *request* is a `Sequence` or a beam search: something with ``lanes``, the
sequences that must run in one step together, and ``width``, the most lanes it will ever have.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Protocol

from qvl.engine.sequence import Sequence, Status
from qvl.errors import GenerationError


class Request(Protocol):
    """What the scheduler sees of a sequence or a beam search."""

    id: int
    status: Status

    @property
    def width(self) -> int: ...

    @property
    def lanes(self) -> tuple[Sequence, ...]: ...


@dataclass(frozen=True, eq=False)
class Work:
    """Tokens ``start`` to ``start + count`` of one sequence, drafts included."""

    sequence: Sequence
    start: int
    count: int

    @property
    def samples(self) -> int:
        """Rows at the end of this piece that new tokens are drawn from."""
        behind_prompt = self.start + self.count - self.sequence.prompt_length
        return 0 if behind_prompt < 0 else 1 + len(self.sequence.draft_ids)


@dataclass(frozen=True)
class Step:
    """One pass through the network: pieces of sequences, in the order in which they are packed."""

    decodes: tuple[Work, ...] = ()
    chunks: tuple[Work, ...] = ()  # of prompts

    @property
    def work(self) -> tuple[Work, ...]:
        return self.decodes + self.chunks


@dataclass
class Scheduler:
    """First come, first served; nobody who decodes waits for a prompt.

    ``max_step_tokens``: tokens in one pass (a budget for time and memory). ``max_sequences``: sequences
    that hold keys and values at the same time.
    """

    max_step_tokens: int
    max_sequences: int
    # Gets the lanes that decode and the tokens that are left for guesses, and sets their ``draft_ids``.
    guess: Callable[[SequenceOf[Sequence], int], None] | None = None
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.max_step_tokens < 1 or self.max_sequences < 1:
            raise GenerationError(
                "max_step_tokens and max_sequences must be at least 1, "
                f"not {self.max_step_tokens} and {self.max_sequences}."
            )
        # Every running sequence must fit into a step with one token, or some would never move.
        self.max_sequences = min(self.max_sequences, self.max_step_tokens)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue a request; one that could never run is refused at once."""
        if request.width > self.max_sequences:
            raise GenerationError(
                f"{request.width} beams do not fit into an engine of {self.max_sequences} sequences; "
                "use fewer beams or a larger max_sequences."
            )
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Forget a request, finished or not."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def next(self) -> Step:
        """The next step; empty when there is nothing to do."""
        self._admit()
        decoding = [lane for request in self.running for lane in request.lanes if not lane.prefilling]
        budget = self.max_step_tokens - len(decoding)
        chunks, budget = self._chunks(budget)
        if self.guess is not None and decoding:  # guesses use what nobody else needs
            self.guess(decoding, budget)
        decodes = [Work(lane, lane.num_computed, 1 + len(lane.draft_ids)) for lane in decoding]
        return Step(tuple(decodes), tuple(chunks))

    def _admit(self) -> None:
        taken = sum(request.width for request in self.running)
        while self.waiting and taken + self.waiting[0].width <= self.max_sequences:
            request = self.waiting.popleft()
            request.status = "running"
            self.running.append(request)
            taken += request.width

    def _chunks(self, budget: int) -> tuple[list[Work], int]:
        """Pieces of the oldest unfinished prompts, and the budget that is left."""
        chunks: list[Work] = []
        for request in self.running:
            for lane in request.lanes:
                count = min(lane.prompt_length - lane.num_computed, budget)
                if count > 0:
                    chunks.append(Work(lane, lane.num_computed, count))
                    budget -= count
        return chunks, budget
