"""The program of a media worker: one job at a time from a socket, its patches into a file it was handed.

Runs in a process of its own that holds no secrets, may use only so much memory, and dies when its server
does. Its messages are JSON, one a line; the server believes none of them further than it can check.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qvl.errors import InputError, InputTypeError, MediaDecodeError, MediaError, MediaTooLargeError
from qvl.serve.media.decoding import Decoder, Task, patches_of
from qvl.serve.settings import Limits

OPEN_FILES = 64
LINE_BYTES = 2**16  # of a job; options are small
GRACE_SECONDS = 5  # after which a worker ends itself, if its server did not
SPENT_SHARE = 4  # a worker that holds on to more than this part of its memory between jobs is replaced


def main() -> None:
    """What a worker's process runs; its arguments are the socket's descriptor and the settings, as JSON."""
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        settings = json.loads(sys.argv[2])
        threading.Thread(target=_end_with_server, daemon=True).start()
        limits = Limits(**settings["limits"])
        decoder = Decoder(settings["folder"], limits)
        memory = _limit_resources(limits)
        _send(channel, {"ready": os.getpid()})
        os.dup2(1, 2)  # to nowhere: what decoders print of strangers' files stays unread
        while _serve(channel, decoder, limits, memory):
            pass


def _end_with_server() -> None:
    """The server holds the other end of stdin: it is closed when the server ends, whatever ended it."""
    with suppress(OSError):
        os.read(0, 1)
    os._exit(0)


def _limit_resources(limits: Limits) -> int:
    """Sets what this process may use from here on; returns the bytes of memory it holds already.

    RLIMIT_DATA and not RLIMIT_AS: torch and FFmpeg reserve addresses that they never fill. Files in memory do
    not count as data, so their size has a limit of its own.
    """
    before = _data_bytes()
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_FSIZE, limits.decode_memory),
        (resource.RLIMIT_DATA, before + limits.decode_memory),
    ):
        hard = resource.getrlimit(kind)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (value, value))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails with EFBIG
    return before


def _data_bytes() -> int:
    """Bytes of private writable memory, as RLIMIT_DATA counts them; 0 where the system does not tell."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmData")).split()[1]) * 1024
    return 0


def _serve(channel: socket.socket, decoder: Decoder, limits: Limits, memory: int) -> bool:
    """One job; False where there will be no other."""
    line, descriptors, *_ = socket.recv_fds(channel, LINE_BYTES, 2)
    with ExitStack() as stack:
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)
        if not line:
            return False
        signal.setitimer(signal.ITIMER_REAL, limits.decode_seconds + GRACE_SECONDS)
        answer = _answer(decoder, json.loads(line), *descriptors)
        signal.setitimer(signal.ITIMER_REAL, 0)
    spent = _data_bytes() > memory + limits.decode_memory // SPENT_SHARE
    _send(channel, answer | ({"spent": True} if spent else {}))
    return not spent


def _answer(
    decoder: Decoder, job: Mapping[str, Any], source: int, result: int | None = None
) -> dict[str, Any]:
    task = Task(**job["task"])
    try:
        with Stream(source, f"the {task.kind}") as stream:
            if result is None:
                return {"costs": [asdict(cost) for cost in decoder.measure(task, stream)]}
            _start_over(result)
            seconds = []
            for decoded in decoder.decode(task, stream, job["most_tokens"]):
                _write(result, patches_of(decoded))
                seconds.append(decoded.seconds_per_grid)
            return {"seconds_per_grid": seconds}
    except MemoryError:
        return {"error": "too_large", "message": "decoding it needs more memory than this server allows"}
    except InputError as error:
        return {"error": _kind(error), "message": str(error)}
    except InputTypeError as error:
        return {"error": "input", "message": str(error)}


def _kind(error: InputError) -> str:
    kinds = {MediaTooLargeError: "too_large", MediaDecodeError: "decode", MediaError: "media"}
    return next((name for kind, name in kinds.items() if isinstance(error, kind)), "input")


def _start_over(result: int) -> None:
    """A worker that was killed may have begun to write."""
    os.ftruncate(result, 0)
    os.lseek(result, 0, os.SEEK_SET)


def _write(result: int, data: memoryview) -> None:
    try:
        while data:
            data = data[os.write(result, data) :]
    except OSError:  # EFBIG or ENOSPC
        raise MemoryError from None


def _send(channel: socket.socket, message: Mapping[str, Any]) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


class Stream(io.BufferedReader):
    """The medium's file, with a name that errors can speak of."""

    def __init__(self, descriptor: int, name: str) -> None:
        raw = io.FileIO(descriptor, closefd=False)
        raw.name = name
        super().__init__(raw)
        self.seek(0)
