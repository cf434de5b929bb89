"""A progress bar that shows itself only when the work turns out to be slow."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


class SlowProgress:
    """Counts bytes; after ``patience`` seconds a bar appears on the error stream (rich, only on a
    terminal).
    """

    def __init__(self, description: str, total: int, patience: float = 2.0) -> None:
        self.description = description
        self.total = total
        self.done = 0
        self.shows_at = time.monotonic() + patience
        self.bar: Any = None

    def __enter__(self) -> SlowProgress:
        return self

    def advance(self, count: int) -> None:
        self.done += count
        if self.bar is None and time.monotonic() >= self.shows_at and sys.stderr and sys.stderr.isatty():
            self._show()
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.bar.start()
        self.task = self.bar.add_task(self.description, total=self.total)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
