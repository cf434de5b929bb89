"""A sheet of lessons to look at: pictures, question and answer.

python -m examples.tiny.show OUT.png [--task text] [--held-out] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import textwrap

from PIL import Image, ImageDraw, ImageFont

from examples.tiny.lesson import Lesson
from examples.tiny.stills import DRAWERS, draw

CELL, CAPTION = 424, 78  # pixels


def sheet(lessons: list[Lesson], columns: int = 6, marks: bool = False) -> Image.Image:
    rows = -(-len(lessons) // columns)
    whole = Image.new("RGB", (columns * CELL, rows * (CELL + CAPTION)), (225, 225, 225))
    pen = ImageDraw.Draw(whole)
    for i, lesson in enumerate(lessons):
        left, top = i % columns * CELL + 4, i // columns * (CELL + CAPTION) + 4
        _show(whole, pen, lesson, left, top, marks)
    return whole


def _show(
    whole: Image.Image, pen: ImageDraw.ImageDraw, lesson: Lesson, left: int, top: int, marks: bool
) -> None:
    content, x, y = lesson.messages[0]["content"], left, top
    pictures = [part["image"] for part in content if part["type"] == "image"]
    for picture, its_marks in zip(pictures, lesson.marks, strict=True):
        whole.paste(picture, (x, y))
        for mark in its_marks if marks else ():
            x1, y1, x2, y2 = mark.box
            pen.rectangle((x + x1, y + y1, x + x2 - 1, y + y2 - 1), outline=(255, 0, 255))
        x += picture.width + 3
    question = next(part["text"] for part in content if part["type"] == "text")
    answer = lesson.answer.replace("\n", " ").replace("\t", " ").replace("```json", "").replace("```", "")
    lines = [*textwrap.wrap(question, 48)[:2], *textwrap.wrap(answer, 48)[:3]]
    pen.text((left, top + CELL), "\n".join(lines), fill=(0, 0, 0), font=ImageFont.load_default(11))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--task", choices=[*DRAWERS])
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--marks", action="store_true", help="draw the boxes of the marks")
    given = parser.parse_args()
    tasks = [given.task] if given.task else [*DRAWERS]
    seeds = range(given.seed, given.seed + given.count)
    lessons = [
        draw(tasks[i % len(tasks)], random.Random(seed), given.held_out) for i, seed in enumerate(seeds)
    ]
    sheet(lessons, marks=given.marks).save(given.out)


if __name__ == "__main__":
    main()
