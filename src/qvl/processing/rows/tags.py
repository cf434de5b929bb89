"""Media of a row put where they belong in its messages: tags in texts, bare parts, and paths made whole.

``<image>`` and ``<video>`` are tags wherever a content is one text. Inside parts, text is text: that is how
a conversation about HTML is written down.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qvl.errors import PromptError
from qvl.processing.text.messages import KINDS, MEDIA_KEYS, SOURCES, find_media
from qvl.types import Modality

TAG = re.compile(r"<(image|video)>")
COLUMNS: tuple[tuple[Modality, tuple[str, str]], ...] = (
    ("image", ("images", "image")),
    ("video", ("videos", "video")),
)
USED = frozenset(name for _, names in COLUMNS for name in names)
LONGEST_PATH = 4096  # a longer text under "image" is base64
NO_PATH = ("http://", "https://", "data:", "file:")

Part = dict[str, Any]


def with_media(
    messages: Sequence[Mapping[str, Any]], row: Mapping[str, Any], root: Path
) -> list[dict[str, Any]]:
    """``messages`` in the documented form: every medium a part of its own, with a path that can be opened.

    ``row``: for its lists of media. ``root``: the folder that relative paths start from. Raises PromptError
    where tags and media do not agree in number, and for parts of a kind that the model has no use for.
    """
    if row.get("audios") or row.get("audio"):
        raise PromptError("it has sound ('audios'), and this model hears nothing")
    waiting = {kind: _listed(kind, names, row) for kind, names in COLUMNS}
    counts = {kind: len(media) for kind, media in waiting.items()}
    places = dict.fromkeys(counts, 0)
    found = []
    for message in messages:
        parts = [_placed(part, waiting, places) for part in _parts(message["content"])]
        whole = [_rooted(part, root) for part in parts]
        plain = isinstance(message["content"], str) and all(part["type"] == "text" for part in parts)
        found.append({**message, "content": message["content"] if plain else whole})
    for kind, count in counts.items():
        if places[kind] != count:
            noun = f"{kind}{'' if count == 1 else 's'}"
            raise PromptError(
                f"its texts have {places[kind]} <{kind}> tag{'' if places[kind] == 1 else 's'}, but it lists "
                f"{count} {noun}; there must be one tag for each"
            )
    find_media(found)
    return found


def _listed(kind: Modality, names: tuple[str, str], row: Mapping[str, Any]) -> list[Any]:
    """The media that a row lists beside its messages."""
    given = [name for name in names if row.get(name) not in (None, [], "")]
    if len(given) > 1:
        raise PromptError(f"it has both '{names[0]}' and '{names[1]}'; leave one of them")
    if not given:
        return []
    value = row[given[0]]
    media = value if isinstance(value, list) else [value]
    for medium in media:
        frames = kind == "video" and isinstance(medium, list) and all(isinstance(f, str) for f in medium)
        if not isinstance(medium, str | Mapping) and not frames:
            raise PromptError(f"'{given[0]}' must hold paths, not {medium!r:.60}")
    return list(reversed(media))


def _parts(content: Any) -> Iterator[Part]:
    """The parts of a content; a text is split at its tags."""
    if not isinstance(content, str):
        yield from map(dict, content)
        return
    position = 0
    for tag in TAG.finditer(content):
        if text := content[position : tag.start()]:
            yield {"type": "text", "text": text}
        yield {"type": tag[1], "tag": True}
        position = tag.end()
    if text := content[position:]:
        yield {"type": "text", "text": text}


def _placed(part: Part, waiting: dict[Modality, list[Any]], places: dict[Modality, int]) -> Part:
    """The part with its medium: the next of the row's list where it has none itself."""
    if "type" not in part:
        part = {"type": next((name for name in KINDS if name in part), "text"), **part}
    tagged = part.pop("tag", False)
    if part["type"] == "text":
        if not isinstance(part.get("text"), str):
            raise PromptError("a part of type 'text' has no text")
        return part
    kind = KINDS.get(part["type"])
    if kind is None:
        raise PromptError(
            f"a part is of type {part['type']!r}; expected 'text', {', '.join(map(repr, KINDS))}"
        )
    if not tagged and any(part.get(key) is not None for key in SOURCES[kind]):
        return part
    places[kind] += 1
    if not waiting[kind]:
        return part  # the numbers are compared at the end
    medium = waiting[kind].pop()
    return {**part, **_described(kind, medium)}


def _described(kind: Modality, medium: Any) -> Part:
    if not isinstance(medium, Mapping):
        return {kind: medium}
    given = {key: value for key, value in medium.items() if value is not None}  # {"bytes": null, "path": ...}
    if not MEDIA_KEYS & given.keys():
        raise PromptError(
            f"a medium that the row lists has none of {', '.join(SOURCES[kind])}: {given!r:.60}"
        )
    return given


def _rooted(part: Part, root: Path) -> Part:
    """The part with relative paths made to start at ``root``."""
    if part["type"] == "text":
        return part
    kind = KINDS[part["type"]]
    key = next((key for key in SOURCES[kind] if part.get(key) is not None), None)
    if key is None or key == "base64":
        return part
    source = part[key]
    if isinstance(source, list):
        return {**part, key: [_path(frame, root) if isinstance(frame, str) else frame for frame in source]}
    return {**part, key: _path(source, root)} if isinstance(source, str) else part


def _path(source: str, root: Path) -> str:
    outside = source.lower().startswith(NO_PATH) or len(source) > LONGEST_PATH or source.startswith("~")
    return source if outside or os.path.isabs(source) else str(root / source)
