"""Boxes and points in what the model writes, in pixels of the picture that people have.

Qwen2.5-VL answers in absolute pixels of the resized picture (its report, arXiv 2502.13923, section 2.1.1),
as JSON (``bbox_2d``, ``point_2d``, ``label``) or between box tokens. This module reads both, writes numbers
of training data in their place, and knows no model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qvl.errors import InputError
from qvl.types import Grid

NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")
# An object that is no valid JSON (cut off, a comma too many) still has readable parts.
LOOSE_SHAPE = re.compile(r'"(bbox_2d|point_2d)"\s*:\s*\[([-\d.,\s]+)\]')
LOOSE_LABEL = re.compile(r'"label"\s*:\s*("(?:[^"\\]|\\.)*")')
INSIDE = r"((?:[^<]|<(?!\|))*)"  # up to the next token
TOKENS = re.compile(
    rf"<\|object_ref_start\|>{INSIDE}<\|object_ref_end\|>|<\|box_start\|>{INSIDE}<\|box_end\|>"
)
# The same two forms where numbers are to be written anew: lists may be nested, all else stays as it is.
LISTS = re.compile(r'"(?:bbox_2d|point_2d)"\s*:\s*(\[[-\d.,\s\[\]]*\])')
INNERMOST, WHOLE = re.compile(r"[^\[\]]+"), re.compile(r"(?s).+")
PICTURE = re.compile(r'"image"\s*:\s*(\d+)')
OUTSIDE = 0.02  # of a side: as far as annotations overshoot
LABEL_KEYS = ("label", "text_content", "text", "name")


@dataclass(frozen=True)
class Point:
    """A place in a picture, in pixels from its upper left corner."""

    x: float
    y: float
    label: str = ""


@dataclass(frozen=True)
class Box:
    """A rectangle in a picture, in pixels: (x1, y1) is its upper left, (x2, y2) its lower right corner."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        return self.x1, self.y1, self.x2, self.y2


def ground(text: str, grid: Grid, width: int, height: int, patch_size: int = 14) -> tuple[Box | Point, ...]:
    """All boxes and points of an answer in pixels of the original picture.

    ``grid``: what the processor made of the picture (a row of ``image_grid_thw``). ``width``, ``height``: of
    the original, turned upright if its EXIF data say so, as every viewer shows it. See to_original.
    """
    return to_original(find_shapes(text), grid, width, height, patch_size)


def find_shapes(text: str) -> tuple[Box | Point, ...]:
    """All boxes and points of an answer in reading order, in the pixels that the model speaks of.

    Reads JSON objects wherever they stand (fenced, bare, nested, the last one cut off) and box tokens.
    """
    found = sorted([*_json_shapes(text), *_token_shapes(text)], key=lambda item: item[0])
    return tuple(shape for _, shape in found)


def to_original(
    shapes: Iterable[Box | Point], grid: Grid, width: int, height: int, patch_size: int = 14
) -> tuple[Box | Point, ...]:
    """``shapes`` from pixels of the resized picture (``grid`` times ``patch_size``) to those of the original.

    Clipped to the picture, not rounded. Raises InputError for an empty picture or grid.
    """
    if min(width, height, grid.w, grid.h, patch_size) < 1:
        raise InputError(f"A picture of {width} x {height} pixels with {grid} has no pixels to map to")
    scale_x, scale_y = width / (grid.w * patch_size), height / (grid.h * patch_size)

    def place(x: float, y: float) -> tuple[float, float]:
        return min(max(x * scale_x, 0.0), float(width)), min(max(y * scale_y, 0.0), float(height))

    return tuple(
        Point(*place(s.x, s.y), s.label)
        if isinstance(s, Point)
        else Box(*place(s.x1, s.y1), *place(s.x2, s.y2), s.label)
        for s in shapes
    )


@dataclass(frozen=True)
class Frame:
    """From pixels of one size of a picture (``width`` x ``height``, or what else numbers count in) to
    another: ``new_width`` x ``new_height``."""

    width: float
    height: float
    new_width: float
    new_height: float

    @property
    def same(self) -> bool:
        return (self.width, self.height) == (self.new_width, self.new_height)

    def place(self, numbers: Sequence[float]) -> list[int]:
        """x, y, x, y ... in whole new pixels, clipped to the picture.

        Raises InputError for numbers that lie so far outside that they cannot be meant so (more than 2 % of
        a side): then something else is wrong with them.
        """
        sides = [(self.width, self.new_width), (self.height, self.new_height)]
        placed = []
        for index, number in enumerate(numbers):
            side, new = sides[index % 2]
            if not -OUTSIDE * side <= number <= (1 + OUTSIDE) * side:
                raise InputError(f"{number:g} lies outside a picture of {self.width:g} x {self.height:g}")
            placed.append(round(min(max(number / side, 0.0), 1.0) * new))
        return placed


