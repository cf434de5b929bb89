"""A real `qvl serve` in a process of its own, measured from outside through /proc.

The process has no internet: name servers lie to it, and every address but this machine's own refuses to be
connected to. So what it fetches shows what it would have fetched.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PUBLIC = "93.184.215.14"
# What name servers say, in turns: the second name is public when it is checked, and this machine afterwards.
NAMES = {
    "public.test": [[PUBLIC]],
    "rebind.test": [[PUBLIC], ["127.0.0.1"]],
    "both.test": [[PUBLIC, "127.0.0.1"]],
    "inside.test": [["10.0.0.5"]],
    "metadata.test": [["169.254.169.254"]],
}
PROGRAM = "from support.serve_process import main; main()"
SERVING = re.compile(r"serving .* at (http://\S+)")


def main() -> None:
    """What the process runs: `qvl` with its arguments, in the surroundings that the module tells of.

    SIGUSR1 makes it give freed memory back to the system, so that what is left is in use.
    """
    _lie_about_names()
    _refuse_other_machines()
    signal.signal(signal.SIGUSR1, lambda *_: _trim())
    from qvl.cli import main as qvl

    raise SystemExit(qvl())


def _lie_about_names() -> None:
    answers = {name: itertools.cycle(each) for name, each in NAMES.items()}
    truth = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **named: Any) -> Any:
        if host not in answers:
            return truth(host, port, *arguments, **named)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in next(answers[host])]

    socket.getaddrinfo = getaddrinfo


def _refuse_other_machines() -> None:
    connect = socket.socket.connect

    def checked(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1")):
            raise ConnectionRefusedError
        connect(self, address)

    socket.socket.connect = checked  # type: ignore[method-assign]


def _trim() -> None:
    gc.collect()
    with suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)


@dataclass(frozen=True)
class ServeProcess:
    """``log``: what it wrote on stderr so far."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def workers(self) -> list[int]:
        """Process ids of its children."""
        own = str(self.process.pid)
        found = []
        for folder in Path("/proc").iterdir():
            with suppress(OSError, ValueError):  # it may end meanwhile
                if folder.name.isdigit() and _stat(folder)[1] == own:
                    found.append(int(folder.name))
        return sorted(found)

    def ready_workers(self) -> list[int]:
        """Those that have started: from then on what they print goes nowhere."""
        return [pid for pid in self.workers() if _prints_to(pid) == os.devnull]

    def memory(self) -> tuple[int, int]:
        """Bytes of memory that are resident, freed ones given back: of the server alone, and with its workers
        (one that was killed and started again holds less than before)."""
        self.process.send_signal(signal.SIGUSR1)
        time.sleep(0.3)
        own = _resident(self.process.pid)
        return own, own + sum(_resident(pid) for pid in self.workers())

    def descriptors(self) -> int:
        """Open files and sockets of the server."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def _stat(folder: Path) -> list[str]:
    """State, parent and so on: what stands behind the name, which may hold anything."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def _prints_to(pid: int) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/fd/2")
    return ""


def _resident(pid: int) -> int:
    with suppress(OSError):
        found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return 0


@contextmanager
def serve_process(*options: str, seconds: float = 120.0) -> Iterator[ServeProcess]:
    """`qvl serve` with ``options`` on a free port, once it takes requests; ended with the block."""
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(tests), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    command = [sys.executable, "-c", PROGRAM, "serve", "--port", "0", *options]
    with tempfile.NamedTemporaryFile("wb", suffix=".log") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            yield ServeProcess(_url(process, Path(log.name), seconds), process, Path(log.name))
        finally:
            _end(process, log)


def _url(process: subprocess.Popen[bytes], log: Path, seconds: float) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        found = SERVING.search(log.read_text(errors="replace"))
        if found:
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")


def _end(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
