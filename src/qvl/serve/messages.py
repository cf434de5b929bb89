"""From the checked messages of a request to what a chat template reads, and to the media in them.

Opens nothing and renders nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qvl.serve.errors import RequestError
from qvl.serve.media.requests import MediaRequest
from qvl.serve.protocol.content import (
    AssistantMessage,
    FilePart,
    ImagePart,
    Message,
    ProcessorOptions,
    RefusalPart,
    TextPart,
    ToolCall,
    VideoPart,
)

# Tokens that a picture may take: `image_url.detail`. "high" leaves it to the checkpoint.
DETAIL_TOKENS: Mapping[str, int | None] = {"low": 256, "auto": 1280, "high": None}
# Of the options of all media, those that a picture or a page reads; a video reads all of them.
PICTURE_OPTIONS = frozenset({"min_pixels", "max_pixels", "resized_height", "resized_width"})
_PDF = "data:application/pdf;base64,"


@dataclass(frozen=True)
class ReadMessages:
    """Messages for the template, and the media in them. Items of kind "file" stand for their pages."""

    messages: list[dict[str, Any]]
    requests: list[MediaRequest]


def read_messages(
    messages: Sequence[Message], options: ProcessorOptions | None = None, places: Sequence[str] = ()
) -> ReadMessages:
    """Messages as a template takes them, and their media in reading order."""
    requests: list[MediaRequest] = []
    found = []
    for number, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        place = places[number] if places else f"messages[{number}]"
        where = f"{place}.content"
        entry: dict[str, Any] = {"role": role, "content": _content(message.content, where, options, requests)}
        if isinstance(message, AssistantMessage) and message.tool_calls:
            entry["tool_calls"] = [
                _call(call, f"{place}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)
            ]
        found.append(entry)
    return ReadMessages(found, requests)


def _content(
    content: Any, where: str, options: ProcessorOptions | None, requests: list[MediaRequest]
) -> str | list[dict[str, Any]]:
    """A text, or the items of a template; the media of the items go to ``requests``."""
    if content is None or isinstance(content, str):
        return content or ""
    items: list[dict[str, Any]] = []
    for number, part in enumerate(content):
        if isinstance(part, TextPart):
            items.append({"type": "text", "text": part.text})
        elif isinstance(part, RefusalPart):
            items.append({"type": "text", "text": part.refusal})
        else:
            request = media_request(part, f"{where}[{number}]", options)
            items.append({"type": request.kind})
            requests.append(request)
    if all(item["type"] == "text" for item in items):
        return "".join(item["text"] for item in items)
    return items


def media_request(
    part: ImagePart | VideoPart | FilePart, where: str, options: ProcessorOptions | None = None
) -> MediaRequest:
    """What a part of a message asks of the media service."""
    given = {} if options is None else options.given()
    if isinstance(part, VideoPart):
        video = part.video_url
        inner = {} if isinstance(video, str) else video.given()
        url = video if isinstance(video, str) else video.url
        return MediaRequest(where, "video", url, given | part.given() | inner)
    given = {name: value for name, value in given.items() if name in PICTURE_OPTIONS} | part.given()
    if isinstance(part, FilePart):
        pages = part.file.pages if part.file.pages is not None else part.pages
        chosen = given | ({} if pages is None else {"pages": pages})
        return MediaRequest(where, "file", _file_url(part, where), chosen, _budget("auto", given))
    image = part.image_url
    if isinstance(image, str):
        return MediaRequest(where, "image", image, given, _budget("auto", given))
    given |= image.given()
    return MediaRequest(where, "image", image.url, given, _budget(image.detail or "auto", given))


def _budget(detail: str, options: Mapping[str, Any]) -> int | None:
    """Sizes that a request names win over ``detail``."""
    return None if PICTURE_OPTIONS & options.keys() else DETAIL_TOKENS[detail]


def _file_url(part: FilePart, where: str) -> str:
    data = part.file.file_data
    if not data:
        raise RequestError(f"{where}.file.file_data is missing: send the PDF as a data URI.", f"{where}.file")
    scheme = data[:8].lower()
    return data if scheme.startswith(("data:", "file:", "http:", "https:")) else _PDF + data


def _call(call: ToolCall, where: str) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        raise RequestError(
            f"{where}.function.arguments is not valid JSON.", f"{where}.function.arguments"
        ) from None
    return {"name": call.function.name, "arguments": arguments}
