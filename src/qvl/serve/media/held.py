"""The bytes of one medium while a request needs them, in a file without a name that a worker can be handed.

Such a file is gone when the last process that has it open closes it or dies, however it dies: nothing is ever
left behind in a folder or in shared memory.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import deque
from collections.abc import Callable
from threading import Lock
from types import TracebackType

from qvl.errors import MediaTooLargeError
from qvl.serve.errors import QueueFullError

HEAD_BYTES = 1024  # enough to recognise every format
PIECE_BYTES = 2**20  # read and hashed at a time


def nameless_file(purpose: str) -> int:
    """A descriptor of an empty file without a name: in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(purpose, os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # already deleted; the copy of its descriptor keeps it
        return os.dup(file.fileno())


class Allowance:
    """Bytes of media that all requests together may hold, as files and as patches.

    ``on_full``: called before anything is refused, to let go of what is kept for convenience only.
    """

    def __init__(self, size: int, on_full: Callable[[], None] = lambda: None) -> None:
        self._size = size
        self._on_full = on_full
        self._taken = 0
        self._lock = Lock()
        self._returned: deque[int] = deque()  # appended to from any thread, also from within a collection

    @property
    def used(self) -> int:
        with self._lock:
            return self._now()

    def _now(self) -> int:
        while self._returned:
            self._taken -= self._returned.popleft()
        return self._taken

    def take(self, count: int) -> None:
        """Raises MediaTooLargeError for what never fits, QueueFullError where there is no room now: whoever
        waited would wait for others who wait."""
        if count > self._size:
            raise MediaTooLargeError(
                f"it needs {count:,} bytes of memory, more than the {self._size:,} allowed"
            )
        with self._lock:
            if self._now() + count > self._size:
                self._on_full()
            if self._now() + count > self._size:
                raise QueueFullError("the server holds as many media as it can now: try again shortly")
            self._taken += count

    def give_back(self, count: int) -> None:
        """May be called from any thread."""
        self._returned.append(count)


class HeldFile:
    """Bytes on their way in, counted while they come. Close it, or use it in ``with``.

    ``fileno``: of the file; ``size``: bytes so far; ``head``: the first HEAD_BYTES of them.
    """

    def __init__(self, most: int, allowance: Allowance) -> None:
        self.fileno = nameless_file("qvl-medium")
        self.size = 0
        self.head = b""
        self._most = most
        self._allowance = allowance
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> bytes:
        """SHA-256 of all bytes."""
        return self._hash.digest()

    def expect(self, size: int) -> None:
        """Raises MediaTooLargeError if ``size`` bytes, which somebody announces, are too many."""
        if size > self._most:
            raise MediaTooLargeError(f"it holds more than the {self._most:,} bytes that a medium may have")

    def write(self, data: bytes) -> None:
        """Raises MediaTooLargeError as soon as there are too many bytes, QueueFullError where all requests
        together hold too many."""
        self.expect(self.size + len(data))
        self._allowance.take(len(data))
        self.size += len(data)
        if len(self.head) < HEAD_BYTES:
            self.head += data[: HEAD_BYTES - len(self.head)]
        self._hash.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.fileno, rest) :]

    def close(self) -> None:
        """Closing twice does nothing."""
        if self.fileno >= 0:
            os.close(self.fileno)
            self._allowance.give_back(self.size)
            self.fileno = -1

    def __enter__(self) -> HeldFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
