"""Typefaces that packages of the Python index ship: those that train and those held out, and words set in them.

Held out are whole families, as plain and readable as the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

INSTALL = (
    "pip install matplotlib font-roboto font-source-sans-pro font-source-serif-pro font-hanken-grotesk font-rhd "
    "font-fjallaone font-fredoka-one font-intuitive font-lato font-caladea font-manrope"
)
MATPLOTLIB = "matplotlib/mpl-data/fonts/ttf"
SLANTS = ("Regular", "Italic", "Bold", "BoldItalic")
# The folder of a package, the beginning of the files' names, the faces, and the ending.
TRAINING_FAMILIES = (
    (MATPLOTLIB, "DejaVuSans", ("", "-Bold", "-Oblique", "-BoldOblique"), ".ttf"),
    (MATPLOTLIB, "DejaVuSansMono", ("", "-Bold", "-Oblique"), ".ttf"),
    (MATPLOTLIB, "STIXGeneral", ("", "Bol", "Italic", "BolIta"), ".ttf"),
    (MATPLOTLIB, "cm", ("r10", "b10", "ss10", "tt10"), ".ttf"),
    ("font_roboto/files", "Roboto-", ("Light", "Medium", *SLANTS), ".ttf"),
    ("font_source_sans_pro/files", "SourceSansPro-", ("Regular", "It", "Semibold", "Bold", "BoldIt"), ".ttf"),
    ("font_source_serif_pro/files", "SourceSerifPro-", ("Regular", "It", "Semibold", "Bold", "BoldIt"), ".ttf"),
    ("font_hanken_grotesk/files", "HankenGrotesk-", ("Medium", *SLANTS), ".otf"),
    ("font_rhd/files", "RedHatDisplay-", ("Medium", *SLANTS), ".ttf"),
    ("font_fjallaone/files", "FjallaOne-", ("Regular",), ".ttf"),
    ("font_fredoka_one/files", "FredokaOne-", ("Regular",), ".ttf"),
    ("font_intuitive/files", "Intuitive", ("",), ".ttf"),
)
HELD_OUT_FAMILIES = (
    ("font_lato/files", "Lato-", SLANTS, ".ttf"),
    ("font_caladea/files", "Caladea-", SLANTS, ".ttf"),
    ("font_manrope/files", "Manrope-", ("Regular", "Medium", "Bold"), ".ttf"),
    (MATPLOTLIB, "DejaVuSerif", ("", "-Bold", "-Italic"), ".ttf"),
)
# Sizes in pixels per em; few, because each face of each size is kept open.
SIZES = (14, 15, 16, 17, 18, 20, 22, 24, 27, 30, 34, 38, 43, 48, 54, 61, 69, 78, 88, 100, 113, 128, 145)
MEASURE = 100  # pixels per em at which widths are measured


@dataclass(frozen=True)
class Setting:
    """Text set in one line. ``ink``: its mask, mode L, trimmed; ``boxes``: of the characters, in its pixels."""

    ink: Image.Image
    boxes: tuple[tuple[float, float, float, float], ...]


@lru_cache(maxsize=2)
def faces(held_out: bool) -> tuple[str, ...]:
    """The files of the typefaces. Raises ImportError where a package that ships one is missing."""
    found = []
    for folder, family, variants, ending in HELD_OUT_FAMILIES if held_out else TRAINING_FAMILIES:
        package, _, rest = folder.partition("/")
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ImportError(f"{package} ships a typeface of the lessons. Install all of them: {INSTALL}")
        where = Path(next(iter(spec.submodule_search_locations)), rest)
        found += [str(where / f"{family}{variant}{ending}") for variant in variants]
    return tuple(found)


@lru_cache(maxsize=1500)
def font(face: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(face, size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=None)
def capital_height(face: str) -> float:
    """Height of capital letters, as a share of the em."""
    _, top, _, bottom = font(face, MEASURE).getbbox("H")
    return (bottom - top) / MEASURE


def extent(face: str, text: str) -> tuple[float, float]:
    """Width and height of the text's ink, in ems."""
    left, top, right, bottom = font(face, MEASURE).getbbox(text)
    return (right - left) / MEASURE, (bottom - top) / MEASURE


def set_text(text: str, face: str, size: int, turn: float = 0.0) -> Setting:
    """The text in one line, turned by ``turn`` degrees against the clock."""
    used = font(face, size)
    left, top, right, bottom = used.getbbox(text)
    ink = Image.new("L", (math.ceil(right - left) + 2, math.ceil(bottom - top) + 2))
    ImageDraw.Draw(ink).text((1 - left, 1 - top), text, font=used, fill=255)
    boxes = [_character_box(used, text, i, 1 - left, 1 - top) for i in range(len(text))]
    if turn:
        size_before = ink.size
        ink = ink.rotate(turn, Image.Resampling.BICUBIC, expand=True)
        boxes = [_turned_box(box, turn, size_before, ink.size) for box in boxes]
    x, y, right, bottom = ink.getbbox() or (0, 0, *ink.size)
    trimmed = ink.crop((x, y, right, bottom))
    return Setting(trimmed, tuple(_within(box, x, y, trimmed.size) for box in boxes))


def _character_box(used, text: str, i: int, x: float, y: float) -> tuple[float, float, float, float]:
    left, top, right, bottom = used.getbbox(text[i])
    start = x + used.getlength(text[: i + 1]) - used.getlength(text[i])
    return start + left, y + top, start + right, y + bottom


def _turned_box(box, turn: float, before: tuple[int, int], after: tuple[int, int]):
    """The box around a turned box."""
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    corners = [(x - before[0] / 2, y - before[1] / 2) for x in box[::2] for y in box[1::2]]
    xs = [after[0] / 2 + x * cos + y * sin for x, y in corners]
    ys = [after[1] / 2 - x * sin + y * cos for x, y in corners]
    return min(xs), min(ys), max(xs), max(ys)


def _within(box, x: float, y: float, size: tuple[int, int]) -> tuple[float, float, float, float]:
    return (
        max(0.0, box[0] - x),
        max(0.0, box[1] - y),
        min(float(size[0]), box[2] - x),
        min(float(size[1]), box[3] - y),
    )
