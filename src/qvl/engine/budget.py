"""Who holds how much of the memory for keys and values: a ledger, without a tensor in it.

Running requests hold *reserved* memory, finished ones leave *kept* memory behind, and both together never
exceed the limit. What is kept gives way to whoever runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from qvl.engine.sequence import Sequence
from qvl.errors import GenerationError, PromptTooLongError

PIECE = 64  # tokens that a cache grows by at least; longer ones by an eighth, so that copies stay rare


class Holder(Protocol):
    """What the ledger sees of a sequence or a beam search."""

    @property
    def id(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def lanes(self) -> tuple[Sequence, ...]: ...


class Found(Protocol):
    """A kept prefix that a new prompt begins with. ``whole``: with all of it; ``mostly``: what is behind is
    little, and soon computed again."""

    @property
    def nbytes(self) -> int: ...

    @property
    def capacity(self) -> int: ...

    @property
    def whole(self) -> bool: ...

    @property
    def mostly(self) -> bool: ...


class Kept(Protocol):
    """What finished requests left behind."""

    @property
    def nbytes(self) -> int: ...

    def drop(self) -> bool:
        """Forget what was used least recently; False where nothing is left."""
        ...

    def find(self, sequence: Sequence) -> Any:
        """A `Found` for this prompt, or None. It now counts as just used."""
        ...

    def give(self, found: Any, sequence: Sequence, *, move: bool) -> None:
        """Let the sequence start from it: a copy with room for ``sequence.reserved``, or the thing itself."""
        ...

    def follow(self, sequence: Sequence) -> bool:
        """Whether the sequence should wait for another one that computes its beginning; where that one has
        got far enough, its keys are copied."""
        ...


class Memory:
    """``limit``: bytes for keys and values in all."""

    def __init__(self, limit: int, kept: Kept | None = None) -> None:
        self.limit = limit
        self.kept = kept
        self.reserved = 0  # bytes
        self._held: dict[int, int] = {}  # of which requests

    @property
    def free(self) -> int:
        """Bytes that nobody holds, once everything kept is dropped."""
        return self.limit - self.reserved

    def check(self, request: Holder) -> None:
        """Raises PromptTooLongError or GenerationError for a request that could never run."""
        lane = request.lanes[0]
        most = self.limit // (lane.token_bytes * request.width)
        if lane.prompt_length > most:
            raise PromptTooLongError(
                f"The prompt has {lane.prompt_length} tokens, but the memory for keys and values "
                f"({self.limit:,} bytes) holds {most}; shorten the text, or use fewer or smaller pictures."
            )
        if max(lane.final_length, _capacity(lane)) > most:
            raise GenerationError(
                f"{lane.prompt_length} tokens of prompt and max_new_tokens={lane.params.max_new_tokens} need "
                f"more than the memory for keys and values ({self.limit:,} bytes) holds, which is {most} "
                f"tokens; set max_new_tokens to {most - lane.prompt_length + 1} or less."
            )

    def admit(self, request: Holder, running: Iterable[Holder]) -> bool:
        """Set memory aside for a request that is about to run; False where there is too little.

        A little is left for those who run already, or the newcomer would soon have to make way for them.
        """
        lane = request.lanes[0]
        given = lane is not request or lane.pinned  # these never make way for others
        tokens = lane.final_length if given else _first(lane)
        tokens = max(tokens, _capacity(lane))
        growing = [other for other in running if _grows(other)]
        spare = sum(PIECE * other.lanes[0].token_bytes for other in growing)
        needed = tokens * request.width * lane.token_bytes
        if needed + spare > self.free:
            return False
        lane.reserved = tokens
        found = self.kept.find(lane) if self.kept is not None and not given else None
        if found is None:
            self._hold(request, needed)
        else:
            self._give(found, lane)
        return True

    def grow(self, lane: Sequence, tokens: int) -> bool:
        """Set memory aside for so many tokens of a running sequence; False where there is too little."""
        if tokens <= lane.reserved:
            return True
        most = max(lane.final_length, tokens)
        for size in (min(most, tokens + max(PIECE, tokens // 8)), tokens):
            extra = (size - lane.reserved) * lane.token_bytes
            if extra <= self.free:
                lane.reserved = size
                self._hold(lane, extra)
                return True
        return False

    def release(self, request: Holder) -> None:
        """A request runs no longer."""
        self.reserved -= self._held.pop(request.id, 0)

    def _give(self, found: Any, lane: Sequence) -> None:
        """Start from what is kept: a copy, or the thing itself where the whole of it is wanted, or where a
        copy would not fit, or would cost others more than the end of it is worth."""
        assert self.kept is not None
        needed = lane.reserved * lane.token_bytes
        crowded = needed + self.kept.nbytes > self.free
        move = found.whole or (found.mostly and crowded) or needed + found.nbytes > self.free
        if move and found.nbytes <= self.free:
            lane.reserved = max(lane.reserved, found.capacity)
            needed = lane.reserved * lane.token_bytes
        if not move:  # what is dropped for the copy is gone before the copy is made
            self._hold(lane, needed)
        self.kept.give(found, lane, move=move)
        if move:
            self._hold(lane, needed)

    def _hold(self, request: Holder, extra: int) -> None:
        self.reserved += extra
        self._held[request.id] = self._held.get(request.id, 0) + extra
        while self.kept is not None and self.kept.nbytes > self.free and self.kept.drop():
            pass


def _first(lane: Sequence) -> int:
    """Tokens that memory is set aside for at first: those to be computed, and some of the answer."""
    return min(lane.final_length, lane.length + max(PIECE, lane.length // 8))


def _capacity(lane: Sequence) -> int:
    """Of a cache that a caller brought."""
    return 0 if lane.kv is None else int(lane.kv.capacity)


def _grows(request: Holder) -> bool:
    lane = request.lanes[0]
    return lane is request and lane.reserved < lane.final_length
