"""Keeps what people type text: special tokens in a message never become control tokens.

Before a chat template is rendered, every special token in a caller's string is broken by a mark, a character
that occurs nowhere in the call. What the template itself writes stays whole. After rendering, marks tell
typed tokens from real ones; the tokenizer drops them again, so ordinary text has exactly its ordinary ids.

Special tokens are those that the tokenizer declares special (``<|im_end|>``, ``<|image_pad|>``, ...). Added
but ordinary tokens (``<tool_call>``) stay usable in messages: system prompts and replayed answers need them.
This module knows strings; it knows no template and no vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

from qvl.errors import PromptError

PRIVATE_USE = range(0xF0000, 0xFFFFE)  # Unicode plane 15: no character there has a meaning of its own


@dataclass(frozen=True)
class Marks:
    """Four characters absent from the caller's text: ``inert`` breaks a typed special token, ``final`` ends a
    message that is to be continued, ``opening`` and ``closing`` enclose what the assistant wrote."""

    inert: str
    final: str
    opening: str
    closing: str

    @classmethod
    def absent_from(cls, *values: Any) -> Marks:
        """Marks that occur in no string anywhere inside ``values``."""
        used: set[str] = set().union(*(text for text in strings(values) if not text.isascii()))
        free = list(islice((chr(code) for code in PRIVATE_USE if chr(code) not in used), 4))
        if len(free) < 4:
            raise PromptError("The messages use every private-use character of Unicode; remove some")
        return cls(*free)


@dataclass(frozen=True)
class MarkedText:
    """A rendered text with its marks still in it. ``str()`` gives the text as people should see it."""

    marked: str
    marks: Marks

    def __str__(self) -> str:
        marks = self.marks
        return self.marked.translate({ord(m): None for m in (marks.inert, marks.opening, marks.closing)})

    def with_runs(self, token: str, lengths: Iterator[int]) -> MarkedText:
        """Every real ``token`` repeated as often as the next of ``lengths`` says; typed ones stay."""
        return replace(self, marked=repeat_token(self.marked, token, lengths))

    def assistant_spans(self) -> list[tuple[int, int]]:
        """[start, end) in ``str(self)`` of everything inside the template's generation blocks."""
        spans, position, start = [], 0, 0
        opening, closing = self.marks.opening, self.marks.closing
        for part in re.split(f"([{opening}{closing}])", self.marked.replace(self.marks.inert, "")):
            if part == opening:
                start = position
            elif part == closing:
                spans.append((start, position))
            else:
                position += len(part)
        return spans

    def pieces(self, special: re.Pattern[str]) -> Iterator[tuple[str, bool]]:
        """The text in pieces, each with whether it is to be encoded as plain text, blind to special tokens.

        Cuts only at real special tokens, where every tokenizer cuts anyway.
        """
        inert = self.marks.inert
        ordinary = ""
        kept = self.marked.replace(self.marks.opening, "").replace(self.marks.closing, "")
        for part in special.split(kept):
            if inert not in part:
                ordinary += part
                continue
            if ordinary:
                yield ordinary, False
            yield part.replace(inert, ""), True
            ordinary = ""
        if ordinary:
            yield ordinary, False


@dataclass(frozen=True)
class Guard:
    """Breaks ``tokens`` in strings by ``mark``, so that no template can make a token of what was typed."""

    tokens: Sequence[str]
    mark: str

    @cached_property
    def _starts(self) -> re.Pattern[str]:
        return re.compile(f"(?=({token_pattern(self.tokens)}))(.)", re.IGNORECASE | re.DOTALL)

    @cached_property
    def _prefixes(self) -> set[str]:
        return {token[:n].lower() for token in self.tokens for n in range(1, len(token))}

    def protect(self, value: Any) -> Any:
        """A copy of ``value`` with all strings in it guarded, dict keys too; other objects stay.

        Letter case is ignored, since a template may lower it, and so is trailing space, since it may trim it.
        """
        if isinstance(value, str):
            return self._protect_text(value)
        if isinstance(value, Mapping):
            return {self._protect_key(key): self.protect(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.protect(item) for item in value]
        return value

    def _protect_key(self, key: Any) -> Any:
        return self._protect_text(key) if isinstance(key, str) else key

    def _protect_text(self, text: str) -> str:
        if not self.tokens:
            return text
        text = self._starts.sub(lambda found: found[2] + self.mark, text)
        # The rest of a token may stand in the next string: "<|im_" followed by "end|>".
        end = len(text.rstrip())
        longest = max(map(len, self.tokens))
        starts = [i for i in range(max(end - longest, 0), end) if text[i:end].lower() in self._prefixes]
        for start in reversed(starts):
            text = text[: start + 1] + self.mark + text[start + 1 :]
        return text


def token_pattern(tokens: Iterable[str]) -> str:
    """A regular expression for any of ``tokens``, the longest first."""
    return "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))


def repeat_token(text: str, token: str, lengths: Iterator[int]) -> str:
    """``text`` with every ``token`` repeated as often as the next of ``lengths`` says, in linear time."""
    first, *rest = text.split(token)
    return "".join([first, *(token * next(lengths) + part for part in rest)])


def strings(value: Any) -> Iterator[str]:
    """Every string inside nested dicts, lists and tuples."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)
