"""Finds the calls of tools in an answer, whole or while it grows.

A call is ``<tool_call>``, a JSON object with ``name`` and ``arguments``, ``</tool_call>``. What looks like
one and is none (broken JSON, a tool that nobody declared) is text like any other.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from qvl.processing.text.tooltext import CLOSE, OPEN

# The beginning of a call in the order in which Qwen2.5 was trained to write it, up to the arguments' brace.
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')


@dataclass(frozen=True)
class CallDelta:
    """A part of call number ``index``: ``id`` and ``name`` come first, once, ``arguments`` piece by piece."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


Part = str | CallDelta


class ToolCallReader:
    """``names``: of the tools that may be called. ``live``: arguments are handed out while they come, before
    anybody can know whether they are whole; without it a call is handed out when it is complete and valid."""

    def __init__(self, names: Collection[str], *, live: bool) -> None:
        self._names = names
        self._live = live
        self._text = ""  # not decided yet
        self._inside = False  # behind an opening tag
        self._arguments: _Arguments | None = None  # that are being handed out
        self.calls = 0

    def feed(self, text: str) -> list[Part]:
        """What ``text`` adds. Text is held back only while it may become a tag, or is one."""
        self._text += text
        parts: list[Part] = []
        while self._step(parts):
            pass
        return parts

    def end(self) -> list[Part]:
        """What is left, now that nothing follows: a complete call counts without its closing tag."""
        parts: list[Part] = []
        text, self._text = self._text, ""
        if self._arguments is not None:
            return parts
        if self._inside:
            call = self._whole(text)
            return [OPEN + text] if call is None else [call]
        if text.strip() or (text and not self.calls):
            parts.append(text)
        return parts

    def _step(self, parts: list[Part]) -> bool:
        """Whether more can be decided."""
        if self._arguments is not None:
            return self._continue_call(self._arguments, parts)
        return self._in_call(parts) if self._inside else self._outside(parts)

    def _outside(self, parts: list[Part]) -> bool:
        before, tag, behind = self._text.partition(OPEN)
        if tag:
            self._say(before.rstrip(), parts)
            self._text, self._inside = behind, True
            return True
        kept = len(before) - _begun(before, OPEN)
        kept = len(before[:kept].rstrip())  # space before a call belongs to the call
        self._say(before[:kept], parts)
        self._text = before[kept:]
        return False

    def _in_call(self, parts: list[Part]) -> bool:
        if self._live and (head := _HEAD.match(self._text)):
            name = _name(head[1])
            if name in self._names:
                parts.append(self._announce(name))
                self._text = self._text[head.end() :]
                self._arguments = _Arguments(self.calls - 1)
                return True
        block, tag, behind = self._text.partition(CLOSE)
        if not tag:
            return False
        call = self._whole(block)
        parts.append(OPEN + block + CLOSE if call is None else call)
        self._text, self._inside = behind, False
        return True

    def _continue_call(self, arguments: _Arguments, parts: list[Part]) -> bool:
        taken = arguments.take(self._text)
        if taken:
            parts.append(CallDelta(arguments.index, self._text[:taken]))
        self._text = self._text[taken:]
        _, tag, behind = self._text.partition(CLOSE)
        if not tag:
            return False
        self._text, self._inside, self._arguments = behind, False, None
        return True

    def _announce(self, name: str, arguments: str = "") -> CallDelta:
        self.calls += 1
        return CallDelta(self.calls - 1, arguments, f"call_{secrets.token_hex(12)}", name)

    def _whole(self, block: str) -> CallDelta | None:
        try:
            said = json.loads(block)
        except (ValueError, RecursionError):
            return None
        if not isinstance(said, dict) or said.get("name") not in self._names:
            return None
        arguments = said.get("arguments", {})
        if not isinstance(arguments, dict):
            return None
        return self._announce(said["name"], _as_written(block) or json.dumps(arguments, ensure_ascii=False))

    def _say(self, text: str, parts: list[Part]) -> None:
        if text:
            parts.append(text)


class _Arguments:
    """Follows a JSON object to its end."""

    def __init__(self, index: int) -> None:
        self.index = index
        self._depth = 0
        self._in_string = self._escaped = self._complete = False

    def take(self, text: str) -> int:
        """How many characters of ``text`` belong to the object; where it breaks off before a closing tag,
        those before the tag."""
        if self._complete:
            return 0
        for place, character in enumerate(text):
            if self._in_string:
                self._in_string = self._escaped or character != '"'
                self._escaped = not self._escaped and character == "\\"
                continue
            if character == "<" and (text.startswith(CLOSE, place) or CLOSE.startswith(text[place:])):
                return place
            self._in_string = character == '"'
            self._depth += (character in "{[") - (character in "}]")
            if self._depth <= 0:
                self._complete = True
                return place + 1
        return len(text)


def read_calls(text: str, names: Collection[str]) -> tuple[str, list[CallDelta]]:
    """The text of a whole answer, and its calls."""
    reader = ToolCallReader(names, live=False)
    parts: Sequence[Part] = [*reader.feed(text), *reader.end()]
    said = "".join(part for part in parts if isinstance(part, str))
    return said, [part for part in parts if isinstance(part, CallDelta)]


def _begun(text: str, tag: str) -> int:
    """How many characters at the end of ``text`` may become ``tag``."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-n:])), 0)


def _as_written(block: str) -> str | None:
    """The arguments' own text, so that it is the same whole and in a stream."""
    head = _HEAD.match(block)
    if head is None:
        return None
    _, end = json.JSONDecoder().raw_decode(block, head.end())
    return block[head.end() : end]


def _name(quoted: str) -> str:
    try:
        return str(json.loads(quoted))
    except ValueError:
        return ""
