"""Keys and values of finished requests, for later prompts that begin in the same way.

What a prompt begins with is known by a chain of cryptographic digests over blocks of its tokens: their ids,
their positions and the digests of the pictures and videos that begin there. Nothing that a client sends takes
part. Sequences that still run serve in the same way.

Legend: T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from qvl.engine.kv import SequenceKV
from qvl.engine.sequence import Sequence
from qvl.types import Medium, Prompt, Span

BLOCK = 16  # tokens with one digest; fewer are never shared
WORTH_WAITING = 128  # tokens that another sequence is about to compute, for which a prompt waits a step


@dataclass(frozen=True, eq=False)
class Beginning:
    """The tokens of a prompt, and perhaps of its answer, as far as others may share them.

    ``cells_T4``: int64, id and position (three axes) of each. ``media``: by the token at which each begins.
    ``keys``: of whole blocks, each of everything up to its end.
    """

    cells_T4: np.ndarray
    media: dict[int, bytes]
    keys: tuple[bytes, ...]

    @property
    def length(self) -> int:
        return len(self.cells_T4)

    @classmethod
    def of(cls, prompt: Prompt, output_ids: SequenceOf[int] = ()) -> Beginning:
        """Ends before the first medium without a digest."""
        ids, delta, start = prompt.token_ids, prompt.rope_delta, len(prompt.token_ids)
        positions = np.asarray(prompt.positions_3T.cpu()).T
        behind = np.arange(start, start + len(output_ids)) + delta
        cells = np.empty((start + len(output_ids), 4), dtype=np.int64)
        cells[:start, 0], cells[start:, 0] = ids, output_ids
        cells[:start, 1:], cells[start:, 1:] = positions, behind[:, None]
        pairs = list(zip(prompt.spans, prompt.media, strict=True))
        unknown = min((span.start for span, medium in pairs if medium.digest is None), default=len(cells))
        cells = cells[:unknown]
        media = {span.start: _described(span, medium) for span, medium in pairs if span.start < unknown}
        return cls(cells, media, tuple(_chain(cells, media)))

    def shared(self, other: Beginning, blocks: int) -> int:
        """Tokens at the start that are the same in both, ``blocks`` whole blocks of them for certain."""
        known = blocks * BLOCK
        end = min(known + BLOCK, self.length, other.length)
        same = (self.cells_T4[known:end] == other.cells_T4[known:end]).all(axis=1)
        end = known + int(np.argmin(same)) if not same.all() else end
        for at in range(known, end):
            if self.media.get(at) != other.media.get(at):
                return at
        return end


@dataclass(eq=False)
class Entry:
    """A beginning and the keys and values of its tokens."""

    number: int
    beginning: Beginning
    kv: SequenceKV

    @property
    def nbytes(self) -> int:
        return self.kv.nbytes


@dataclass(frozen=True)
class Match:
    """``length`` tokens of an entry that a prompt begins with. ``whole``: all that the entry has."""

    entry: Entry
    length: int

    @property
    def whole(self) -> bool:
        return self.length == self.entry.kv.length

    @property
    def mostly(self) -> bool:
        return 4 * (self.entry.kv.length - self.length) <= self.length

    @property
    def nbytes(self) -> int:
        return self.entry.nbytes

    @property
    def capacity(self) -> int:
        return self.entry.kv.capacity


class Index:
    """Finds who shares the longest beginning, by blocks."""

    def __init__(self) -> None:
        self._at: dict[bytes, dict[int, Beginning]] = {}  # key of a block -> number -> beginning

    def add(self, number: int, beginning: Beginning) -> None:
        for key in beginning.keys:
            self._at.setdefault(key, {})[number] = beginning

    def remove(self, number: int, beginning: Beginning) -> None:
        for key in beginning.keys:
            holders = self._at.get(key, {})
            holders.pop(number, None)
            if not holders:
                self._at.pop(key, None)

    def longest(self, beginning: Beginning) -> tuple[int, int] | None:
        """``(number, tokens)`` of the one that shares most; of equal ones the latest."""
        holders: dict[int, Beginning] = {}
        blocks = 0
        for key in beginning.keys:
            if key not in self._at:
                break
            holders, blocks = self._at[key], blocks + 1
        if not blocks:
            return None
        length, number = max((beginning.shared(other, blocks), n) for n, other in holders.items())
        return number, length


class Prefixes:
    """What finished sequences left behind, least recently used first, and what running ones have so far.

    The limit is somebody else's: see `qvl.engine.budget`.
    """

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}  # in order of use
        self._kept = Index()
        self._started: dict[int, Sequence] = {}
        self._running = Index()
        self._waiting: set[int] = set()
        self._next = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def keep(self, sequence: Sequence) -> None:
        """Take over the keys and values of a finished sequence."""
        kv: SequenceKV = sequence.kv
        outputs = sequence.output_ids[: max(0, kv.length - sequence.prompt_length)]
        beginning = Beginning.of(sequence.prompt, outputs)
        if min(kv.length, beginning.length) < BLOCK:
            return
        kv.truncate(min(kv.length, beginning.length))
        for entry in [e for e in self._entries.values() if _covers(beginning, e.beginning)]:
            self._forget(entry)
        entry = Entry(self._next, beginning, kv)
        self._next += 1
        self._entries[entry.number] = entry
        self._kept.add(entry.number, beginning)
        self.nbytes += entry.nbytes

    def drop(self) -> bool:
        """Forget what was used least recently; False where nothing is left."""
        entry = next(iter(self._entries.values()), None)
        if entry is not None:
            self._forget(entry)
        return entry is not None

    def find(self, sequence: Sequence) -> Match | None:
        """What is kept of the sequence's beginning; at least its last token is left to compute."""
        if not sequence.shares:
            return None
        best = self._kept.longest(_beginning(sequence))
        if best is None:
            return None
        number, length = best
        entry = self._entries.pop(number)
        self._entries[number] = entry  # now the latest
        return Match(entry, min(length, entry.kv.length, sequence.length - 1))

    def give(self, found: Match, sequence: Sequence, *, move: bool) -> None:
        """Let the sequence start from it: with a copy of ``sequence.reserved`` tokens' size, or the thing."""
        kv = found.entry.kv
        if not move:
            self._copy(kv, sequence, found.length)
            return
        self._forget(found.entry)
        kv.truncate(found.length)
        if kv.capacity > sequence.reserved:
            kv.resize(sequence.reserved)
        _begin(sequence, kv)

    def follow(self, sequence: Sequence) -> bool:
        """Whether the sequence should wait for another one that computes its beginning.

        Where that one has got far enough its keys are copied. Only those are waited for that have begun, and
        they wait for nobody, so somebody always gets on. Called before a sequence begins.
        """
        if not sequence.shares:
            return False
        best = self._running.longest(_beginning(sequence))
        if best is not None:
            other, length = self._started[best[0]], min(best[1], sequence.length - 1)
            ready = min(length, other.num_computed)
            least = (
                BLOCK if sequence.id in self._waiting else WORTH_WAITING
            )  # who has waited waits to the end
            if length - max(ready, sequence.num_computed) >= least:
                self._waiting.add(sequence.id)
                return True
            if ready - sequence.num_computed >= BLOCK and other.kv is not None:
                self._copy(other.kv, sequence, ready)
        self._waiting.discard(sequence.id)
        self._started[sequence.id] = sequence
        self._running.add(sequence.id, _beginning(sequence))
        return False

    def stop(self, sequence: Sequence) -> None:
        """The sequence runs no longer: nobody is to follow it."""
        self._waiting.discard(sequence.id)
        if self._started.pop(sequence.id, None) is not None:
            self._running.remove(sequence.id, _beginning(sequence))

    def _copy(self, kv: SequenceKV, sequence: Sequence, length: int) -> None:
        sequence.kv, sequence.num_computed = None, 0  # what it had from elsewhere is the same, and shorter
        try:
            _begin(sequence, kv.copy(length, sequence.reserved))
        except (RuntimeError, MemoryError):  # no memory after all: it is computed
            sequence.kv, sequence.num_computed = None, 0

    def _forget(self, entry: Entry) -> None:
        self.nbytes -= entry.nbytes
        del self._entries[entry.number]
        self._kept.remove(entry.number, entry.beginning)


