"""Media inside messages: finds them, with what a message says about each, and hides them from the template.

Knows the forms of content items (those of the documentation page, of qwen-vl-utils and of OpenAI's API); it
opens nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from qvl.errors import PromptError
from qvl.types import Modality

# Under which key an item holds its medium, the first that is there.
SOURCES: Mapping[Modality, tuple[str, ...]] = MappingProxyType(
    {"image": ("image", "url", "path", "base64", "image_url"), "video": ("video", "url", "path", "video_url")}
)
KINDS: Mapping[str, Modality] = MappingProxyType(
    {"image": "image", "image_url": "image", "video": "video", "video_url": "video"}
)
MEDIA_KEYS = frozenset(key for keys in SOURCES.values() for key in keys)
ALIASES = MappingProxyType({"nframes": "num_frames"})  # qwen-vl-utils' word


@dataclass(frozen=True)
class MediaItem:
    """One medium of a message: its source (path, URL, object ...) and what the item says besides."""

    kind: Modality
    source: Any
    settings: Mapping[str, Any] = field(default_factory=dict)

    def overrides(self, names: Sequence[str]) -> dict[str, Any]:
        """The item's settings among ``names``; others (``detail`` ...) mean nothing here."""
        return {name: value for name, value in self.settings.items() if name in names and value is not None}


def find_media(conversation: Sequence[Mapping[str, Any]]) -> list[MediaItem]:
    """All media that come with a source, in reading order. An item without one is only a placeholder."""
    return [found for item in _items(conversation) if (found := _medium(item)) is not None]


def without_sources(conversation: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation for a template: media items keep their keys, but not their content.

    So a template that asks ``'image' in item`` still works, and megabytes of base64 are never rendered.
    """
    return [
        {**message, "content": [_bare(item) for item in message["content"]]}
        if _has_items(message)
        else dict(message)
        for message in conversation
    ]


def _items(conversation: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for message in conversation:
        if _has_items(message):
            yield from message["content"]


def _has_items(message: Mapping[str, Any]) -> bool:
    return isinstance(message.get("content"), list | tuple)


def _kind(item: Mapping[str, Any]) -> Modality | None:
    if "type" in item:
        return KINDS.get(item["type"])
    return next((kind for name, kind in KINDS.items() if name in item), None)


def _medium(item: Mapping[str, Any]) -> MediaItem | None:
    kind = _kind(item)
    if kind is None and item.get("type") != "text" and any(key in item for key in MEDIA_KEYS):
        raise PromptError(
            f"A message holds an item of type {item.get('type')!r} with a source; expected "
            f"{', '.join(map(repr, KINDS))} or 'text'"
        )
    key = next((key for key in SOURCES[kind] if item.get(key) is not None), None) if kind else None
    if kind is None or key is None:
        return None
    source = item[key]
    if isinstance(source, Mapping):  # OpenAI's {"image_url": {"url": ...}}
        if not isinstance(source.get("url"), str):
            raise PromptError(f"{key} must be a URL or {{'url': '...'}}, not {source!r:.80}")
        source = source["url"]
    if isinstance(source, list | tuple) and not source:
        raise PromptError(f"The {kind} of a message is an empty list; a video has at least one frame")
    settings = {ALIASES.get(name, name): value for name, value in item.items() if name not in SOURCES[kind]}
    return MediaItem(kind, source, settings)


def _bare(item: Mapping[str, Any]) -> dict[str, Any]:
    kind = _kind(item)
    if kind is None:
        return dict(item)
    return {**{name: "" if name in SOURCES[kind] else value for name, value in item.items()}, "type": kind}
