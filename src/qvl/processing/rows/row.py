"""One row of a file as a conversation in the documented chat format, with all else that the row says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvl.errors import InputError, PromptError, RowError
from qvl.processing.rows.files import RowFile
from qvl.processing.rows.forms import messages_of
from qvl.processing.rows.objects import Objects, objects_of
from qvl.processing.rows.tags import USED, with_media
from qvl.processing.text.chat import check_conversation


@dataclass(frozen=True)
class Row:
    """A conversation out of a file.

    ``line``: where it begins in its file, from 1. ``messages``: roles system, user, assistant and tool;
    media are parts with paths that can be opened; calls of tools are ``{"name", "arguments"}``. ``extras``:
    every key of the row that the conversation was not made of. ``tools``: schemas, or None. ``objects``: what
    stands for ``<ref-object>`` and ``<bbox>`` in the texts, where the row brings that (see `rows.objects`).
    """

    line: int
    messages: list[dict[str, Any]]
    extras: Mapping[str, Any] = field(default_factory=dict)
    tools: list[Any] | None = None
    objects: Objects | None = None


def read_rows(path: str | Path, media_root: str | Path | None = None) -> Iterator[Row]:
    """All rows of a file in order; raises RowError at the first that is none, InputError for no file.

    ``media_root``: where relative paths of media start; None: the folder of the file.
    """
    for row in each_row(path, media_root):
        if isinstance(row, RowError):
            raise row
        yield row


def each_row(path: str | Path, media_root: str | Path | None = None) -> Iterator[Row | RowError]:
    """As `read_rows`, with a bad row's error in its place instead of raised."""
    file = path if isinstance(path, RowFile) else RowFile(path)
    for index, raw in enumerate(file.raws()):
        try:
            yield parse_row(file, index, raw, media_root)
        except RowError as error:
            yield error


def parse_row(
    file: RowFile, index: int, raw: bytes | None = None, media_root: str | Path | None = None
) -> Row:
    """The ``index``-th row of a file; ``raw``: its bytes, where they are read already. Raises RowError."""
    value = file.parsed(index, file.raw(index) if raw is None else raw)
    line = file.line(index)
    try:
        return row_of(value, line, file.path.parent if media_root is None else Path(media_root))
    except RowError:
        raise
    except InputError as error:
        raise file.error(line, str(error)) from None


def row_of(value: Any, line: int, root: Path) -> Row:
    """The row that a JSON value means. Raises PromptError, in words about the row."""
    if not isinstance(value, Mapping):
        raise PromptError(f"a row must be a JSON object, not {_kind(value)}")
    messages, used = messages_of(value)
    messages = with_media(messages, value, root)
    check_conversation(messages)
    left_out = used | USED | {"tools", "objects", "audios", "audio"}
    extras = {key: item for key, item in value.items() if key not in left_out}
    return Row(line, messages, extras, _tools(value.get("tools")), objects_of(value.get("objects"), messages))


def _tools(value: Any) -> list[Any] | None:
    """Schemas, which some write as a JSON text."""
    if value in (None, "", []):
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise PromptError("'tools' is a text that is no JSON") from None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise PromptError("'tools' must be a list of schemas")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in value] or None


def _kind(value: Any) -> str:
    names: dict[type, str] = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
