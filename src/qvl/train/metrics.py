"""How a run goes, for people: a CSV file, a plot of the loss, TensorBoard where it is installed.

All are listeners of the trainer. A run that was killed and goes on leaves what an unbroken run would have:
what was written after the step it goes on from is cut off before the first new row.
"""

from __future__ import annotations

import csv
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Protocol

from qvl.errors import missing_dependency

FILE, PLOT, BOARD = "metrics.csv", "loss.png", "tensorboard"
EVALUATION = "evaluation_"  # before the names of what is measured on held-out data
Row = dict[str, float]


class Watcher(Protocol):
    """What the trainer calls. Steps are counted from 1, and 0 is the start."""

    def started(self, step: int, steps: int) -> None: ...

    def stepped(self, step: int, values: Mapping[str, float]) -> None: ...

    def evaluated(self, step: int, values: Mapping[str, float]) -> None: ...

    def saved(self, step: int, folder: Path) -> None: ...


def watchers(out: Path) -> list[Watcher]:
    """Those of a run that writes into ``out``; for one process of it alone.

    Without matplotlib a warning says how to get the plot.
    """
    found: list[Watcher] = [MetricsFile(out / FILE)]
    if find_spec("matplotlib"):
        found.append(LossPlot(out / FILE, out / PLOT))
    else:
        warnings.warn(str(missing_dependency("matplotlib", "train", "The plot of the loss")), stacklevel=2)
    if find_spec("tensorboard"):
        found.append(TensorBoard(out / BOARD))
    return found


class MetricsFile:
    """A row for every step, and one for every evaluation, on its step and with columns of its own.

    Each row is in the file before the next step begins, its numbers as exact as they are.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = ["step"]
        self._file: IO[str] | None = None

    def started(self, step: int, steps: int) -> None:
        """Leaves the rows up to ``step``."""
        columns, rows = _read(self.path)
        self.columns = columns or ["step"]
        self._rewrite([row for row in rows if row["step"] <= step])

    def stepped(self, step: int, values: Mapping[str, float]) -> None:
        self._add({"step": step, **values})

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        self._add({"step": step, **{EVALUATION + name: value for name, value in values.items()}})

    def saved(self, step: int, folder: Path) -> None:
        """Onto the disk, as the checkpoint is."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def _add(self, row: Mapping[str, float]) -> None:
        if new := [name for name in row if name not in self.columns]:
            self.columns += new
            self._rewrite(read_metrics(self.path))
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8", newline="")
        _writer(self._file).writerow(_cells(row, self.columns))
        self._file.flush()

    def _rewrite(self, rows: Sequence[Row]) -> None:
        """The whole file, put in place at once."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(f".{self.path.name}.fresh")
        with fresh.open("w", encoding="utf-8", newline="") as file:
            _writer(file).writerows([self.columns, *(_cells(row, self.columns) for row in rows)])
        fresh.replace(self.path)


def read_metrics(path: Path) -> list[Row]:
    """The rows of a file of metrics, each with the columns it has values in; none where there is no file.

    A row that was broken off is passed over.
    """
    return _read(path)[1]


class LossPlot:
    """The loss over the steps as a picture, drawn anew whenever a checkpoint is saved."""

    def __init__(self, metrics: Path, picture: Path) -> None:
        self.metrics, self.picture = metrics, picture

    def started(self, step: int, steps: int) -> None:
        pass

    def stepped(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def saved(self, step: int, folder: Path) -> None:
        draw(read_metrics(self.metrics), self.picture)


def draw(rows: Sequence[Row], picture: Path) -> None:
    """Writes a PNG: above the loss, below the share of tokens that greedy decoding would have said."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for axes, name, label in zip(panels, ("loss", "right"), ("loss", "right tokens"), strict=True):
        _curve(axes, rows, name)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    losses = [row["loss"] for row in rows if row.get("loss", 0) > 0]
    if losses and max(losses) > 10 * min(losses):
        panels[0].set_yscale("log")
    panels[-1].set_xlabel("step")
    fresh = picture.with_name(f".{picture.name}")
    canvas.print_png(fresh)
    fresh.replace(picture)


def _curve(axes: Any, rows: Sequence[Row], name: str) -> None:
    """Every step faintly, their running mean over it, and the evaluations as points."""
    steps, values = _column(rows, name)
    axes.plot(steps, values, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(steps, list(_smoothed(values)), color="tab:blue", linewidth=1.6, label="training")
    steps, values = _column(rows, EVALUATION + name)
    if steps:
        axes.plot(steps, values, "o-", color="tab:orange", markersize=4, linewidth=1, label="evaluation")


def _column(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    found = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in found], [value for _, value in found]


def _smoothed(values: Sequence[float]) -> Iterator[float]:
    """The mean of a fiftieth of the run around each value: half of it before, half after, so no lag."""
    sums, half = [0.0, *accumulate(values)], len(values) // 100
    for place in range(len(values)):
        first, last = max(0, place - half), min(len(values), place + half + 1)
        yield (sums[last] - sums[first]) / (last - first)


class TensorBoard:
    """Every number as a scalar, ``train/`` and ``evaluation/`` before the names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def started(self, step: int, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def stepped(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"evaluation/{name}", value, step)

    def saved(self, step: int, folder: Path) -> None:
        self._writer.flush()


def _read(path: Path) -> tuple[list[str], list[Row]]:
    """Columns, and whole rows."""
    if not path.is_file():
        return [], []
    with path.open(encoding="utf-8", newline="") as file:
        # The end of the line is the last thing written of a row.
        lines = [line for line in file.read().splitlines(keepends=True) if line.endswith("\n")]
    columns, *cells = [*csv.reader(lines)] or [[]]
    rows = (dict(zip(columns, row, strict=False)) for row in cells)
    return columns, [{name: float(text) for name, text in row.items() if text} for row in rows]


def _writer(file: IO[str]) -> Any:
    return csv.writer(file, lineterminator="\n")


def _cells(row: Mapping[str, float], columns: Sequence[str]) -> list[str]:
    """Numbers as Python writes them, which reads back the same; nothing where there is none."""
    return [_shown(row[name]) if name in row else "" for name in columns]


def _shown(value: float) -> str:
    return str(int(value)) if math.isfinite(value) and value == int(value) else repr(float(value))
