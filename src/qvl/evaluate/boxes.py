"""How right an answer is as boxes: intersection over union, with the best assignment of several boxes.

Pure functions of boxes that are all in one coordinate system.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qvl.errors import InputError
from qvl.processing.grounding import Box, Point, find_shapes

FORMS = ("xyxy", "xywh")


@dataclass(frozen=True)
class Matches:
    """What `matched` found. Nothing to find and nothing named is right: all of them are 1 then.

    ``precision``: share of the answer's boxes that found a reference; ``recall``: of the references that were
    found; ``f1``: their harmonic mean. ``iou``: mean over the references of the best overlap with any box of
    the answer.
    """

    precision: float
    recall: float
    f1: float
    iou: float


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes; 0 where neither has an area."""
    width = min(one.x2, other.x2) - max(one.x1, other.x1)
    height = min(one.y2, other.y2) - max(one.y1, other.y1)
    common = max(width, 0.0) * max(height, 0.0)
    union = area(one) + area(other) - common
    return common / union if union > 0 else 0.0


def area(box: Box) -> float:
    return (box.x2 - box.x1) * (box.y2 - box.y1)


def matched(
    answer: Sequence[Box], references: Sequence[Box], threshold: float = 0.5, labels: bool = False
) -> Matches:
    """Boxes of the answer paired with references so that as many pairs as can be overlap by ``threshold``.

    Each box is in one pair at most. ``labels``: only boxes with the same label (case apart) make a pair. Of
    one reference and one box, ``f1`` is the accuracy at IoU ``threshold`` that RefCOCO is reported in.
    """
    overlaps = [
        [iou(box, reference) if not labels or _same(box, reference) else 0.0 for reference in references]
        for box in answer
    ]
    pairs = _most_pairs([[value >= threshold for value in row] for row in overlaps], len(references))
    best = [max(column, default=0.0) for column in zip(*overlaps, strict=True)] if answer else []
    return Matches(
        precision=pairs / len(answer) if answer else float(not references),
        recall=pairs / len(references) if references else float(not answer),
        f1=2 * pairs / (len(answer) + len(references)) if answer or references else 1.0,
        iou=sum(best) / len(references) if references else float(not answer),
    )


def pointed(answer: Sequence[Box | Point], references: Sequence[Box]) -> float:
    """1 where the answer's first point, or the middle of its first box, lies in a reference.

    The accuracy of ScreenSpot (arXiv 2401.10935).
    """
    if not answer:
        return 0.0
    first = answer[0]
    x, y = (
        (first.x, first.y)
        if isinstance(first, Point)
        else ((first.x1 + first.x2) / 2, (first.y1 + first.y2) / 2)
    )
    return float(any(box.x1 <= x <= box.x2 and box.y1 <= y <= box.y2 for box in references))


def reference_boxes(value: Any, form: str = "xyxy") -> list[Box]:
    """The boxes of a reference: four numbers, an object with ``bbox_2d``, lists of such, or JSON of these.

    ``form``: whether the last two numbers are the lower right corner ("xyxy") or width and height ("xywh").
    Raises InputError for anything else, and for a form that is neither.
    """
    if form not in FORMS:
        raise InputError(f"boxes are {' or '.join(FORMS)}, not {form!r}")
    return [_formed(box, form) for box in _boxes(value)]


def _boxes(value: Any) -> Iterable[Box]:
    if isinstance(value, Box):
        return [value]
    if isinstance(value, str):
        return _boxes_in(value)
    if isinstance(value, Mapping) and "bbox_2d" in value:
        return [_box(value["bbox_2d"], str(value.get("label", "")))]
    if isinstance(value, Sequence) and value and all(isinstance(item, int | float) for item in value):
        return [_box(value)]
    if isinstance(value, Sequence):
        return [box for item in value for box in _boxes(item)]
    raise InputError(
        f"a reference must be boxes, as [x1, y1, x2, y2] or {{'bbox_2d': [...]}}, not {value!r:.80}"
    )


def _boxes_in(text: str) -> Iterable[Box]:
    try:
        return _boxes(json.loads(text))
    except ValueError:  # of JSON, or an InputError: not boxes alone
        found = [shape for shape in find_shapes(text) if isinstance(shape, Box)]
    if not found:
        raise InputError(f"there is no box in the reference {text!r:.80}; expected JSON with bbox_2d")
    return found


def _box(numbers: Any, label: str = "") -> Box:
    if not isinstance(numbers, Sequence) or len(numbers) != 4 or not all(map(_finite, numbers)):
        raise InputError(f"a box has four numbers, not {numbers!r:.80}")
    x1, y1, x2, y2 = map(float, numbers)
    return Box(x1, y1, x2, y2, label)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _formed(box: Box, form: str) -> Box:
    x1, y1, x2, y2 = box.xyxy
    if form == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    return Box(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2), box.label)


def _same(one: Box, other: Box) -> bool:
    return one.label.strip().casefold() == other.label.strip().casefold()


def _most_pairs(fits: Sequence[Sequence[bool]], columns: int) -> int:
    """The size of a largest matching of rows and columns that fit: augmenting paths."""
    owner: list[int | None] = [None] * columns

    def place(row: int, tried: set[int]) -> bool:
        for column, fit in enumerate(fits[row]):
            if not fit or column in tried:
                continue
            tried.add(column)
            held = owner[column]
            if held is None or place(held, tried):
                owner[column] = row
                return True
        return False

    return sum(place(row, set()) for row in range(len(fits)))