def _begin(sequence: Sequence, kv: SequenceKV) -> None:
    sequence.kv, sequence.num_computed = kv, kv.length
    if not sequence.recompute:  # what is computed again was counted before
        sequence.cached_tokens = sequence.num_computed


def _beginning(sequence: Sequence) -> Beginning:
    if sequence.beginning is None:
        sequence.beginning = Beginning.of(sequence.prompt)
    beginning: Beginning = sequence.beginning
    return beginning


def _covers(longer: Beginning, shorter: Beginning) -> bool:
    """Whether all blocks of the shorter one are the longer one's."""
    blocks = len(shorter.keys)
    return 0 < blocks <= len(longer.keys) and longer.keys[blocks - 1] == shorter.keys[-1]


def _described(span: Span, medium: Medium) -> bytes:
    """All that decides what a medium's tokens mean."""
    grid = medium.grid
    text = f"{medium.kind} {grid.t} {grid.h} {grid.w} {span.length} {medium.seconds_per_grid!r} "
    return text.encode() + (medium.digest or b"")


def _chain(cells_T4: np.ndarray, media: dict[int, bytes]) -> Iterable[bytes]:
    starts = sorted(media)
    key, done = b"", 0
    for start in range(0, len(cells_T4) - BLOCK + 1, BLOCK):
        digest = blake2b(key, digest_size=32)
        digest.update(cells_T4[start : start + BLOCK].tobytes())
        while done < len(starts) and starts[done] < start + BLOCK:
            described = media[starts[done]]
            digest.update(f"{starts[done]} {len(described)} ".encode() + described)
            done += 1
        key = digest.digest()
        yield key
