"""ms-swift's ``objects`` of a row: what ``<ref-object>`` and ``<bbox>`` in its texts stand for.

Boxes keep the pixels that the row counts in until somebody knows the size of their picture; `placed` then
writes them. The forms are those of ms-swift's page on custom datasets, the older one (a JSON text that is a
list of ``caption``, ``bbox``, ``bbox_type``, ``image``) too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from qvl.errors import PromptError

TAG = re.compile(r"<(ref-object|bbox)>")
Counted = Literal["pixels", "thousandths", "fractions"]
UNITS: Mapping[str, Counted] = MappingProxyType(
    {
        "real": "pixels",
        "norm1": "fractions",
        "norm_1": "fractions",
        "norm1000": "thousandths",
        "norm_1000": "thousandths",
    }
)
Style = Literal["tokens", "numbers"]


@dataclass(frozen=True)
class ObjectBox:
    """``numbers``: x1, y1, x2, y2 of a box or x, y of a point, counted in ``unit``; ``picture``: which of the
    row's pictures it lies in, from 0."""

    numbers: tuple[float, ...]
    unit: Counted
    picture: int


@dataclass(frozen=True)
class Objects:
    """In the order of the tags; one tag may stand for several boxes of the older form."""

    names: tuple[str, ...]
    boxes: tuple[tuple[ObjectBox, ...], ...]


def objects_of(value: Any, messages: Sequence[Mapping[str, Any]]) -> Objects | None:
    """The objects of a row, checked against its tags; None where it has none. Raises PromptError."""
    if value in (None, "", {}, []):
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise PromptError("'objects' is a text that is no JSON") from None
    objects = _older(value) if isinstance(value, list) else _newer(value)
    tags = [tag[1] for text in _texts(messages) for tag in TAG.finditer(text)]
    _compare("ref-object", tags.count("ref-object"), len(objects.names))
    _compare("bbox", tags.count("bbox"), len(objects.boxes))
    return objects


def placed(
    messages: Sequence[Mapping[str, Any]],
    objects: Objects,
    numbers: Callable[[ObjectBox], Sequence[float]],
    style: Style = "tokens",
) -> list[dict[str, Any]]:
    """``messages`` with the tags written out. ``numbers``: what to write for a box or point.

    ``style`` "tokens": between the model's box and reference tokens, as ms-swift does by itself;
    "numbers": names as they are and boxes as JSON lists, so that an answer may be JSON of its own.
    """
    names, boxes = iter(objects.names), iter(objects.boxes)

    def write(tag: re.Match[str]) -> str:
        if tag[1] == "ref-object":
            name = next(names)
            return name if style == "numbers" else f"<|object_ref_start|>{name}<|object_ref_end|>"
        lists = [[_short(number) for number in numbers(box)] for box in next(boxes)]
        if style == "numbers":
            return json.dumps(lists[0] if len(lists) == 1 else lists)
        return "".join(f"<|box_start|>{_pairs(one)}<|box_end|>" for one in lists)

    return [{**message, "content": _rewritten(message["content"], write)} for message in messages]


def _rewritten(content: Any, write: Callable[[re.Match[str]], str]) -> Any:
    if isinstance(content, str):
        return TAG.sub(write, content)
    return [
        {**part, "text": TAG.sub(write, part["text"])} if part["type"] == "text" else part for part in content
    ]


def _pairs(numbers: Sequence[float]) -> str:
    return ",".join(f"({x},{y})" for x, y in zip(numbers[::2], numbers[1::2], strict=True))


def _short(number: float) -> float:
    return int(number) if number == int(number) else number


def _texts(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for message in messages:
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        yield from (part["text"] for part in parts if isinstance(part.get("text"), str))


def _newer(value: Any) -> Objects:
    if not isinstance(value, Mapping):
        raise PromptError("'objects' must be an object with 'ref' and 'bbox'")
    names, boxes = value.get("ref") or [], value.get("bbox") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PromptError("'ref' of 'objects' must be a list of texts")
    if not isinstance(boxes, list):
        raise PromptError("'bbox' of 'objects' must be a list of boxes")
    unit = _unit(value.get("bbox_type"))
    pictures = value.get("image_id") or [0] * len(boxes)
    if not isinstance(pictures, list) or len(pictures) != len(boxes):
        raise PromptError("'image_id' of 'objects' must name one picture for each box")
    made = [(_box(box, unit, picture),) for box, picture in zip(boxes, pictures, strict=True)]
    return Objects(tuple(names), tuple(made))


def _older(value: list[Any]) -> Objects:
    """``[{"caption", "bbox": four numbers or lists of them, "bbox_type", "image"}]``."""
    boxes = []
    for item in value:
        if not isinstance(item, Mapping) or not isinstance(item.get("bbox"), list):
            raise PromptError("each entry of 'objects' must have 'caption' and 'bbox'")
        unit, picture = _unit(item.get("bbox_type")), item.get("image", 0)
        several = bool(item["bbox"]) and all(isinstance(one, list) for one in item["bbox"])
        given = item["bbox"] if several else [item["bbox"]]
        boxes.append(tuple(_box(one, unit, picture) for one in given))
    return Objects(tuple(str(item.get("caption", "")) for item in value), tuple(boxes))


def _unit(name: Any) -> Counted:
    unit = UNITS.get(name or "real") if isinstance(name, str | None) else None
    if unit is None:
        raise PromptError(f"'bbox_type' is {name!r}; expected one of {', '.join(UNITS)}")
    return unit


def _box(numbers: Any, unit: Counted, picture: Any) -> ObjectBox:
    fits = isinstance(numbers, list) and len(numbers) in (2, 4)
    if not fits or not all(_is_number(number) for number in numbers):
        raise PromptError(f"a box of 'objects' must be 4 numbers, or 2 for a point, not {numbers!r:.60}")
    if not isinstance(picture, int) or isinstance(picture, bool) or picture < 0:
        raise PromptError(f"the picture of a box must be a number from 0, not {picture!r:.20}")
    return ObjectBox(tuple(map(float, numbers)), unit, picture)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _compare(tag: str, tags: int, given: int) -> None:
    if tags != given:
        raise PromptError(
            f"its texts have {tags} <{tag}> tag{'' if tags == 1 else 's'}, but 'objects' has {given}; "
            "there must be one tag for each"
        )
