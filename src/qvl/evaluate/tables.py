"""A report as a table: for a terminal, and as Markdown for a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qvl.evaluate.report import Report, TaskScore

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("task", "rows", "metric", "score", "95 % interval")
COUNTS = ("errors", "unanswered", "cut_off")
"""Columns that are only there where a row is of that kind."""


def table(report: Report) -> Table:
    """A line for each task, and one for all rows where there are several tasks."""
    from rich.table import Column, Table

    head, *lines = cells(report)
    made = Table(Column(head[0], overflow="fold"), *(Column(name, justify="right") for name in head[1:]))
    made.columns[2].justify = "left"
    for number, line in enumerate(lines):
        made.add_row(*line, end_section=number == len(lines) - 2 and len(report.tasks) > 1)
    return made


def markdown(report: Report) -> str:
    """The same table in Markdown."""
    head, *lines = cells(report)
    rule = ["---" if name in ("task", "metric") else "---:" for name in head]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in (head, rule, *lines))
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def cells(report: Report) -> list[list[str]]:
    """The table as texts, its head first."""
    tasks = [*report.tasks, *([report.total] if len(report.tasks) != 1 else [])]
    counts = [name for name in COUNTS if any(getattr(task, name) for task in tasks)]
    details = list(dict.fromkeys(name for task in report.tasks for name in task.details))
    head = [*COLUMNS, *details, *(name.replace("_", " ") for name in counts)]
    return [head, *(_line(task, details, counts) for task in tasks)]


def _line(task: TaskScore, details: list[str], counts: list[str]) -> list[str]:
    interval = "" if task.low is None or task.high is None else f"{percent(task.low)} - {percent(task.high)}"
    score = "not scored" if task.score is None else percent(task.score)
    more = [percent(task.details[name]) if name in task.details else "" for name in details]
    told = [str(getattr(task, name)) for name in counts]
    return [task.task, str(task.rows), task.metric, score, interval, *more, *told]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