def rewritten(text: str, place: Callable[[list[float], int | None], Sequence[int] | None]) -> str:
    """``text`` with the numbers of its boxes and points replaced, every other character as it was.

    ``place``: from x, y, x, y ... of one box or point, and the number that its JSON object has under "image"
    (None without one), to the numbers to write; None leaves them. Reads what `find_shapes` reads. Raises
    InputError for a box of an odd number of numbers.
    """
    found = [(match.span(1), _named_picture(text, match.start())) for match in LISTS.finditer(text)]
    found += [(match.span(2), None) for match in TOKENS.finditer(text) if match[2] is not None]
    for (start, end), picture in sorted(found, reverse=True):
        shapes = INNERMOST if text[start] == "[" else WHOLE
        changed = shapes.sub(lambda shape: _replaced(shape[0], picture, place), text[start:end])  # noqa: B023
        text = text[:start] + changed + text[end:]
    return text


def _replaced(
    text: str, picture: int | None, place: Callable[[list[float], int | None], Sequence[int] | None]
) -> str:
    """The numbers in ``text``, which are those of one shape, replaced."""
    numbers = [float(number) for number in NUMBERS.findall(text)]
    if not numbers:
        return text
    if len(numbers) % 2:
        raise InputError(f"a box or point has {len(numbers)} numbers: {text.strip()!r:.60}")
    placed = place(numbers, picture)
    if placed is None:
        return text
    following = iter(placed)
    return NUMBERS.sub(lambda _: str(next(following)), text)


def _named_picture(text: str, position: int) -> int | None:
    """What the JSON object around ``position`` says under "image"."""
    depth, start = 0, position
    while start > 0 and depth >= 0:
        start -= 1
        depth += {"}": 1, "{": -1}.get(text[start], 0)
    depth, end = 0, position
    while end < len(text) and depth >= 0:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    found = PICTURE.search(text, start, end)
    return int(found[1]) if found else None


def _json_shapes(text: str) -> Iterator[tuple[int, Box | Point]]:
    """(position in the text, shape) for every object that holds one."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            following = text.find("{", start + 1)
            end = len(text) if following < 0 else following
            shapes = _loose_shapes(text[start:end])
        else:
            shapes = _nested_shapes(value)
        yield from ((start, shape) for shape in shapes)
        start = text.find("{", end)


def _nested_shapes(value: Any) -> Iterator[Box | Point]:
    if isinstance(value, dict):
        label = next((value[key] for key in LABEL_KEYS if isinstance(value.get(key), str)), "")
        for key in ("bbox_2d", "point_2d"):
            yield from _shapes(value.get(key), label)
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _nested_shapes(item)


def _shapes(numbers: Any, label: str) -> Iterator[Box | Point]:
    """A shape of four or two numbers, or one for each list of such."""
    if isinstance(numbers, list) and numbers and all(isinstance(item, list) for item in numbers):
        for item in numbers:
            yield from _shapes(item, label)
    elif isinstance(numbers, list) and all(map(_is_number, numbers)) and (shape := _shape(numbers, label)):
        yield shape


def _shape(numbers: list[float], label: str) -> Box | Point | None:
    if len(numbers) == 2:
        return Point(float(numbers[0]), float(numbers[1]), label.strip())
    if len(numbers) == 4:
        x1, y1, x2, y2 = map(float, numbers)
        return Box(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2), label.strip())
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _loose_shapes(text: str) -> Iterator[Box | Point]:
    label = _loose_label(text)
    for found in LOOSE_SHAPE.finditer(text):
        numbers = [float(number) for number in NUMBERS.findall(found[2])]
        if shape := _shape(numbers, label):
            yield shape


def _loose_label(text: str) -> str:
    """Empty where there is none, or one that JSON does not read (an escape of its own)."""
    found = LOOSE_LABEL.search(text)
    try:
        return json.loads(found[1], strict=False) if found else ""
    except json.JSONDecodeError:
        return ""


def _token_shapes(text: str) -> Iterator[tuple[int, Box | Point]]:
    """Shapes between box tokens; the reference before them is their label."""
    label = ""
    for found in TOKENS.finditer(text):
        if found[1] is not None:
            label = found[1]
        elif shape := _shape([float(number) for number in NUMBERS.findall(found[2])], label):
            yield found.start(), shape
