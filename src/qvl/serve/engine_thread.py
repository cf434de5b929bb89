"""The engine on a thread of its own, behind the `Service` that routes use.

Requests come from an event loop, go to the thread as commands, and what the engine makes of them comes back
to the loop once a step. The thread sleeps while there is nothing to do. Only it touches the engine.

A slow reader holds nobody up, and costs little: what waits for it are tokens, at most ``max_new_tokens`` of
them for each answer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import Any

from qvl.serve.answers import Answer
from qvl.serve.errors import DrainingError, QueueFullError
from qvl.serve.jobs import Job, JobEnd, Piece, Usage
from qvl.serve.logs import RequestRecord, current
from qvl.serve.metrics import Metrics
from qvl.serve.settings import ServeSettings
from qvl.serve.tokentext import TokenTable
from qvl.types import Delta

FAILURES_IN_A_ROW = 3  # steps of the engine, after which the server is not well
_log = logging.getLogger("qvl.serve")
_Outbox = dict[asyncio.AbstractEventLoop, list[tuple["_Task", "Piece | Exception"]]]


@dataclass(eq=False)
class _Task:
    """A job on its way: what the loop and the thread share of it."""

    job: Job
    answer: Answer
    loop: asyncio.AbstractEventLoop
    record: RequestRecord | None
    deadline: float | None
    client: str
    arrived: float = field(default_factory=monotonic)
    pieces: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)
    sequence_id: int | None = None
    left: bool = False  # by whoever reads it
    done: bool = False


class AnswerPieces:
    """The pieces of one answer, in order. Leaving early (`aclose`, a cancelled task, or letting go of the
    iterator) cancels the job.
    """

    def __init__(self, task: _Task, leave: Callable[[_Task], None]) -> None:
        self._task = task
        self._leave = leave
        self._over = False

    def __aiter__(self) -> AnswerPieces:
        return self

    async def __anext__(self) -> Piece:
        if self._over:
            raise StopAsyncIteration
        try:
            piece = await self._task.pieces.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if isinstance(piece, Exception):
            self._over = True
            raise piece
        self._over = piece.end is not None
        return piece

    async def aclose(self) -> None:
        if not self._over:
            self._over = True
            self._leave(self._task)

    def __del__(self) -> None:
        if not self._over:
            self._leave(self._task)


class EngineThread:
    """A `Service` on ``engine`` (an `Engine`, or its fake). ``tokenizer``: of the model it runs."""

    def __init__(self, engine: Any, tokenizer: Any, settings: ServeSettings, metrics: Metrics) -> None:
        self._engine = engine
        self._table = TokenTable(tokenizer)
        self._settings = settings
        self._metrics = metrics
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._live: set[_Task] = set()
        # Of _live and the records of tasks. Reentrant: an iterator may be collected, and leave, anywhere.
        self._lock = threading.RLock()
        self._by_id: dict[int, _Task] = {}
        self._queued: set[_Task] = set()  # in the engine, and not yet in its running batch
        self._outbox: _Outbox = {}
        self._thread: threading.Thread | None = None
        self._draining = self._closing = self._died = False
        self._failures = 0
        self._step_began: float | None = None
        metrics.watch(self.stats)

    # For the loop

    def submit(self, job: Job) -> AnswerPieces:
        """As `Service.submit`. To be called where an event loop runs.

        What the job does not say of its client and its deadline is taken from the request that is being
        answered.
        """
        record = current.get()
        if self._died or (self._draining and record is None):
            raise DrainingError("This server is about to stop; try again, here or elsewhere, in a while.")
        task = self._task(job, record)
        with self._lock:
            self._check_room()
            self._live.add(task)
        self._commands.put(partial(self._add, task))
        return AnswerPieces(task, self._left)

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="qvl-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the engine can be expected to answer: False once its thread died, its steps fail one after
        the other, or one step takes longer than a whole request may."""
        began = self._step_began
        stuck = began is not None and monotonic() - began > self._settings.limits.request_seconds
        running = self._thread is not None and self._thread.is_alive() and not self._died
        return running and not stuck and self._failures < FAILURES_IN_A_ROW

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def jobs(self) -> int:
        """Jobs that are under way or wait."""
        return len(self._live)

    @property
    def capacity(self) -> int | None:
        """Tokens, of a prompt and its answer together, that there is memory for; None: no limit."""
        capacity: int | None = self._engine.capacity
        return capacity

    def drain(self) -> None:
        """Take no new requests; those that are being answered go on."""
        self._draining = True

    def abort_all(self) -> None:
        """End every answer ("abort")."""
        with self._lock:
            tasks = list(self._live)
        for task in tasks:
            self._commands.put(partial(self._finish_early, task, "abort"))

    async def close(self) -> None:
        """End every answer and the thread."""
        self._draining = True
        self.abort_all()
        thread, self._closing = self._thread, True
        self._commands.put(lambda: None)  # wakes it
        if thread is not None and thread.is_alive():
            await asyncio.to_thread(thread.join, 10.0)

    def stats(self) -> Any:
        """The engine's own statistics."""
        return self._engine.stats()

    def _task(self, job: Job, record: RequestRecord | None) -> _Task:
        deadlines = [job.deadline, None if record is None else record.deadline]
        if record is not None:
            record.media.update(id(medium) for medium in job.prompt.media)
        return _Task(
            job,
            Answer(job, self._table),
            asyncio.get_running_loop(),
            record,
            min((d for d in deadlines if d is not None), default=None),
            job.client or ("" if record is None else record.client),
        )

    def _check_room(self) -> None:
        most = self._settings.max_sequences + self._settings.limits.waiting
        if len(self._live) >= most:
            raise QueueFullError(f"The server holds {most} requests already; try again in a few seconds.")

    def _left(self, task: _Task) -> None:
        """Whoever read the answer is gone: its request is over now, whenever the thread hears of it."""
        task.left = True
        self._note(task, "abort", task.answer.usage)
        self._commands.put(partial(self._finish_early, task, "abort"))

    # On the thread

    def _run(self) -> None:
        try:
            while self._obey():
                self._expire()
                if self._has_work():
                    self._step()
                self._send()
        except BaseException as error:
            _log.error("the engine's thread has ended", exc_info=error)
            self._died = True
            for task in list(self._live):
                self._finish(task, task.answer.last_piece("error", RuntimeError("the engine has ended")))
            self._send()

    def _obey(self) -> bool:
        """Do what was asked since the last step, and wait for something to do; False: there is no more."""
        if not self._has_work():
            self._commands.get()()
        while not self._commands.empty():
            self._commands.get()()
        self._send()
        return not self._closing

    def _has_work(self) -> bool:
        """Whether to run a step. One that failed with nobody waiting is not tried again and again."""
        return bool(self._engine.has_work and (self._by_id or not self._failures))

    def _add(self, task: _Task) -> None:
        if task.left or task.done:
            return
        try:
            job = task.job
            task.sequence_id = self._engine.add(
                job.prompt, job.params, hooks=task.answer.hooks(), client=task.client
            )
        except Exception as error:
            self._finish(task, error)
            return
        self._by_id[task.sequence_id] = task
        self._queued.add(task)

    def _finish_early(self, task: _Task, end: JobEnd) -> None:
        if task.done:
            return
        if task.sequence_id is not None:
            self._engine.abort(task.sequence_id)
        self._finish(task, task.answer.last_piece(end))

    def _expire(self) -> None:
        now = monotonic()
        for task in [t for t in self._by_id.values() if t.deadline is not None and t.deadline <= now]:
            self._finish_early(task, "timeout")

    def _step(self) -> None:
        self._step_began = began = monotonic()
        try:
            deltas = self._engine.step()
        except Exception as error:
            self._failed(error)
            return
        finally:
            self._step_began = None
        self._failures = 0
        self._metrics.time("step", monotonic() - began)
        self._note_started(deltas, began)
        for delta in deltas:
            task = self._by_id.get(delta.sequence_id)
            if task is not None:
                piece = task.answer.piece(delta)
                if piece is not None:
                    self._hand_out(task, piece)

    def _note_started(self, deltas: list[Delta], began: float) -> None:
        """Note whose prompts have begun to be computed in the step that ``began`` then."""
        ended = {delta.sequence_id for delta in deltas if delta.finish_reason is not None}
        for task in tuple(self._queued):
            sequence = None if task.sequence_id in ended else self._known(task)
            if sequence is None or sequence.status == "running":
                self._queued.discard(task)
                task.answer.started = began
                self._metrics.time("queue", began - task.arrived)

    def _failed(self, error: Exception) -> None:
        """A step has raised: the requests that the engine dropped end; if it dropped none, all end."""
        self._failures += 1
        self._metrics.engine_error()
        _log.error("a step of the engine failed", exc_info=error)
        tasks = list(self._by_id.values())
        dropped = [task for task in tasks if self._known(task) is None]
        for task in dropped or tasks:
            if not dropped:
                self._engine.abort(task.sequence_id)
            self._finish(task, task.answer.last_piece("error", error))

    def _known(self, task: _Task) -> Any:
        """The task's sequence; None once the engine has let go of it."""
        try:
            return self._engine.sequence(task.sequence_id)
        except KeyError:
            return None

    def _hand_out(self, task: _Task, piece: Piece) -> None:
        if piece.end is None:
            self._outbox.setdefault(task.loop, []).append((task, piece))
        else:
            self._finish(task, piece)

    def _finish(self, task: _Task, last: Piece | Exception) -> None:
        task.done = True
        self._queued.discard(task)
        with self._lock:
            self._live.discard(task)
        if task.sequence_id is not None:
            self._by_id.pop(task.sequence_id, None)
        if isinstance(last, Piece) and last.end is not None:
            self._count(task, last.end, last.usage)
        self._outbox.setdefault(task.loop, []).append((task, last))

    def _count(self, task: _Task, end: JobEnd, usage: Usage) -> None:
        answer, metrics = task.answer, self._metrics
        metrics.answer(end, usage)
        if answer.first:
            metrics.time("first_token", answer.first - task.arrived)
            metrics.time("prompt", answer.first - answer.started)
        if usage.completion_tokens > 1:
            metrics.time("token", (answer.last - answer.first) / (usage.completion_tokens - 1))
        self._note(task, end, usage)

    def _note(self, task: _Task, end: JobEnd, usage: Usage) -> None:
        """Put an answer into its request's log line, once."""
        with self._lock:
            record, task.record = task.record, None
        if record is not None:
            record.count(end, usage, task.answer.first)

    def _send(self) -> None:
        """Hand all pieces of a step to their loops, in one call for each."""
        outbox, self._outbox = self._outbox, {}
        for loop, items in outbox.items():
            try:
                loop.call_soon_threadsafe(_deliver, items)
            except RuntimeError:  # the loop is closed, and with it everybody who read
                for task, _ in items:
                    self._finish_early(task, "abort")


def _deliver(items: list[tuple[_Task, Piece | Exception]]) -> None:
    for task, piece in items:
        task.pieces.put_nowait(piece)
