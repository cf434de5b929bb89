"""Typefaces that Python packages ship: those that train and those held out, and words set in them.

Held out are whole families, as plain and readable as the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]

# Packages of one family each, in their folder "files", under the SIL Open Font License or Apache 2.0. Only
# families whose figures are as tall as their capitals.
TRAINING_FAMILIES = (
    "font-roboto",
    "font-source-sans-pro",
    "font-source-serif-pro",
    "font-hanken-grotesk",
    "font-rhd",
    "font-fjallaone",
    "font-fredoka-one",
    "fontpkg-arimo",
    "fontpkg-barlow",
    "fontpkg-bitter",
    "fontpkg-crimson-text",
    "fontpkg-fira-sans",
    "fontpkg-ibm-plex-mono",
    "fontpkg-ibm-plex-sans",
    "fontpkg-ibm-plex-serif",
    "fontpkg-inconsolata",
    "fontpkg-libre-baskerville",
    "fontpkg-montserrat",
    "fontpkg-noto-sans",
    "fontpkg-noto-serif",
    "fontpkg-nunito",
    "fontpkg-open-sans",
    "fontpkg-oswald",
    "fontpkg-poppins",
    "fontpkg-pt-sans",
    "fontpkg-pt-serif",
    "fontpkg-roboto-slab",
    "fontpkg-rubik",
    "fontpkg-space-mono",
)
HELD_OUT_FAMILIES = (
    "font-caladea",
    "font-lato",
    "font-manrope",
    "fontpkg-arvo",
    "fontpkg-lora",
    "fontpkg-public-sans",
)
INSTALL = f"pip install matplotlib {' '.join(TRAINING_FAMILIES + HELD_OUT_FAMILIES)}"
STYLES = frozenset(
    ("Regular", "Medium", "Semibold", "SemiBold", "Bold", "Italic", "It", "BoldItalic", "BoldIt")
)
WEIGHTS = (400, 700)  # of families that are one file for all weights
# Of those that matplotlib ships.
MATPLOTLIB = (
    ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono"),
    ("STIXGeneral", "STIXGeneralBol"),
    ("cmr10", "cmss10", "cmtt10"),
)
MATPLOTLIB_HELD_OUT = (("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),)
# Sizes in pixels per em; few, because a face of one size is kept open for the next lesson.
SIZES = (14, 15, 16, 18, 20, 23, 27, 31, 36, 42, 50, 60, 72, 86, 104, 125, 145)
MEASURE = 100  # pixels per em at which widths are measured


@dataclass(frozen=True)
class Face:
    """A file with a typeface. ``weight``: of a file for all weights, otherwise 0."""

    file: str
    weight: int = 0

    def open(self, size: int) -> ImageFont.FreeTypeFont:
        opened = ImageFont.truetype(self.file, size, layout_engine=ImageFont.Layout.BASIC)
        if self.weight:
            axes = opened.get_variation_axes()
            values = [self.weight if axis["name"] == b"Weight" else axis["default"] or 0 for axis in axes]
            opened.set_variation_by_axes([float(value) for value in values])
        return opened


@dataclass(frozen=True)
class Setting:
    """A line of text. ``ink``: its mask, mode L, trimmed; ``boxes``: of the characters, in its pixels."""

    ink: Image.Image
    boxes: tuple[Box, ...]


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{package} ships a typeface of the lessons. Install all of them: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def _of_family(name: str) -> list[Face]:
    """The faces of a package that are plain: neither thin nor black."""
    files = sorted((_folder(name.replace("-", "_")) / "files").iterdir())
    outlines = [file for file in files if file.suffix == ".ttf"] or [
        file for file in files if file.suffix == ".otf"
    ]
    found = [Face(str(file)) for file in outlines if file.stem.rpartition("-")[2] in STYLES]
    return found or [Face(str(file), weight) for file in outlines if "[" in file.stem for weight in WEIGHTS]


@lru_cache(maxsize=2)
def faces(held_out: bool) -> tuple[tuple[Face, ...], ...]:
    """The faces of each family. Raises ImportError where a package that ships one is missing."""
    families = [_of_family(name) for name in (HELD_OUT_FAMILIES if held_out else TRAINING_FAMILIES)]
    fonts = _folder("matplotlib") / "mpl-data" / "fonts" / "ttf"
    for names in MATPLOTLIB_HELD_OUT if held_out else MATPLOTLIB:
        families.append([Face(str(fonts / f"{name}.ttf")) for name in names])
    return tuple(tuple(family) for family in families)


@lru_cache(maxsize=1200)
def font(face: Face, size: int) -> ImageFont.FreeTypeFont:
    return face.open(size)


@cache
def _measuring(face: Face) -> ImageFont.FreeTypeFont:
    return face.open(MEASURE)


@cache
def capital_height(face: Face) -> float:
    """Height of capital letters, as a share of the em."""
    (_, top, _, bottom), _ = _character(face, MEASURE, "H")
    return (bottom - top) / MEASURE


def extent(face: Face, text: str) -> tuple[float, float]:
    """Width and height of the text's ink, in ems, about: small sizes are rounded to whole pixels."""
    boxes = [_character(face, MEASURE, character) for character in text]
    top, bottom = min(box[1] for box, _ in boxes), max(box[3] for box, _ in boxes)
    return sum(step for _, step in boxes) / MEASURE + 0.05, (bottom - top) / MEASURE


