"""The workers together: first come, first served, a dead one replaced, none held up by who has gone away."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from qvl.errors import MediaDecodeError, MediaTooLargeError
from qvl.serve.errors import DrainingError, NoWorkerError
from qvl.serve.media.process import Launch, Worker, WorkerDiedError, WorkerStartError

ABANDONED_SECONDS = 2.0  # that a job nobody waits for may still take: about what a new worker costs
FAILED_STARTS = 2  # in a row, after which nobody waits for the next one
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts to start a worker

logger = logging.getLogger(__name__)


class WorkerPool:
    """``count`` workers that are started again as often as they die."""

    def __init__(self, launch: Launch, count: int, seconds: float) -> None:
        self._launch = launch
        self._count = count
        self._seconds = seconds
        self._idle: deque[Worker] = deque()
        self._waiting: deque[asyncio.Future[Worker]] = deque()
        self._workers: set[Worker] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = True
        self._failed_starts = 0  # in a row

    @property
    def alive(self) -> bool:
        """Whether jobs are taken: a worker runs, or one is on its way. One that is killed while it starts, as
        where memory is short, says nothing yet of the next."""
        return not self._closed and (self._running or self._failed_starts < FAILED_STARTS)

    @property
    def _running(self) -> bool:
        return any(worker.alive for worker in self._workers)

    @property
    def pids(self) -> list[int]:
        return sorted(worker.process.pid for worker in self._workers)

    async def start(self) -> None:
        """Returns once all workers are ready. Raises WorkerStartError."""
        self._closed = False
        try:
            starting = [asyncio.create_task(Worker.start(self._launch)) for _ in range(self._count)]
            await asyncio.gather(*starting)
        except BaseException:
            self._closed = True
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            await asyncio.gather(
                *(t.result().end() for t in starting if not t.cancelled() and not t.exception())
            )
            raise
        for task in starting:
            self._workers.add(task.result())
            self._background(self._keep(task.result()))

    async def close(self) -> None:
        """Ends all workers; jobs that wait or run end with DrainingError."""
        self._closed = True
        self._turn_away()
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.gather(*(worker.end() for worker in self._workers))
        self._workers.clear()
        self._idle.clear()

    async def run(self, message: Mapping[str, Any], descriptors: Sequence[int]) -> dict[str, Any]:
        """A worker's answer to ``message``.

        A job whose worker was killed runs again, as that may not have been its fault: once for every worker,
        since all may be killed together. Raises MediaDecodeError where a decoder fails altogether,
        MediaTooLargeError for one that takes too long.
        """
        for _ in range(self._count):
            try:
                return await self._run_once(message, descriptors)
            except WorkerDiedError as error:
                if not error.killed:
                    raise self._failed() from error
        try:
            return await self._run_once(message, descriptors)
        except WorkerDiedError as error:
            raise self._failed() from error

    def _failed(self) -> Exception:
        return self._no_workers() if self._closed else MediaDecodeError("its content makes the decoder fail")

    def _no_workers(self) -> DrainingError:
        if self._closed:
            return DrainingError("the server is about to stop")
        return NoWorkerError("no media can be decoded at the moment: try again shortly")

    def _turn_away(self) -> None:
        """Ends the waiting of all: there is no worker to wait for."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(self._no_workers())

    async def _run_once(self, message: Mapping[str, Any], descriptors: Sequence[int]) -> dict[str, Any]:
        worker = await self._take()
        if not worker.send(message, descriptors):
            raise WorkerDiedError("the worker had ended before it was asked", killed=True)
        asking = asyncio.create_task(worker.answer())
        asking.add_done_callback(_looked_at)
        try:
            done, _ = await asyncio.wait([asking], timeout=self._seconds)
        except asyncio.CancelledError:
            self._background(self._finish(worker, asking))
            raise
        if done:
            self._give_back(worker)
            return asking.result()
        worker.kill()
        with suppress(WorkerDiedError):
            await asking
        raise MediaTooLargeError(f"decoding it takes more than the {self._seconds:g} seconds allowed")

    async def _finish(self, worker: Worker, asking: asyncio.Task[dict[str, Any]]) -> None:
        """Lets a job that was given up end if that is soon; a worker must not be stuck with it for long."""
        done, _ = await asyncio.wait([asking], timeout=ABANDONED_SECONDS)
        if not done:
            worker.kill()
        with suppress(WorkerDiedError):
            await asking
        self._give_back(worker)

    async def _take(self) -> Worker:
        """The next worker that is free; in the order of asking."""
        if not self.alive:
            raise self._no_workers()
        while self._idle:
            worker = self._idle.popleft()
            if worker.alive:
                return worker
        waiter: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give_back(waiter.result())
            raise

    def _give_back(self, worker: Worker) -> None:
        if not worker.alive or worker.spent or self._closed:
            return  # who keeps it sees to the rest
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(worker)
                return
        self._idle.append(worker)

    async def _keep(self, worker: Worker) -> None:
        """Replaces ``worker``, and whoever replaces it, when it is gone."""
        while True:
            self._workers.add(worker)
            self._give_back(worker)
            await worker.gone()
            await worker.end()
            self._workers.discard(worker)
            worker = await self._new_worker()

    async def _new_worker(self) -> Worker:
        pause = FIRST_PAUSE
        while True:
            try:
                worker = await Worker.start(self._launch)
                self._failed_starts = 0
                return worker
            except (WorkerStartError, OSError) as error:
                logger.error("a media worker could not be started again: %s", error)
                self._failed_starts += 1
                if not self.alive:
                    self._turn_away()
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _background(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _looked_at(task: asyncio.Task[Any]) -> None:
    """Takes note of an error that may be nobody's by now, lest asyncio complain of it."""
    if not task.cancelled():
        task.exception()
