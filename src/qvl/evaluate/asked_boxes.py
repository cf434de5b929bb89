"""Boxes that a question itself speaks of: from the pixels of the original picture to those the model sees.

What is asked about a box in training is asked the same way here; data hold original pixels in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qvl.errors import InputError
from qvl.processing.grounding import Frame, rewritten
from qvl.processing.measuring import Measure
from qvl.processing.text.messages import find_media

MARKS = ("bbox_2d", "point_2d", "<|box_start|>")


def speaks_of_boxes(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a text of the conversation, the system prompt apart, holds boxes or points."""
    return any(mark in text for message in messages for text in _texts(message) for mark in MARKS)


def with_resized_boxes(messages: Sequence[Mapping[str, Any]], measure: Measure) -> list[dict[str, Any]]:
    """``messages`` with the numbers of their boxes in pixels of the resized media.

    Raises InputError where several media are scaled differently and a box does not name its picture
    (``"image": 2`` in its object, counted from 1 through the conversation), or lies outside of it.
    """
    media = [measure(item) for item in find_media(messages)]
    frames = [Frame(one.width, one.height, *one.resized) for one in media]
    pictures = [frame for frame, one in zip(frames, media, strict=True) if one.kind == "image"]

    def place(numbers: list[float], picture: int | None) -> Sequence[int] | None:
        if picture is not None and not 1 <= picture <= len(pictures):
            raise InputError(f'a box says "image": {picture}, and there are {len(pictures)} pictures')
        found = set(frames) if picture is None else {pictures[picture - 1]}
        if len(found) > 1:
            raise InputError('a box may lie in several pictures; name it in its object ("image": 1)')
        return found.pop().place(numbers) if found else None

    def changed(message: Mapping[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        if message.get("role") == "system" or not isinstance(content, str | list | tuple):
            return dict(message)
        if isinstance(content, str):
            return {**message, "content": rewritten(content, place)}
        return {**message, "content": [_rewritten(part, place) for part in content]}

    return [changed(message) for message in messages]


def _rewritten(part: Any, place: Any) -> Any:
    if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
        return part
    return {**part, "text": rewritten(part["text"], place)}


def _texts(message: Mapping[str, Any]) -> list[str]:
    content = message.get("content")
    if message.get("role") == "system" or not content:
        return []
    parts = [{"text": content}] if isinstance(content, str) else content
    return [part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
