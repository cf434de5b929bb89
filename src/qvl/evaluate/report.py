"""What an evaluation came to: every row with answer and score, each task with its mean and how sure it is.

Plain values; it knows no model and prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qvl.evaluate.metrics import UNSCORED

CERTAIN_95 = 1.959964  # standard deviations on either side that hold 95 % of a normal distribution
TOTAL = "all rows"


@dataclass(frozen=True)
class Prediction:
    """One row. ``score``: from 0 to 1; 0 where there is an ``error`` instead of an answer.

    ``row``: where it came from; ``key``: what its own data set calls it; ``id``: the same for the same
    question under the same settings. ``tokens``, ``seconds``: of the answer; ``finish``: "stop", or "length"
    where it was cut off.
    """

    row: str
    id: str = ""
    task: str = ""
    metric: str = ""
    answer: str = ""
    references: Sequence[Any] = ()
    score: float = 0.0
    details: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    finish: str = "stop"
    error: str = ""
    key: Any = None

    @property
    def unanswered(self) -> bool:
        """Whether the model said nothing."""
        return not self.error and not self.answer


@dataclass(frozen=True)
class TaskScore:
    """Rows of one task and metric. ``score``: the mean, from 0 to 1; ``low``, ``high``: its 95 % interval.
    All three are None where nothing was compared (the metric ``none``).

    ``errors``: rows that could not be asked; ``unanswered``: answers without a word; ``cut_off``: those that
    reached the longest length. All of them count in the mean, as what they scored. ``details``: means of what
    else the metric found, over the rows without errors.
    """

    task: str
    metric: str
    rows: int
    score: float | None
    low: float | None
    high: float | None
    errors: int = 0
    unanswered: int = 0
    cut_off: int = 0
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All rows in order, and what holds for all of them. ``seconds``: that this run took."""

    predictions: tuple[Prediction, ...]
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[TaskScore, ...]:
        """A score for each task (for each metric of a task), in the order in which they come."""
        groups: dict[tuple[str, str], list[Prediction]] = {}
        metrics: dict[str, str] = {}
        for prediction in self.predictions:
            if prediction.metric:
                metrics.setdefault(prediction.task, prediction.metric)
        for prediction in self.predictions:  # rows that cannot be read do not say their metric
            metric = prediction.metric or metrics.get(prediction.task, "")
            groups.setdefault((prediction.task, metric), []).append(prediction)
        return tuple(scored(rows, task, metric) for (task, metric), rows in groups.items())

    @property
    def total(self) -> TaskScore:
        """All rows together, each counting the same; those that are not scored only where all are."""
        rows = [one for one in self.predictions if one.metric != UNSCORED] or self.predictions
        metrics = {prediction.metric for prediction in rows if prediction.metric}
        return scored(rows, TOTAL, metrics.pop() if len(metrics) == 1 else "mixed")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file, without the rows."""
        return {
            **self.facts,
            "seconds": round(self.seconds, 3),
            "tokens": sum(prediction.tokens for prediction in self.predictions),
            "tasks": [_plain(task) for task in self.tasks],
            "total": _plain(self.total),
        }


def scored(rows: Sequence[Prediction], task: str, metric: str) -> TaskScore:
    """The mean over ``rows`` with everything that goes with it."""
    mean = sum(row.score for row in rows) / len(rows) if rows and metric != UNSCORED else None
    low, high = (None, None) if mean is None else wilson(mean, len(rows))
    return TaskScore(
        task=task,
        metric=metric,
        rows=len(rows),
        score=mean,
        low=low,
        high=high,
        errors=sum(bool(row.error) for row in rows),
        unanswered=sum(row.unanswered for row in rows),
        cut_off=sum(row.finish == "length" for row in rows),
        details=_means(row.details for row in rows if row.details),
    )


def wilson(share: float, rows: int, deviations: float = CERTAIN_95) -> tuple[float, float]:
    """The interval in which the true share lies with 95 % certainty, after Wilson (1927).

    Right for scores of 0 and 1. Scores in between vary less than these, so of ANLS or VQA accuracy the
    interval is rather too wide than too narrow.
    """
    if not rows:
        return 0.0, 1.0
    square = deviations**2
    middle = (share + square / (2 * rows)) / (1 + square / rows)
    half = deviations / (1 + square / rows) * math.sqrt(share * (1 - share) / rows + square / (4 * rows**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _means(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def _plain(task: TaskScore) -> dict[str, Any]:
    figures = {
        name: None if value is None else round(value, 6)
        for name, value in (("score", task.score), ("low", task.low), ("high", task.high))
    }
    details = {name: round(value, 6) for name, value in task.details.items()}
    return {**vars(task), **figures, "details": details}
