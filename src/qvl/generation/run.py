"""Puts the rows of a call into the engine, runs it to the end and tells the streamer on the way.

Knows the engine and its deltas; nothing of arguments, and nothing of how the answer will be put together.

Legend: R rows of the answer, B prompts, L columns handed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qvl.engine.beams import BeamParams, BeamResult
from qvl.engine.engine import Engine
from qvl.engine.kv import SequenceKV
from qvl.generation.rows import OutputRow
from qvl.types import Delta, Prompt, SamplingParams


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt and the rows that answer it; ``params`` has one entry per row.

    ``kv``: what is known already of the prompt's keys and values.
    """

    prompt: Prompt
    rows: list[OutputRow]
    params: list[SamplingParams]
    kv: SequenceKV | None = None


class Stream:
    """Feeds a streamer in step with all rows: a token of every row at a time, pad ids where a row is done.

    ``singly``: of a single row too, where a step may bring several.
    """

    singly = False

    def __init__(self, streamer: Any, handed_RL: Tensor, pad_id: int | None) -> None:
        self._streamer = streamer
        self._pad_id = 0 if pad_id is None else pad_id
        self._rows: list[list[int]] = [[] for _ in handed_RL]
        self._finished = [False] * len(self._rows)
        self._sent = 0
        self._progress = [(0, 0)] * len(self._rows)
        streamer.put(handed_RL.cpu())

    def progress(self, row: int, done: int, total: int) -> None:
        """Tokens of the prompts that are computed, for streamers that have a ``progress`` method."""
        self._progress[row] = (done, total)
        report = getattr(self._streamer, "progress", None)
        if report is not None:
            report(*(sum(numbers) for numbers in zip(*self._progress, strict=True)))

    def take(self, row: int, token_ids: Sequence[int], finished: bool) -> None:
        self._rows[row].extend(token_ids)
        self._finished[row] = finished

    def send(self) -> None:
        """Hand on every token that no unfinished row still lacks."""
        open_rows = [len(r) for r, finished in zip(self._rows, self._finished, strict=True) if not finished]
        ready = min(open_rows, default=max(map(len, self._rows)))
        if len(self._rows) == 1 and ready > self._sent and not self.singly:
            new = torch.tensor(self._rows[0][self._sent : ready])
            self._streamer.put(new if len(new) == 1 else new[None])
        else:
            for step in range(self._sent, ready):
                self._streamer.put(torch.tensor([self._token(row, step) for row in self._rows]))
        self._sent = max(self._sent, ready)

    def end(self) -> None:
        self._streamer.end()

    def _token(self, row: list[int], step: int) -> int:
        return row[step] if step < len(row) else self._pad_id


@dataclass(eq=False)
class Run:
    """The requests of one call on one engine.

    Afterwards every row has its ``token_ids``; ``kvs`` holds the caches of all rows (of all beams) in order
    where ``keep_kv`` asked for them, and ``beams`` one result per prompt of a beam search.
    """

    engine: Engine
    requests: list[Request]
    keep_kv: bool = False
    stream: Stream | None = None
    beams: list[BeamResult] = field(default_factory=list)
    kvs: list[SequenceKV] = field(default_factory=list)

    def decode(self) -> None:
        """Greedy decoding and sampling."""
        running: dict[int, int] = {}  # engine id -> row
        waiting: dict[int, Request] = {}  # engine id of a request's first row -> the request
        first_row: dict[int, int] = {}
        kvs: dict[int, SequenceKV] = {}
        start = 0
        for request in self.requests:
            engine_id = self._add(request, 0, start, request.kv)
            running[engine_id] = start
            if len(request.rows) > 1:
                waiting[engine_id], first_row[engine_id] = request, start
            start += len(request.rows)
        rows = [row for request in self.requests for row in request.rows]
        while self.engine.has_work:
            for delta in self.engine.step():
                if delta.sequence_id in waiting and delta.finish_reason != "error":
                    request = waiting.pop(delta.sequence_id)
                    running |= self._add_siblings(request, first_row[delta.sequence_id], delta)
                row = running[delta.sequence_id]
                self._raise_error(delta, running)
                self._note(delta, row, rows[row], kvs)
            if self.stream is not None:
                self.stream.send()
        self.kvs = [kvs[row] for row in sorted(kvs)]
        if self.stream is not None:
            self.stream.end()

    def search(self, beams: BeamParams) -> None:
        """Beam search."""
        ids = [
            self.engine.add_beams(
                request.prompt,
                request.params[0],
                beams,
                kv=request.kv,
                hooks=request.rows[0].hooks(),
                keep_kv=self.keep_kv,
            )
            for request in self.requests
        ]
        results = {}
        for delta in self.engine.run():
            self._raise_error(delta, ids)
            results[delta.sequence_id] = delta.extras["beams"]
        self.beams = [results[i] for i in ids]
        for request, result in zip(self.requests, self.beams, strict=True):
            for row, token_ids in zip(request.rows, result.token_ids, strict=True):
                row.token_ids = token_ids
        self.kvs = [kv for result in self.beams for kv in result.kvs]

    def _add(self, request: Request, which: int, row: int, kv: SequenceKV | None) -> int:
        stream = self.stream
        progress = None if stream is None else (lambda done, total: stream.progress(row, done, total))
        return self.engine.add(
            request.prompt,
            request.params[which],
            kv=kv,
            hooks=request.rows[which].hooks(progress=progress),
            keep_kv=self.keep_kv or len(request.rows) > 1,
        )

    def _add_siblings(self, request: Request, first: int, delta: Delta) -> dict[int, int]:
        """The other rows of a prompt, once the first has its prompt computed: they copy it, but for the last
        token, whose logits each row needs."""
        sequence: Any = delta.extras.get("sequence") or self.engine.sequence(delta.sequence_id)
        added = {}
        for which in range(1, len(request.rows)):
            kv = sequence.kv.copy()
            kv.truncate(sequence.prompt_length - 1)
            added[self._add(request, which, first + which, kv)] = first + which
        return added

    def _raise_error(self, delta: Delta, engine_ids: Iterable[int]) -> None:
        """What ends one row of a call ends the call, and all its rows."""
        if delta.finish_reason == "error":
            for engine_id in engine_ids:
                self.engine.abort(engine_id)
            raise delta.extras["error"]

    def _note(self, delta: Delta, index: int, row: OutputRow, kvs: dict[int, SequenceKV]) -> None:
        finished = delta.finish_reason is not None
        if self.stream is not None:
            self.stream.take(index, delta.token_ids, finished)
        if finished:
            sequence = delta.extras["sequence"]
            row.token_ids = tuple(sequence.output_ids)
            if self.keep_kv:
                kvs[index] = sequence.kv
