"""Rounds: every contestant in turn, never two at once, the machine's limits measured between them.

A machine that others share is never the same for two seconds. So a figure is compared with what was measured
right before and after it: the limits on both sides, and the other contestants in the same round.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field

from benchmarks import limits
from benchmarks.checkpoints import Shape
from benchmarks.peers import PeerUnavailable
from benchmarks.process import THREADS, Contestant, Worker
from benchmarks.work import Work

# What a contestant that can't go on raises: its process ended, or it can't do this.
FAILURES = (PeerUnavailable, RuntimeError, OSError, subprocess.SubprocessError)
REST = 0.2  # seconds after a contestant's turn, in which its waiting threads fall asleep


@dataclass
class Measurement:
    """One contestant on one case: a value for each round, and the limits that were measured around each.

    ``unit`` is "s" for times, "B" for bytes, "x" for plain ratios.
    """

    section: str
    case: str
    contestant: str
    samples: list[float]
    unit: str = "s"
    work: Work | None = None
    limits: list[dict[str, float]] = field(default_factory=list)
    tokens: int = 0  # that one sample brings: for tokens per second


@dataclass(frozen=True)
class Job:
    """One contestant's turn: ``run`` does the work and says how many seconds it took."""

    run: Callable[[], float]
    work: Work | None = None
    tokens: int = 0


class Gauge:
    """Measures the limits; where that can't be done it says why once, and measures nothing."""

    def __init__(self, isa: str = "", quick: bool = False) -> None:
        self.isa = isa
        self.seconds, self.buffer = (0.02, limits.BUFFER // 8) if quick else (0.15, limits.BUFFER)
        self.missing: str | None = None

    def __call__(self) -> dict[str, float]:
        if self.missing:
            return {}
        time.sleep(REST)
        try:
            return asdict(limits.measure(self.isa, THREADS, self.seconds, self.buffer))
        except limits.NoLimits as reason:
            self.missing = str(reason)
            return {}


@dataclass
class Run:
    """What the sections share: the settings of this run, and where figures and remarks gather."""

    shape: Shape
    rounds: int
    isa: str = ""
    quick: bool = False
    gauge: Callable[[], dict[str, float]] = field(default_factory=Gauge)
    measurements: list[Measurement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text not in self.notes:
            print(f"  note: {text}", flush=True)
            self.notes.append(text)

    @contextmanager
    def workers(
        self, contestants: Sequence[Contestant], parts: str = "text"
    ) -> Iterator[dict[Contestant, Worker]]:
        """The contestants that can run here, loaded and waiting; of the others a note says why not."""
        with ExitStack() as stack:
            ready = {}
            for contestant in contestants:
                try:
                    worker = Worker(contestant, self.shape.name, parts, self.isa)
                except FAILURES as reason:
                    self.note(f"{contestant} left out: {reason}")
                    continue
                ready[contestant] = stack.enter_context(worker)
            yield ready

    def measure(self, section: str, case: str, jobs: dict[str, Job], *, closely: bool = True) -> None:
        """Every job once and uncounted, then all in turn, round after round.

        ``closely``: measure the limits around every single turn; else around every round, where turns are
        short.
        """
        found = {
            name: Measurement(section, case, name, [], work=job.work, tokens=job.tokens)
            for name, job in jobs.items()
        }
        where = f"{section}, {case}"
        jobs = {name: job for name, job in jobs.items() if self._turn(f"{where}: {name}", job) is not None}
        for turn in range(self.rounds):
            # Another one begins every time, so that no one always follows the same neighbour.
            first = turn % max(len(jobs), 1)
            names = [*jobs][first:] + [*jobs][:first]
            for group in [[name] for name in names] if closely else [names]:
                before = self.gauge()
                taken = {name: self._turn(f"{where}: {name}", jobs[name]) for name in group}
                around = mean_limits(before, self.gauge())
                for name, seconds in taken.items():
                    if seconds is None:
                        del jobs[name]
                    else:
                        found[name].samples.append(seconds)
                        found[name].limits.append(around)
        for name in jobs:
            self.add(found[name])

    def _turn(self, where: str, job: Job) -> float | None:
        """Seconds of one turn; None, and a note, for a contestant that failed: the others go on."""
        try:
            return job.run()
        except FAILURES as reason:
            self.note(f"{where} left out: {reason}")
            return None

    def jobs(self, names: Iterable[tuple[str, Callable[[], Job]]]) -> dict[str, Job]:
        """The jobs that could be prepared; of the others a note says why not."""
        found = {}
        for name, prepare in names:
            try:
                found[name] = prepare()
            except FAILURES as reason:
                self.note(f"{name} left out: {reason}")
        return found

    def add(self, measurement: Measurement) -> None:
        self.measurements.append(measurement)
        m, middle = measurement, statistics.median(measurement.samples)
        print(f"  {m.section}, {m.case}: {m.contestant} {middle:.4g} {m.unit}", flush=True)


def mean_limits(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: (value + after[name]) / 2 for name, value in before.items() if name in after}
