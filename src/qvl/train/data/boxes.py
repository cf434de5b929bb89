"""Boxes and points in a row's texts, from what its file counts in to the pixels that the model sees.

Which picture a box lies in must be certain. It is the one that its JSON object names (``"image": 2``, counted
from 1 through the row), else the one before it: the pictures and videos of the same message that stand
before it, or, where there are none, those of the last message that has any. Where they are several that are
scaled differently, a box that names none makes the row bad. What the system message says is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qvl.errors import InputError, PromptError
from qvl.processing.grounding import Frame, rewritten
from qvl.processing.measuring import Measured
from qvl.processing.rows import Row
from qvl.processing.rows.objects import ObjectBox, placed
from qvl.processing.text.messages import KINDS
from qvl.train.data.settings import Boxes, DataSettings

MARKS = ("bbox_2d", "point_2d", "<|box_start|>")


def has_boxes(row: Row) -> bool:
    """Whether anything in the row's texts may have to be written anew."""
    return row.objects is not None or any(
        mark in text for message in row.messages for text in _texts(message["content"]) for mark in MARKS
    )


def with_boxes(
    row: Row, media: Sequence[Measured], usual: Sequence[Measured], settings: DataSettings
) -> list[dict[str, Any]]:
    """The row's messages with all numbers in pixels of what the model sees.

    ``media``: of the row in reading order, as they will be; ``usual``: as they would be if nothing were
    shrunk, which is what "resized" pixels count. Raises PromptError for boxes that cannot be placed.
    """
    frames = [_frame(settings.boxes, one, other) for one, other in zip(usual, media, strict=True)]
    pictures = [number for number, one in enumerate(media) if one.kind == "image"]
    messages = list(_mapped(row.messages, frames, pictures))
    if row.objects is None:
        return messages

    def numbers(box: ObjectBox) -> Sequence[float]:
        if box.picture >= len(pictures):
            raise PromptError(
                f"a box of 'objects' lies in picture {box.picture}, and there are {len(pictures)} (from 0)"
            )
        one = media[pictures[box.picture]]
        sizes = {"pixels": (one.width, one.height), "thousandths": (1000, 1000), "fractions": (1, 1)}
        return _placed(Frame(*sizes[box.unit], *one.resized), box.numbers)

    return placed(messages, row.objects, numbers, settings.objects_as)


def _frame(boxes: Boxes, usual: Measured, media: Measured) -> Frame:
    sizes = {
        "original": (usual.width, usual.height),
        "resized": usual.resized,
        "thousandths": (1000, 1000),
    }
    return Frame(*sizes[boxes], *media.resized)


def _mapped(
    messages: Sequence[Mapping[str, Any]], frames: Sequence[Frame], pictures: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """The messages with the boxes in their texts in pixels of what the model sees."""
    before: list[int] = []  # media of the last message that has any
    count = 0
    for number, message in enumerate(messages, start=1):
        if message["role"] == "system":
            count += sum(part["type"] in KINDS for part in _parts(message["content"]))
            yield dict(message)
            continue
        own: list[int] = []
        parts = []
        for part in _parts(message["content"]):
            if part["type"] in KINDS:
                own.append(count)
                count += 1
            else:
                text = _mapped_text(part["text"], own or before, frames, pictures, number)
                part = {**part, "text": text}
            parts.append(part)
        before = own or before
        plain = isinstance(message["content"], str)
        yield {**message, "content": parts[0]["text"] if plain else parts}


def _mapped_text(
    text: str, candidates: Sequence[int], frames: Sequence[Frame], pictures: Sequence[int], number: int
) -> str:
    def place(numbers: list[float], picture: int | None) -> Sequence[int] | None:
        if picture is not None:
            if not 1 <= picture <= len(pictures):
                raise PromptError(
                    f'a box in message {number} says "image": {picture}, and the row has '
                    f"{len(pictures)} pictures (counted from 1)"
                )
            found = {frames[pictures[picture - 1]]}
        else:
            found = {frames[index] for index in candidates}
        if not found:
            if frames:
                raise PromptError(f"a box in message {number} stands before any picture")
            return None
        if len(found) > 1 and not all(frame.same for frame in found):
            raise PromptError(
                f"a box in message {number} may lie in any of {len(candidates)} pictures that are scaled "
                'differently; name its picture in its object ("image": 1 for the first)'
            )
        if len(found) > 1:
            return None
        return _placed(found.pop(), numbers)

    try:
        return rewritten(text, place)
    except PromptError:
        raise
    except InputError as error:
        raise PromptError(f"in message {number} {error}") from None


def _placed(frame: Frame, numbers: Sequence[float]) -> list[int]:
    try:
        return frame.place(numbers)
    except InputError as error:
        raise PromptError(
            f"a box is not in its picture: {error}; say what the numbers count with --boxes"
        ) from None


def _parts(content: Any) -> Sequence[Mapping[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _texts(content: Any) -> Iterator[str]:
    yield from (part["text"] for part in _parts(content) if part["type"] == "text")
