"""Many questions through one engine: media are opened ahead in threads, and who is done makes room at once.

There is no batch whose longest answer the others wait for. What is kept in memory is bounded in bytes and in
questions, however long the file is. It knows prompts and engines, and nothing of right and wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from qvl.errors import MissingDependencyError, QvlError
from qvl.evaluate.preparing import Prepared
from qvl.evaluate.questions import Question
from qvl.processing.threads import threads
from qvl.types import Delta, FinishReason, SamplingParams

LEAST_WORKERS = 2  # one opens the next picture while another resizes its own


@dataclass(frozen=True, eq=False)
class Said:
    """What came back for a question: the tokens of an answer, or the ``error`` that there is instead.

    ``seconds``: from the moment it was put into the engine.
    """

    question: Question
    prepared: Prepared | None = None
    token_ids: tuple[int, ...] = ()
    finish: FinishReason = "stop"
    seconds: float = 0.0
    error: Exception | None = None


class Asker:
    """Asks with one engine (an `Engine`, or its fake). ``prepare``: makes a prompt of a question, or raises.

    ``at_once``: questions in the engine. ``most_bytes``: of patches that are held at the same time, as far as
    that can be told from those of earlier questions.
    """

    def __init__(
        self,
        engine: Any,
        prepare: Callable[[Question], Prepared],
        params: SamplingParams,
        at_once: int = 64,
        most_bytes: int = 2 * 2**30,
    ) -> None:
        self.engine, self.prepare, self.params = engine, prepare, params
        self.at_once, self.most_bytes = at_once, most_bytes
        self.workers = max(LEAST_WORKERS, threads())
        self._waiting: deque[tuple[Question, Future[Prepared]]] = deque()
        self._running: dict[int, tuple[Prepared, float]] = {}
        self._drawn = False  # whether there are no more questions
        self._bytes = self._seen = self._seen_bytes = 0  # held now; of all so far, number and bytes

    def ask(self, questions: Iterable[Question]) -> Iterator[Said]:
        """The answers as they come. An error of the engine ends it all, one of a question only that."""
        left, self._drawn = iter(questions), False
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="qvl-evaluate")
        try:
            while True:
                self._submit(pool, left)
                yield from self._add()
                if self.engine.has_work:
                    for delta in self.engine.step():
                        if delta.finish_reason is not None:
                            yield self._said(delta)
                elif not self._waiting and self._drawn:
                    return
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, left: Iterator[Question]) -> None:
        """Let the workers begin with as many questions as there will be room for."""
        room = min(self.at_once + self.workers - len(self._running), self._affordable()) - len(self._waiting)
        for _ in range(room):
            question = next(left, None)
            if question is None:
                self._drawn = True
                return
            self._waiting.append((question, pool.submit(self.prepare, question)))

    def _affordable(self) -> int:
        """How many questions may wait: as many as there is memory for, if they are like those so far."""
        if not self._seen:
            return 2 * self.workers
        left = self.most_bytes - self._bytes
        least = 0 if self._running or self._waiting else 1  # one that is larger than all memory goes alone
        return max(left * self._seen // max(self._seen_bytes, 1), least)

    def _add(self) -> Iterator[Said]:
        """Put what is prepared into the engine, in order; wait for it only if there is nothing else to do."""
        while self._waiting and (self._waiting[0][1].done() or not self._running):
            question, future = self._waiting.popleft()
            try:
                prepared = future.result()
                number = self.engine.add(prepared.prompt, self.params)
            except MissingDependencyError:
                raise
            except QvlError as error:
                yield Said(question, error=error, finish="error")
                continue
            self._running[number] = prepared, perf_counter()
            self._bytes += prepared.nbytes
            self._seen, self._seen_bytes = self._seen + 1, self._seen_bytes + prepared.nbytes

    def _said(self, delta: Delta) -> Said:
        prepared, started = self._running.pop(delta.sequence_id)
        self._bytes -= prepared.nbytes
        sequence: Any = delta.extras["sequence"]
        return Said(
            prepared.question,
            prepared,
            tuple(sequence.output_ids),
            delta.finish_reason or "stop",
            perf_counter() - started,
            sequence.error if delta.finish_reason == "error" else None,
        )
