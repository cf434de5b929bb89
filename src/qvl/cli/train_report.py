"""What ``qvl train`` says of data before a run: counts, lengths, and every bad row with its line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from qvl.cli.streams import harmless

if TYPE_CHECKING:
    from qvl.train.data.checking import BadRow, Report

SHOWN = 20  # bad rows of a file before a run; --check shows all
LONGEST = 5


def print_report(report: Report, *, whole: bool) -> None:
    """A table on stdout. ``whole``: every bad row, and the longest ones."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=harmless(str(report.path)), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _facts(report):
        table.add_row(name, value)
    console = Console(
        highlight=False, markup=False, emoji=False, width=None if Console().is_terminal else 120
    )
    with console.capture() as shown:
        console.print(table)
    print(shown.get(), end="")
    print_rows("bad", report.bad, whole=whole)
    print_rows("left out", report.dropped, whole=whole)
    if whole and report.duplicates:
        _print_lines("duplicate", (f"line {line} is line {first}" for line, first in report.duplicates))
    if whole and len(report.kept) > LONGEST:
        rows = ", ".join(f"line {line} ({tokens:,})" for tokens, line in report.longest(LONGEST))
        print(f"longest: {rows}")


def _facts(report: Report) -> Iterable[tuple[str, str]]:
    kept = len(report.kept)
    yield "rows", f"{report.rows:,}, of which {kept:,} can be trained on"
    yield "with media", f"{report.with_media:,} ({report.pictures:,} pictures, {report.videos:,} videos)"
    yield "answers", f"{report.turns:,}"
    if kept:
        names = ("least", "median", "95 %", "most")
        sizes = (report.percentile(share) for share in (0, 0.5, 0.95, 1))
        yield (
            "tokens in a row",
            ", ".join(f"{name} {size:,}" for name, size in zip(names, sizes, strict=True)),
        )
        vision, learned = sum(report.vision) / report.tokens, report.learned / report.tokens
        yield "tokens", f"{report.tokens:,}: {vision:.0%} of media, {learned:.1%} learned"
    for name, count in (
        ("made smaller", report.shrunk),
        ("left out as too long", len(report.dropped)),
        ("bad rows", len(report.bad)),
        ("duplicates", len(report.duplicates)),
        ("empty answers", report.answers_empty),
        ("end with a question", report.ends_asking),
    ):
        if count:
            yield name, f"{count:,}"


def print_rows(what: str, rows: Sequence[BadRow], *, whole: bool) -> None:
    """One line for each row."""
    _print_lines(what, (f"line {row.line}: {row.reason}" for row in (rows if whole else rows[:SHOWN])))
    if not whole and len(rows) > SHOWN:
        print(f"{what}: {len(rows) - SHOWN:,} more; qvl train --check shows all")


def _print_lines(what: str, lines: Iterable[str]) -> None:
    for line in lines:
        print(f"{what}: {harmless(' '.join(line.split()))}")
