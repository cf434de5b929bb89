"""Lessons about still pictures: the one door to all their tasks."""

from __future__ import annotations

import random
from collections.abc import Callable

from examples.tiny.lesson import Lesson
from examples.tiny.pages import page_lesson
from examples.tiny.reading import digits_lesson, text_lesson
from examples.tiny.things import compare_lesson, count_lesson, find_lesson, name_lesson

DRAWERS: dict[str, Callable[[random.Random, bool], Lesson]] = {
    "text": text_lesson,
    "page": page_lesson,
    "digits": digits_lesson,
    "name": name_lesson,
    "count": count_lesson,
    "find": find_lesson,
    "compare": compare_lesson,
}


def draw(task: str, rng: random.Random, held_out: bool = False) -> Lesson:
    """A lesson of ``task`` (a key of DRAWERS), a function of ``rng`` alone.

    ``held_out``: with typefaces, handwriting and photographs that no lesson of training shows. Raises
    KeyError for another task, ImportError where a package that ships typefaces or pictures is missing.
    """
    return DRAWERS[task](rng, held_out)
