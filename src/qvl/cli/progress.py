"""Progress on stderr: only on a terminal, and only once the work has taken a while.

It knows no model; whoever works calls ``update`` with what is done.
"""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE = 2.0  # seconds that pass in silence


class Bar:
    """A context in which work is done; a bar with ``text`` appears if that takes more than ``delay`` seconds.

    Without a total it shows the time that has passed. Leaving the context, or ``close``, removes it.
    """

    def __init__(self, text: str, *, delay: float = PATIENCE) -> None:
        self.text = text
        self._delay = delay
        self._done, self._total = 0, 0
        self._closed = False
        self._lock = threading.Lock()
        self._shown: Progress | None = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Bar:
        if sys.stderr.isatty():
            self._timer = threading.Timer(self._delay, self._show)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, done: int, total: int) -> None:
        """``done`` of ``total`` pieces of work are finished."""
        with self._lock:
            self._done, self._total = done, total
            self._refresh()

    def close(self) -> None:
        """Removes the bar; calling it twice is fine."""
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._shown is not None:
                self._shown.stop()
                self._shown = None

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with self._lock:
            if self._closed:
                return
            self._shown = Progress(
                *columns, console=Console(stderr=True), transient=True, redirect_stdout=False
            )
            self._shown.add_task(self.text, total=None)
            self._refresh()
            self._shown.start()

    def _refresh(self) -> None:
        if self._shown is not None and self._total:
            self._shown.update(self._shown.task_ids[0], completed=self._done, total=self._total)
