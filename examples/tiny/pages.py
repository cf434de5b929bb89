"""Lessons in reading pages: several printed lines, each in a typeface and a size of its own.

A page shows some 25 letters where a line shows 6, in as many vision tokens: most of what the model learns
about letters it learns here.
"""

from __future__ import annotations

import random

from examples.tiny import drawing, fonts, words
from examples.tiny.lesson import Lesson, Mark
from examples.tiny.reading import ASIDE, EDGE, LEAST_CAPITALS, ground_and_ink
from examples.tiny.wordings import ask, conversation

LEAST_SIDE = 112  # pixels
PITCH = (25, 36)  # pixels from line to line: about one line to a row of vision tokens
MOST_LINES = 6
GAP = 3  # pixels between lines, at least


def page_lesson(rng: random.Random, held_out: bool) -> Lesson:
    """Two to six lines, read from top to bottom."""
    size = drawing.any_size(rng, LEAST_SIDE)
    ground, ink = ground_and_ink(size, rng, held_out)
    pitch = rng.uniform(*PITCH)
    count = min(MOST_LINES, max(2, int((size[0] - 2 * EDGE) / pitch)))
    pitch = (size[0] - 2 * EDGE) / count  # the lines share the whole height
    texts, marks = [], []
    for line in range(count):
        text, setting = _line(size[1] - 2 * EDGE, int(pitch) - GAP, rng, held_out)
        x = rng.randint(EDGE, size[1] - EDGE - setting.ink.width)
        y = EDGE + int(line * pitch) + rng.randint(0, int(pitch) - GAP - setting.ink.height)
        ground.paste(ink, (x, y), setting.ink)
        texts.append(text)
        for character, (x1, y1, x2, y2) in zip(text, setting.boxes, strict=True):
            marks.append(Mark((x + x1, y + y1, x + x2, y + y2), character))
    answer = "\n".join(texts)
    picture = drawing.wear(ground, rng, blur=0.4)
    messages = conversation([picture], ask("page", rng), answer, rng.random() < ASIDE)
    return Lesson("page", messages, answer, (tuple(marks),), f"page, {count} lines", answer)


def _line(width: int, height: int, rng: random.Random, held_out: bool) -> tuple[str, fonts.Setting]:
    """A text, set as large as fits or a little smaller."""
    while True:
        text = max((words.printed(rng)[1] for _ in range(3)), key=len)  # mostly long ones: more to learn
        face = rng.choice(rng.choice(fonts.faces(held_out)))
        wide, high = fonts.extent(face, text)
        least = LEAST_CAPITALS / fonts.capital_height(face)
        sizes = [size for size in fonts.SIZES if least <= size <= min(width / wide, height / high)]
        if not sizes:
            continue
        setting = fonts.set_text(text, face, rng.choice(sizes[-3:]))
        if setting.ink.width <= width and setting.ink.height <= height:
            return text, setting
