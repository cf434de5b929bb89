"""From tokens to text while they come: whole characters, and an end at the first stop text.

Knows byte-level BPE, in which every token is a few bytes of UTF-8; knows nothing of engines and requests.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

# Byte-level BPE (GPT-2) writes a byte as the character of that number where it is visible, and the others,
# in order, as characters from 256 on.
_VISIBLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _VISIBLE]
_BYTE_OF = {chr(byte): byte for byte in _VISIBLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}


class TokenTable:
    """What the tokens of a tokenizer are as bytes, and which of them are special. Looked up once each."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._data: dict[int, bytes] = {}
        added = tokenizer.added_tokens_decoder
        self.special = frozenset(index for index, token in added.items() if token.special)

    def data(self, token: int) -> bytes:
        """The bytes of a token; none for an id that no token has."""
        known = self._data.get(token)
        if known is None:
            known = self._data[token] = _as_bytes(self._tokenizer.convert_ids_to_tokens(token) or "")
        return known


def _as_bytes(text: str) -> bytes:
    try:
        return bytes([_BYTE_OF[character] for character in text])
    except KeyError:  # an added token, which is written as it is
        return text.encode()


class Detokenizer:
    """The text of one answer. What is not UTF-8 becomes U+FFFD; a character that is never finished is left
    out. ``special``: whether special tokens show; ``hidden``: those that do not.
    """

    def __init__(self, table: TokenTable, *, special: bool = False) -> None:
        self._table = table
        self.hidden: frozenset[int] = frozenset() if special else table.special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """The characters that ``token`` completes."""
        return "" if token in self.hidden else self._decoder.decode(self._table.data(token))


class StopTexts:
    """Looks for several texts in one that grows (Knuth, Morris, Pratt: every character is looked at once).

    The one that is complete first counts, of several that end together the longest: how the text is cut into
    tokens makes no difference.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _borders(stop)) for stop in stops if stop]
        self._matched = [0] * len(self._stops)

    def feed(self, text: str) -> tuple[int, str] | None:
        """(characters of ``text`` up to the end of a stop text, the stop text), or None."""
        for i, character in enumerate(text):
            complete = self._step(character)
            if complete:
                return i + 1, complete
        return None

    @property
    def begun(self) -> int:
        """Characters at the end of the text that may become a stop text."""
        return max(self._matched, default=0)

    def _step(self, character: str) -> str:
        complete = ""
        for i, (stop, borders) in enumerate(self._stops):
            length = self._matched[i]
            while length and stop[length] != character:
                length = borders[length - 1]
            length += stop[length] == character
            self._matched[i] = length
            if length == len(stop):
                complete = max(complete, stop, key=len)
                self._matched[i] = borders[length - 1]
        return complete


def _borders(text: str) -> list[int]:
    """For every beginning of ``text``, the longest shorter beginning that it also ends with."""
    borders = [0] * len(text)
    length = 0
    for i in range(1, len(text)):
        while length and text[i] != text[length]:
            length = borders[length - 1]
        length += text[i] == text[length]
        borders[i] = length
    return borders
