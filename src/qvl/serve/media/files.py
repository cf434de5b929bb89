"""Local files under one folder: opened step by step, so that no link, race or odd name leads out of it."""

from __future__ import annotations

import os
import stat
from urllib.parse import unquote, urlsplit

from qvl.errors import InputError, MediaNotFoundError
from qvl.serve.errors import RefusedError
from qvl.serve.media.held import PIECE_BYTES, HeldFile

FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
# A FIFO or a device would keep whoever opens it waiting: they are opened without waiting, then refused.
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
MOST_STEPS = 64  # folders on the way to a file


class MediaFolder:
    """The folder that ``file:`` URLs may name files in, held open from the start, so that renaming it changes
    nothing.

    ``root`` None: there is none. Raises InputError where ``root`` is no folder.
    """

    def __init__(self, root: str | None) -> None:
        self._descriptor = -1
        self._names: tuple[str, ...] = ()
        if root is not None:
            self._names = tuple({os.path.abspath(root), os.path.realpath(root)})
            try:
                self._descriptor = os.open(self._names[-1], os.O_DIRECTORY | os.O_CLOEXEC | os.O_RDONLY)
            except OSError as error:
                raise InputError(
                    f"the media root {root} is not a folder that can be read: {error.strerror}"
                ) from None

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self, url: str, into: HeldFile) -> None:
        """The file that ``url`` names: ``file:///`` and its path in full, or ``file:`` and its path from the
        root.

        Raises RefusedError where there is no root, MediaNotFoundError, with the same words, for what is
        outside, not there, a link, or no plain file; MediaTooLargeError.
        """
        if self._descriptor < 0:
            raise RefusedError("this server reads no local files: send the medium as a data URI")
        try:
            descriptor = self._open(self._steps(url))
        except (OSError, ValueError):
            raise MediaNotFoundError("there is no such file that this server may read") from None
        try:
            into.expect(os.fstat(descriptor).st_size)
            while data := os.read(descriptor, PIECE_BYTES):
                into.write(data)
        finally:
            os.close(descriptor)

    def _steps(self, url: str) -> list[str]:
        """Names of folders and of the file, from the root. ValueError for a path that leads elsewhere."""
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
            raise ValueError(url)
        path = unquote(parts.path, errors="strict")
        if path.startswith("/"):
            path = next(path[len(name) :] for name in self._names_before(path))
        steps = [step for step in path.split("/") if step not in ("", ".")]
        if path.endswith("/") or not 0 < len(steps) <= MOST_STEPS or ".." in steps or "\0" in path:
            raise ValueError(url)
        return steps

    def _names_before(self, path: str) -> list[str]:
        found = [name for name in self._names if path.startswith(name.rstrip("/") + "/")]
        if not found:
            raise ValueError(path)
        return found

    def _open(self, steps: list[str]) -> int:
        """A descriptor of the plain file at the end of ``steps``; no step is a link."""
        folder = os.dup(self._descriptor)
        try:
            for step in steps[:-1]:
                below = os.open(step, FOLDER, dir_fd=folder)
                os.close(folder)
                folder = below
            descriptor = os.open(steps[-1], FILE, dir_fd=folder)
        finally:
            os.close(folder)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise OSError("no plain file")
