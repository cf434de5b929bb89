"""Lessons in reading: printed words and numbers, and handwritten digits."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

from examples.tiny import drawing, fonts, handwriting, words
from examples.tiny.drawing import Colour, Size
from examples.tiny.lesson import Lesson, Mark
from examples.tiny.wordings import ask, conversation

LEAST_CAPITALS = 11  # pixels: height of capital letters in the smallest print
CONTRAST = 85.0  # of luminance between print and all that lies behind it
EDGE = 3  # pixels between print and the border of the picture
ASIDE = 0.1  # share of lessons whose question stands before the picture


def text_lesson(rng: random.Random, held_out: bool) -> Lesson:
    """One printed line, read letter by letter."""
    kind, text = words.printed(rng)
    stretch = 1.0 if held_out or rng.random() < 0.6 else rng.uniform(0.82, 1.25)
    setting, size = _fitting(text, rng.choice(rng.choice(fonts.faces(held_out))), stretch, rng)
    ground, ink = ground_and_ink(size, rng, held_out)
    x = rng.randint(EDGE, size[1] - EDGE - setting.ink.width)
    y = rng.randint(EDGE, size[0] - EDGE - setting.ink.height)
    ground.paste(ink, (x, y), setting.ink)
    picture = drawing.wear(ground, rng, blur=min(0.7, setting.ink.height / 40))
    marks = tuple(
        Mark((x + x1, y + y1, x + x2, y + y2), character)
        for character, (x1, y1, x2, y2) in zip(text, setting.boxes, strict=True)
    )
    wording = (
        "word" if kind == "word" and rng.random() < 0.2 else "digits" if _asks_number(kind, rng) else "text"
    )
    question = ask("text" if wording == "digits" else wording, rng)
    messages = conversation([picture], question, text, rng.random() < ASIDE)
    return Lesson("text", messages, text, (marks,), f"text, {kind}", text)


def _asks_number(kind: str, rng: random.Random) -> bool:
    return kind == "number" and rng.random() < 0.3


def _fitting(text: str, face: fonts.Face, stretch: float, rng: random.Random) -> tuple[fonts.Setting, Size]:
    """The text in a size that fits a picture, and that picture's size."""
    turn = rng.uniform(-6, 6) if rng.random() < 0.25 else 0.0
    wide, high = fonts.extent(face, text)
    wide *= stretch
    slope = math.sin(math.radians(abs(turn)))
    wide, high = wide + high * slope + 0.05, high + wide * slope + 0.05
    least = LEAST_CAPITALS / fonts.capital_height(face)
    while True:
        height, width = drawing.any_size(rng)
        largest = min((width - 2 * EDGE) / wide, (height - 2 * EDGE) / high)
        sizes = [size for size in fonts.SIZES if least <= size <= largest]
        if not sizes:
            continue
        setting = fonts.set_text(text, face, rng.choice(sizes), turn, stretch)
        if setting.ink.width <= width - 2 * EDGE and setting.ink.height <= height - 2 * EDGE:
            return setting, (height, width)


def ground_and_ink(size: Size, rng: random.Random, held_out: bool) -> tuple[Image.Image, Colour]:
    """A background and a colour that is much lighter or much darker than all of it."""
    while True:
        ground = drawing.background(size, (), rng, held_out)
        cells = np.asarray(ground.convert("L").resize((16, 16), Image.Resampling.BOX))
        darkest, lightest = float(cells.min()), float(cells.max())
        choices = []
        if darkest >= CONTRAST:
            choices.append((0.0, darkest - CONTRAST))
        if lightest <= 255 - CONTRAST:
            choices.append((lightest + CONTRAST, 255.0))
        if choices:
            return ground, _ink(*rng.choice(choices), rng)


def _ink(least: float, most: float, rng: random.Random) -> Colour:
    """Black, white, or any colour with a luminance between ``least`` and ``most``."""
    if rng.random() < 0.25:
        return (0, 0, 0) if least == 0.0 else (255, 255, 255)
    for _ in range(20):
        colour = drawing.any_colour(rng)
        if least <= drawing.luminance(colour) <= most:
            return colour
    grey = round((least + most) / 2)
    return grey, grey, grey


def digits_lesson(rng: random.Random, held_out: bool) -> Lesson:
    """One to three handwritten digits in a row."""
    count = rng.choice((1, 1, 2, 2, 3))
    answer = "".join(str(rng.randrange(10)) for _ in range(count))
    return _scans_lesson(handwriting.scans_of_digits(answer, rng, held_out), rng, held_out)


def scan_lesson(scan: int, rng: random.Random) -> Lesson:
    """One held-out scan alone."""
    return _scans_lesson([scan], rng, held_out=True)


def _scans_lesson(scans: Sequence[int], rng: random.Random, held_out: bool) -> Lesson:
    answer, count = "".join(str(handwriting.shown_by(scan)) for scan in scans), len(scans)
    while True:
        size = drawing.any_size(rng)
        if size[1] >= 28 * count and size[1] <= 2 * size[0] * count:
            break
    mask, boxes = handwriting.row(scans, size, rng, held_out)
    paper, ink = _paper_and_ink(size, rng)
    picture = drawing.wear(Image.composite(Image.new("RGB", mask.size, ink), paper, mask), rng)
    marks = tuple(Mark(box, f"hand:{digit}") for digit, box in zip(answer, boxes, strict=True))
    wording = "digit" if count == 1 and rng.random() < 0.3 else "digits"
    messages = conversation([picture], ask(wording, rng), answer, rng.random() < ASIDE)
    return Lesson("digits", messages, answer, (marks,), f"digits, {count}", answer)


def _paper_and_ink(size: Size, rng: random.Random) -> tuple[Image.Image, Colour]:
    """Light paper and dark ink, in one of four pictures the other way round; light falls off to a side."""
    bright, dark = rng.uniform(180, 255), rng.uniform(0, 76)
    if rng.random() < 0.25:
        bright, dark = dark, bright
    paper, ink = _tinted(bright, rng), _tinted(dark, rng)
    ground = rng.choice((drawing.plain, drawing.graded, drawing.noisy, drawing.blotched))(
        size, paper, rng, False
    )
    return ground, ink


def _tinted(grey: float, rng: random.Random) -> Colour:
    red, green, blue = (round(min(255.0, max(0.0, grey + rng.uniform(-30, 30)))) for _ in range(3))
    return red, green, blue
