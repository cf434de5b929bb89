"""What a pipeline is asked: from the many shapes of input that a call takes to requests.

Knows messages, texts and pictures as people hand them over; no model, no tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qvl.errors import InputError, InputTypeError, PromptError
from qvl.processing.media.opening import DEFAULT_LIMITS, load_image

MEDIA_KEYS = ("image", "url", "path", "base64")

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Chat:
    """One conversation; every picture lies in its message."""

    messages: Messages


@dataclass(frozen=True)
class Plain:
    """Ready prompt strings with the pictures their placeholders stand for, in order."""

    texts: tuple[str, ...]
    images: Any = None


Request = Chat | Plain


def requests_of(images: Any, text: Any) -> Request | list[Request] | Iterator[Request]:
    """One request for one prompt, a list for a list of prompts, an iterator for an iterator."""
    if images is None and text is None:
        raise InputError("the pipeline needs text, images or both; neither was given")
    if text is None and not _is_picture(images):
        images, text = None, images  # everything came as the first argument
    if text is None:
        raise InputError("the pipeline needs text beside the images; give text=")
    if isinstance(text, str):
        return Plain((text,), images)
    if isinstance(text, Mapping):
        return _one(text, images)
    if not isinstance(text, (list, tuple)):
        return _each(text, images)
    if not text:
        raise InputError("the list of prompts is empty")
    if isinstance(text[0], Mapping) and ("role" in text[0] or "text" not in text[0]):
        return Chat(with_images(text, images))
    if images is not None and all(isinstance(one, str) for one in text):
        return Plain(tuple(text), images)
    beside = [None] * len(text) if images is None else list(images)
    if len(beside) != len(text):
        raise InputError(
            f"{len(text)} conversations but {len(beside)} entries in images; they must be as many"
        )
    return [_one(one, mine) for one, mine in zip(text, beside, strict=True)]


def _each(items: Any, images: Any) -> Iterator[Request]:
    if not isinstance(items, Iterable):
        raise InputTypeError(
            f"text of type {type(items).__name__} is not read; give strings or conversations"
        )
    if images is not None:
        raise InputError("with an iterator of prompts the images go into the prompts, not beside them")
    return (_one(one, None) for one in items)


def _one(item: Any, images: Any) -> Request:
    if isinstance(item, str):
        return Plain((item,), images)
    if isinstance(item, Mapping) and "text" in item:
        inside = item.get("images", item.get("image"))
        found = requests_of(inside if images is None else images, item["text"])
        if isinstance(found, (Chat, Plain)):
            return found
    elif isinstance(item, (list, tuple)) and item:
        return Chat(with_images(item, images))
    raise InputTypeError(
        "a prompt is a string, a conversation (list of messages) or a dict with 'text' and 'images', "
        f"not {type(item).__name__}: {item!r:.80}"
    )


def _is_picture(images: Any) -> bool:
    """Whether the first argument holds pictures only. A lone string is a prompt, as in transformers."""
    if isinstance(images, (list, tuple)):
        return bool(images) and all(_is_picture(one) for one in images)
    return isinstance(images, (bytes, Path)) or hasattr(images, "shape") or hasattr(images, "getexif")


def with_images(messages: Sequence[Mapping[str, Any]], images: Any) -> Messages:
    """A copy of ``messages`` with ``images`` put, in order, where a picture has no source of its own.

    ``image_url`` entries of the OpenAI format become pictures. Raises PromptError when the numbers differ.
    """
    waiting = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    left = iter(waiting)
    filled = [_filled(message, left) for message in messages]
    spare = len(list(left))
    if spare:
        raise PromptError(
            f"{len(waiting)} images were given, but {spare} of them found no image entry without a source in "
            "the messages; give as many images as the messages have such entries"
        )
    return filled


def _filled(message: Mapping[str, Any], left: Iterator[Any]) -> dict[str, Any]:
    if not (isinstance(message, Mapping) and "role" in message and "content" in message):
        raise PromptError(f"each message needs the keys 'role' and 'content', got {message!r:.80}")
    content = message["content"]
    if not isinstance(content, (list, tuple)):
        return dict(message)
    return {**message, "content": [_entry(e, left) if isinstance(e, Mapping) else e for e in content]}


def _entry(entry: Mapping[str, Any], left: Iterator[Any]) -> dict[str, Any]:
    if entry.get("type") == "image_url":
        source = entry.get("image_url")
        if not (isinstance(source, Mapping) and "url" in source):
            raise PromptError(
                f"an 'image_url' entry needs {{'image_url': {{'url': ...}}}}, got {entry!r:.80}"
            )
        rest = {name: value for name, value in entry.items() if name != "image_url"}
        return {**rest, "type": "image", "image": source["url"]}
    if entry.get("type") != "image" or any(name in entry for name in MEDIA_KEYS):
        return dict(entry)
    for image in left:
        return {**entry, "image": image}
    raise PromptError(
        "the messages have more image entries without a source than images were given; give one for each"
    )


def loaded(images: Any, timeout: float | None) -> list[Any]:
    """A flat list of pictures; sources that are names are opened here, so ``timeout`` reaches them."""
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [picture for one in images for picture in loaded(one, timeout)]
    if isinstance(images, (str, bytes, Path)):
        limits = DEFAULT_LIMITS if timeout is None else replace(DEFAULT_LIMITS, timeout=timeout)
        return [load_image(images, limits=limits)]
    return [images]
