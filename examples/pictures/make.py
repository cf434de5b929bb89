"""Draws the example pictures and films: what the bundled model can be asked about, large enough for people.

Handwriting, typefaces and photographs are such as no lesson of its training shows.

    python -m examples.pictures.make
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from examples.tiny import drawing, fonts, handwriting
from examples.tiny.drawing import Colour, Size
from examples.tiny.film_files import write_film

FOLDER = Path(__file__).parent
DIGIT = 130  # pixels on a side
STEP = 104  # from one digit to the next
PEN = [round(255 * min(1.0, max(0.0, (grey / 255 - 0.46) * 4 + 0.5))) for grey in range(256)]
RATE = 8  # frames per second of the films


def digits(
    number: str, skip: tuple[int, ...], size: tuple[int, int], paper: Colour, ink: Colour
) -> Image.Image:
    """Held-out scans in a row, each a little higher or lower than the last.

    ``skip``: scans of each digit to pass over before taking one; ``size``: (width, height).
    """
    mask = Image.new("L", size)
    left = (size[0] - STEP * (len(number) - 1) - DIGIT) // 2
    top = (size[1] - DIGIT) // 2
    for i, (digit, passed) in enumerate(zip(number, skip, strict=True)):
        scan = handwriting.scans_of(int(digit), held_out=True)[passed]
        side = DIGIT * handwriting.INK / handwriting.SIDE
        drawn = handwriting.digit_mask(scan, side, random.Random(0), held_out=True).point(PEN)
        mask.paste(drawn, (left + STEP * i, top + (-5, 6, -2)[i]), drawn)
    page = Image.new("RGB", size, paper)
    page.paste(Image.new("RGB", size, ink), mask=mask.filter(ImageFilter.GaussianBlur(0.8)))
    return page


def sign(text: str, name: str, ink: Colour, size: Size, seed: int) -> Image.Image:
    """A word in a held-out typeface on a photograph."""
    rng = random.Random(seed)
    face = next(face for faces in fonts.faces(held_out=True) for face in faces if name in face.file)
    ground = drawing.photograph(size, rng, held_out=True).filter(ImageFilter.GaussianBlur(2))
    ground = Image.blend(ground, Image.new("RGB", ground.size, (30, 34, 40)), 0.55)
    setting = fonts.set_text(text, face, 86)
    ground.paste(ink, ((size[1] - setting.ink.width) // 2, (size[0] - setting.ink.height) // 2), setting.ink)
    return ground


SHAPES = (  # shape, colour, longer side, left, top
    ("circle", "red", 92, 36, 28),
    ("star", "blue", 110, 180, 20),
    ("square", "green", 84, 340, 60),
    ("circle", "yellow", 76, 70, 178),
    ("triangle", "purple", 100, 210, 172),
    ("circle", "blue", 64, 356, 196),
)


def shapes(changed: bool = False) -> Image.Image:
    """Six shapes on paper; ``changed``: the star has become a cross."""
    page = drawing.graded((300, 460), (238, 232, 218), random.Random(4), held_out=True)
    for i, (shape, colour, side, left, top) in enumerate(SHAPES):
        name = "cross" if changed and shape == "star" else shape
        drawing.draw_thing(page, drawing.thing(name, colour, side, random.Random(i)).moved(left, top))
    return page


def frame(*things: tuple[str, str, float, float]) -> Image.Image:
    """``things``: shape, colour, left and top."""
    page = Image.new("RGB", (336, 224), (216, 220, 206))
    for shape, colour, left, top in things:
        drawing.draw_thing(page, drawing.thing(shape, colour, 84, random.Random(1)).moved(left, top))
    return page


def main() -> None:
    pictures = {
        "digits": digits("407", (15, 13, 0), (400, 190), (247, 241, 227), (28, 44, 92)),
        "two_digits": digits("25", (9, 7), (320, 200), (40, 52, 48), (236, 240, 232)),
        "one_digit": digits("8", (9,), (280, 220), (226, 236, 246), (120, 24, 32)),
        "sign": sign("Bakery", "PublicSans[wght]", (250, 240, 220), (250, 400), seed=3),
        "shapes": shapes(),
        "changed": shapes(changed=True),
    }
    for name, picture in pictures.items():
        picture.save(FOLDER / f"{name}.png", optimize=True)
    seconds = 6
    rest = ("circle", "red", 40, 100)
    appears = [
        frame(rest, *([("square", "blue", 200, 60)] if i >= 4 * RATE else [])) for i in range(seconds * RATE)
    ]
    write_film(FOLDER / "appears.mp4", map(np.asarray, appears), RATE)
    moves = [frame(("star", "green", 220 - 190 * i / (4 * RATE), 70)) for i in range(4 * RATE)]
    write_film(FOLDER / "moves.mp4", map(np.asarray, moves), RATE)


if __name__ == "__main__":
    main()
