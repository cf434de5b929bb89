"""How well the bundled model does on lessons that it never saw: the figures of the README.

2,100 lessons are drawn with other seeds than any training, in typefaces, on photographs and with things that
no lesson of training shows; and every held-out scan of a handwritten digit is shown once, alone. All of it
goes the public way: `qvl.evaluate`, as for anybody's model and data. Seeded: the same questions every time.

    python -m examples.tiny.exam [--model FOLDER] [--json FILE] [--share 0.1]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from examples.tiny.checkpoint import ASSETS
from examples.tiny.handwriting import held_out_scans
from examples.tiny.lesson import Lesson
from examples.tiny.lessons import draw
from examples.tiny.reading import scan_lesson
from qvl import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from qvl.evaluate import Report, Settings, evaluate

# How many lessons of each task: 2,100 in all.
LESSONS = {
    "text": 300,
    "page": 100,
    "digits": 200,
    "name": 200,
    "count": 200,
    "find": 250,
    "compare": 250,
    "motion": 150,
    "order": 150,
    "when": 200,
    "unknown": 100,
}
# What each is called in the tables, and the least share that is right.
TITLES = {
    "text": "printed words and numbers, exactly",
    "page": "two to six printed lines, all exactly",
    "scan": "held-out scans of one handwritten digit",
    "digits": "one to three handwritten digits, exactly",
    "name": "colour and shape",
    "count": "how many, up to 6",
    "find": "where, boxes with an IoU of 0.5 and more",
    "compare": "two pictures: the same, or which has more",
    "motion": "film: which way it moves",
    "order": "film: what comes first",
    "when": "film: when, within 0.5 s",
    "unknown": "what it was not taught: I can't tell",
}
SETTINGS = Settings(max_new_tokens=56)


def questions(share: float = 1.0, tasks: tuple[str, ...] = tuple(TITLES)) -> Iterator[dict[str, Any]]:
    """The questions as rows for `qvl.evaluate`; ``share``: of all, for a quick look."""
    for task in tasks:
        for number in range(round(share * (LESSONS.get(task) or len(held_out_scans())))):
            yield row(held_out_lesson(task, number), task)


def held_out_lesson(task: str, number: int) -> Lesson:
    rng = random.Random(f"exam/{task}/{number}")
    return scan_lesson(held_out_scans()[number], rng) if task == "scan" else draw(task, rng, held_out=True)


def row(lesson: Lesson, task: str) -> dict[str, Any]:
    """What is asked, and how the answer is compared."""
    asked: dict[str, Any] = {"messages": lesson.messages[:-1], "task": task, "expected": lesson.answer}
    if task == "find":
        return asked | {"metric": "iou", "expected": list(lesson.expected)}
    if task == "when":
        return asked | {"metric": "number", "tolerance": 0.5, "expected": lesson.expected}
    return asked | {"metric": "exact"}


def examine(model: Any, processor: Any, rows: list[dict[str, Any]]) -> Report:
    with Progress(transient=True) as bar:
        task = bar.add_task("questions", total=len(rows))
        return evaluate(
            model,
            processor,
            rows,
            settings=SETTINGS,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def table(report: Report) -> Table:
    shown = Table("held out", "questions", "right", "95 % interval")
    for found in report.tasks:
        assert found.score is not None
        shown.add_row(
            TITLES[found.task],
            str(found.rows),
            f"{found.score:.1%}",
            f"{found.low:.1%} to {found.high:.1%}",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=ASSETS)
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, float16 or bfloat16")
    parser.add_argument("--share", type=float, default=1.0, help="of the questions, for a quick look")
    parser.add_argument("--tasks", default=",".join(TITLES))
    parser.add_argument("--wrong", type=int, default=0, help="print so many wrong answers of each task")
    parser.add_argument("--json", type=Path, help="also write the figures into this file")
    options = parser.parse_args()
    processor = AutoProcessor.from_pretrained(options.model)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(options.model, dtype=options.dtype)
    rows = list(questions(options.share, tuple(options.tasks.split(","))))
    report = examine(model, processor, rows)
    console = Console()
    console.print(table(report))
    console.print(f"{len(rows)} questions in {report.seconds:.0f} s, {model.dtype}")
    for task in report.tasks if options.wrong else ():
        wrong = [p for p in report.predictions if p.task == task.task and p.score < 1]
        for prediction in wrong[: options.wrong]:
            console.print(
                f"{prediction.row}: {prediction.references} but {prediction.answer!r} {prediction.error}"
            )
    if options.json:
        options.json.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
