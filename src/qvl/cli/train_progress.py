"""A run as people see it: a bar with loss, speed and the time that is left, and an end that loses nothing."""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl.cli.failures import INTERRUPTED
from qvl.cli.streams import say

if TYPE_CHECKING:
    from rich.progress import Progress

RECENT = 20  # steps that loss and speed are a mean of


class Interruption:
    """Ctrl-C and SIGTERM end the run after the step that is under way, so that a whole step is saved.

    A second signal ends the program at once, without saving. Use it in ``with``, and call ``check`` between
    steps. Not ``alone``, nothing of this happens: many processes cannot agree on a step to end after.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self.asked = False
        self._alone = alone
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM) if self._alone else ():
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.asked:
            raise SystemExit(INTERRUPTED)
        self.asked = True
        say("\nqvl: finishing this step and saving; a second Ctrl-C ends at once, without saving")

    def check(self) -> None:
        if self.asked:
            raise KeyboardInterrupt


class RunProgress:
    """A listener of the trainer: a bar on a terminal, lines elsewhere. The last one in the list of listeners,
    since it is where an interruption takes effect."""

    def __init__(self, interruption: Interruption, log_every: int) -> None:
        self.first = 0
        self.saved_in: Path | None = None
        self._interruption, self._every = interruption, log_every
        self._steps = 0
        self._began = time.perf_counter()
        self._recent: deque[Mapping[str, float]] = deque(maxlen=RECENT)
        self._bar: Progress | None = None

    @contextmanager
    def shown(self) -> Iterator[RunProgress]:
        """The time in which the bar may be there."""
        try:
            yield self
        finally:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def started(self, step: int, steps: int) -> None:
        self.first, self._steps, self._began = step, steps, time.perf_counter()
        if step >= steps:
            say(f"qvl: all {steps:,} steps are done already")
        elif step:
            say(f"qvl: going on after step {step:,} of {steps:,}")
        if sys.stderr.isatty() and step < steps:
            self._show(step)

    def stepped(self, step: int, values: Mapping[str, float]) -> None:
        self._recent.append(values)
        if self._bar is not None:
            fields: dict[str, Any] = self._means()
            self._bar.update(self._bar.task_ids[0], completed=step, **fields)
        elif step % self._every == 0 or step == self._steps:
            means = self._means()
            say(
                f"qvl: step {step:,} of {self._steps:,}: loss {means['loss']:.4f}, "
                f"{means['speed']:,.0f} tokens/s, {self._left(step)} left"
            )
        self._interruption.check()

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        self._line(f"qvl: evaluation after step {step:,}: {shown}")

    def saved(self, step: int, folder: Path) -> None:
        self.saved_in = folder

    def _means(self) -> dict[str, float]:
        count = max(1, len(self._recent))
        seconds = sum(values["seconds"] for values in self._recent)
        return {
            "loss": sum(values["loss"] for values in self._recent) / count,
            "speed": sum(values["tokens"] for values in self._recent) / max(seconds, 1e-9),
        }

    def _left(self, step: int) -> str:
        done = step - self.first
        seconds = (time.perf_counter() - self._began) / max(1, done) * (self._steps - step)
        return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02}:{int(seconds % 60):02}"

    def _line(self, text: str) -> None:
        if self._bar is None:
            say(text)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def _show(self, step: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:,.0f} tokens/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
        )
        self._bar.add_task("training", total=self._steps, completed=step, loss=float("nan"), speed=0.0)
        self._bar.start()
