"""One worker process as the server sees it: started with next to nothing, asked, timed, killed, reaped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, Any

from qvl.errors import QvlError
from qvl.serve.settings import Limits

START_SECONDS = 120.0  # importing torch from a cold disk takes a while
EXIT_SECONDS = 1.0  # that a worker which hung up has to end by itself
ANSWER_BYTES = 2**20  # no honest answer is longer
# All that a worker is told of the server's environment: how to find libraries, and no key or token.
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL")
OWN_VARIABLES = {
    "OMP_NUM_THREADS": "1",  # a worker is one of several processes on the engine's cores
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from qvl.serve.media.confinement import confine; confine(); "
    "from qvl.serve.media.worker import main; main()"
)


class WorkerStartError(QvlError):
    """A media worker did not come up: an error of the installation, not of a request."""


class WorkerDiedError(QvlError):
    """The worker ended before it answered. ``killed``: by SIGKILL, which decoders do not do to themselves."""

    def __init__(self, message: str, *, killed: bool) -> None:
        super().__init__(message)
        self.killed = killed


@dataclass(frozen=True)
class Launch:
    """What a worker is started with. ``folder``: the checkpoint's, with its small files."""

    folder: str
    limits: Limits


class Worker:
    """A running worker. It answers one question at a time; who asks waits for the answer or kills it."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, stdin: int) -> None:
        self.process = process
        self._channel = channel
        self._stdin = stdin
        self._answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read())
        self._ending: asyncio.Task[None] | None = None
        self.spent = False

    @classmethod
    async def start(cls, launch: Launch) -> Worker:
        """Raises WorkerStartError with what the worker printed."""
        with tempfile.TemporaryFile() as printed:
            worker = await cls._started(launch, printed.fileno())
            try:
                if await asyncio.wait_for(worker._answers.get(), START_SECONDS) is None:
                    await worker._died()  # gives it the time to say why
                    raise WorkerStartError(f"a media worker did not start: {_last_line(printed)}")
            except asyncio.TimeoutError:
                await worker.end()
                raise WorkerStartError(f"a media worker was not ready in {START_SECONDS:g} seconds") from None
            except BaseException:
                await worker.end()
                raise
            return worker

    @classmethod
    async def _started(cls, launch: Launch, stderr: int) -> Worker:
        """The process, whose start nobody waits for yet. Cancelled, it leaves none behind."""
        starting = asyncio.ensure_future(asyncio.to_thread(_popen, launch, stderr))
        try:
            return cls(*await asyncio.shield(starting))
        except asyncio.CancelledError:
            with suppress(OSError):
                await cls(*await starting).end()
            raise

    @property
    def alive(self) -> bool:
        return not self._reader.done()

    def send(self, message: Mapping[str, Any], descriptors: Sequence[int]) -> bool:
        """Asks a question and hands over copies of ``descriptors``; False where the worker takes none."""
        try:
            socket.send_fds(self._channel, [json.dumps(message).encode()], list(descriptors))
        except OSError:  # it hung up, or does not read
            self.kill()
            return False
        return True

    async def answer(self) -> dict[str, Any]:
        """The answer to what was sent. Raises WorkerDiedError."""
        line = await self._answers.get()
        if line is None:
            raise await self._died()
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self.kill()
            raise WorkerDiedError("the worker gave an answer that is none", killed=False)
        self.spent = bool(answer.get("spent"))
        return answer

    async def gone(self) -> None:
        """Returns when the worker has hung up."""
        await asyncio.wait([self._reader])

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()

    async def end(self) -> None:
        """Ends the process, whatever it does, and takes its exit status: nothing of it is left."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        await asyncio.shield(self._ending)  # half an end would leave a zombie

    async def _end(self) -> None:
        if not self.alive:
            await asyncio.to_thread(self._exit_status)
        self._reader.cancel()
        await asyncio.wait([self._reader])
        self._channel.close()
        os.close(self._stdin)
        self.kill()
        await asyncio.to_thread(self.process.wait)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        rest = b""
        try:
            while len(rest) < ANSWER_BYTES and (data := await loop.sock_recv(self._channel, 2**16)):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._answers.put_nowait(line)
        except OSError:  # reset: what was not read is lost with its worker
            pass
        finally:
            self._answers.put_nowait(None)

    async def _died(self) -> WorkerDiedError:
        code = await asyncio.to_thread(self._exit_status)
        return WorkerDiedError(f"the worker ended with status {code}", killed=code == -signal.SIGKILL)

    def _exit_status(self) -> int:
        """Of a process that hung up, and so is about to end."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(EXIT_SECONDS)
        self.kill()
        return self.process.wait()


def _last_line(printed: IO[bytes]) -> str:
    printed.seek(0)
    lines = printed.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no reason given"


def _popen(launch: Launch, stderr: int) -> tuple[subprocess.Popen[bytes], socket.socket, int]:
    """The process, the server's end of its socket and of its stdin."""
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    settings = {"folder": os.path.abspath(launch.folder), "limits": asdict(launch.limits)}
    path = [os.path.abspath(entry) for entry in sys.path]
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(path=path), str(theirs.fileno()), json.dumps(settings)],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd="/",
            env=environment | OWN_VARIABLES,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # a terminal's Ctrl-C is for the server, which then ends its workers
        )
    except BaseException:
        ours.close()
        os.close(writing)
        raise
    finally:
        theirs.close()
        os.close(reading)
    ours.setblocking(False)
    return process, ours, writing