def set_text(text: str, face: Face, size: int, turn: float = 0.0, stretch: float = 1.0) -> Setting:
    """The text in one line, ``stretch`` times as wide, turned by ``turn`` degrees against the clock."""
    boxes = _character_boxes(face, size, text)
    left, top = min(box[0] for box in boxes) - 1, min(box[1] for box in boxes) - 1
    right, bottom = max(box[2] for box in boxes) + 1, max(box[3] for box in boxes) + 1
    ink = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
    ImageDraw.Draw(ink).text((-left, -top), text, font=font(face, size), fill=255)
    boxes = [(x1 - left, y1 - top, x2 - left, y2 - top) for x1, y1, x2, y2 in boxes]
    if stretch != 1.0:
        width = round(ink.width * stretch)
        stretch = width / ink.width
        ink = ink.resize((width, ink.height), Image.Resampling.BICUBIC)
        boxes = [(x1 * stretch, y1, x2 * stretch, y2) for x1, y1, x2, y2 in boxes]
    if turn:
        size_before = ink.size
        ink = ink.rotate(turn, Image.Resampling.BICUBIC, expand=True)
        boxes = [_turned_box(box, turn, size_before, ink.size) for box in boxes]
    x, y, right, bottom = ink.getbbox() or (0, 0, *ink.size)
    trimmed = ink.crop((x, y, right, bottom))
    return Setting(trimmed, tuple(_within(box, x, y, trimmed.size) for box in boxes))


@lru_cache(maxsize=100_000)
def _character(face: Face, size: int, character: str) -> tuple[Box, float]:
    """The ink of a character that starts at the origin, and how far the next one is from there."""
    used = _measuring(face) if size == MEASURE else font(face, size)
    return used.getbbox(character), used.getlength(character)


def _character_boxes(face: Face, size: int, text: str) -> list[Box]:
    """The ink of each character of a text that starts at the origin, kerned as it is drawn."""
    boxes = []
    for i, character in enumerate(text):
        (left, top, right, bottom), step = _character(face, size, character)
        start = font(face, size).getlength(text[: i + 1]) - step if i else 0.0
        boxes.append((start + left, top, start + right, bottom))
    return boxes


def _turned_box(box: Box, turn: float, before: tuple[int, int], after: tuple[int, int]) -> Box:
    """The box around a turned box."""
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    corners = [(x - before[0] / 2, y - before[1] / 2) for x in box[::2] for y in box[1::2]]
    xs = [after[0] / 2 + x * cos + y * sin for x, y in corners]
    ys = [after[1] / 2 - x * sin + y * cos for x, y in corners]
    return min(xs), min(ys), max(xs), max(ys)


def _within(box: Box, x: float, y: float, size: tuple[int, int]) -> Box:
    x1, y1, x2, y2 = box
    return max(0.0, x1 - x), max(0.0, y1 - y), min(float(size[0]), x2 - x), min(float(size[1]), y2 - y)
