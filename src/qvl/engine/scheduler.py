"""Who runs next: sequences that decode first, then prompts in chunks, within budgets of tokens and memory.

Knows counts, not tensors. A *request* is a `Sequence` or a beam search: something with ``lanes``, the
sequences that must run in one step together, and ``width``, the most lanes it will ever have.

Nobody waits for ever. Requests are taken in the order in which they came, whoever does not fit blocks those
behind, and memory is taken from the youngest: so the oldest one that can lose memory always gets on. Searches
and sequences that brought their own keys hold all that they will ever need: they end in any case.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from math import ceil
from typing import Protocol

from qvl.engine.budget import Memory
from qvl.engine.sequence import Sequence, Status
from qvl.errors import GenerationError


class Request(Protocol):
    """What the scheduler sees of a sequence or a beam search."""

    id: int
    status: Status

    @property
    def client(self) -> str: ...

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
        end, sequence = self.start + self.count, self.sequence
        if end < sequence.prompt_length or end <= sequence.recompute:
            return 0
        return 1 + len(sequence.draft_ids)


@dataclass(frozen=True)
class Step:
    """One pass through the network: pieces of sequences, in the order in which they are packed."""

    decodes: tuple[Work, ...] = ()
    chunks: tuple[Work, ...] = ()  # of prompts, and of what is computed again

    @property
    def work(self) -> tuple[Work, ...]:
        return self.decodes + self.chunks

    def without(self, ids: Iterable[int]) -> Step:
        """The step without the lanes of these requests."""
        gone = set(ids)
        kept = (tuple(w for w in works if w.sequence.id not in gone) for works in (self.decodes, self.chunks))
        return Step(*kept)


@dataclass
class Scheduler:
    """First come, first served; nobody who decodes waits for a prompt.

    ``max_step_tokens``: tokens in one pass (a budget for time and memory). ``max_sequences``: sequences
    that hold keys and values at the same time. ``client_share``: of these, what one client may have while
    others wait. ``memory``: the ledger of bytes; None where nobody counts.
    """

    max_step_tokens: int
    max_sequences: int
    # Gets the lanes that decode and the tokens that are left for guesses, and sets their ``draft_ids``.
    guess: Callable[[SequenceOf[Sequence], int], None] | None = None
    client_share: float = 1.0
    memory: Memory | None = None
    # Gets a lane, a start and a count: how many of these tokens may run now (pictures may not be ready).
    ready: Callable[[Sequence, int, int], int] | None = None
    # What each token was computed with depends on its place: computed again, it comes alone.
    one_by_one: bool = False
    prompt_tokens: int | None = None  # of a step in which sequences decode; None: what is left
    on_preempt: Callable[[Sequence], None] | None = None
    waiting: deque[Request] = field(default_factory=deque)  # by id
    running: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.max_step_tokens < 1 or self.max_sequences < 1:
            raise GenerationError(
                "max_step_tokens and max_sequences must be at least 1, "
                f"not {self.max_step_tokens} and {self.max_sequences}."
            )
        # Every running sequence must fit into a step with one token, or some would never move.
        self.max_sequences = min(self.max_sequences, self.max_step_tokens)
        self._share = ceil(self.client_share * self.max_sequences)

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
        if self.memory is not None:
            self.memory.check(request)
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Forget a request, finished or not; its memory is free at once."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        if self.memory is not None:
            self.memory.release(request)

    @property
    def prompts(self) -> list[Sequence]:
        """Running sequences whose prompts are not done and wait for nobody, oldest first."""
        lanes = [lane for request in self.running for lane in request.lanes]
        return [lane for lane in lanes if lane.prefilling and lane.started]

    def admit(self) -> None:
        """Let those run whose turn it is, once those who run already have memory for their next token."""
        if self.memory is not None:
            self._grow(self.memory)
        if self.waiting:
            self._admit()
        self._start()

    def next(self) -> Step:
        """The next step; empty when there is nothing to do, or nothing can be done yet."""
        self.admit()
        decoding = [lane for request in self.running for lane in request.lanes if not lane.prefilling]
        budget = self.max_step_tokens - len(decoding)
        limit = budget if self.prompt_tokens is None or not decoding else min(budget, self.prompt_tokens)
        chunks, used = self._chunks(limit)
        if self.guess is not None and decoding:  # guesses use what nobody else needs
            self.guess(decoding, budget - used)
        decodes = [Work(lane, lane.num_computed, 1 + len(lane.draft_ids)) for lane in decoding]
        return Step(tuple(decodes), tuple(chunks))

    def _admit(self) -> None:
        taken, asking = Counter[str](), Counter(request.client for request in self.waiting)
        for request in self.running:
            taken[request.client] += request.width
        total = taken.total()
        for request in tuple(self.waiting):
            client, width = request.client, request.width
            if total + width > self.max_sequences:
                break
            others_wait = asking[client] < len(self.waiting)
            if others_wait and taken[client] and taken[client] + width > self._share:
                continue  # it has what it may have while others wait; one request is always let through
            if self.memory is not None and not self.memory.admit(request, self.running):
                break
            self.waiting.remove(request)
            request.status = "running"
            self.running.append(request)
            total, taken[client], asking[client] = total + width, taken[client] + width, asking[client] - 1

    def _start(self) -> None:
        """Sequences begin unless another one is about to compute the same."""
        kept = None if self.memory is None else self.memory.kept
        for request in self.running:
            if not request.lanes[0].started:
                for lane in request.lanes:
                    lane.started = kept is None or not kept.follow(lane)

    def _grow(self, memory: Memory) -> None:
        """Memory for the next token of everyone who decodes, oldest first; the youngest make way."""
        for request in sorted(self.running, key=lambda r: r.id):
            for lane in request.lanes:
                while request.status == "running" and not lane.prefilling:
                    if memory.grow(lane, lane.length):
                        break
                    self._preempt(memory)

    def _preempt(self, memory: Memory) -> None:
        """Take the memory from the youngest sequence; it queues again, in the order of its coming."""
        able = (r for r in self.running if isinstance(r, Sequence) and not r.pinned)
        youngest = max(able, key=lambda r: r.id)
        self.running.remove(youngest)
        memory.release(youngest)
        youngest.forget()
        insort(self.waiting, youngest, key=lambda r: r.id)
        if self.on_preempt is not None:
            self.on_preempt(youngest)

    def _chunks(self, budget: int) -> tuple[list[Work], int]:
        """Pieces of the oldest unfinished prompts, and the tokens in them."""
        chunks: list[Work] = []
        used = 0
        for request in self.running:
            for lane in request.lanes:
                count = self._next_piece(lane, budget - used)
                if count > 0:
                    chunks.append(Work(lane, lane.num_computed, count))
                    used += count
        return chunks, used

    def _next_piece(self, lane: Sequence, budget: int) -> int:
        if not lane.prefilling or not lane.started or budget < 1:
            return 0
        start = lane.num_computed
        count = min(lane.prefill_end - start, budget)
        if self.one_by_one and lane.recompute > lane.prompt_length:
            count = min(count, max(1, lane.prompt_length - start))
        return count if self.ready is None else self.ready(lane, start, count)
