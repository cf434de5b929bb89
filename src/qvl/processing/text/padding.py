"""Rows of different lengths made equal: the padding and truncation options that transformers knows.

Works on plain lists by name (``input_ids``, ``attention_mask`` ...); it knows no tokenizer.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qvl.errors import InputError, UnknownNameError

NO_LIMIT = 10**20  # a model_max_length above this means that there is none
PADDING = {True: "longest", "longest": "longest", "max_length": "max_length", False: None, "do_not_pad": None}
TRUNCATION = {
    True: "longest_first",
    "longest_first": "longest_first",
    "only_first": "only_first",
    "only_second": "only_second",
    False: None,
    None: None,
    "do_not_truncate": None,
}


@dataclass(frozen=True)
class RowLayout:
    """How rows are cut and filled. ``padding`` None pads nothing, ``truncation`` None cuts nothing."""

    padding: Literal["longest", "max_length"] | None = None
    truncation: Literal["longest_first", "only_first", "only_second"] | None = None
    max_length: int | None = None
    multiple_of: int | None = None
    side: str = "right"

    @classmethod
    def of(
        cls,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        side: str = "right",
        model_max_length: int | None = None,
    ) -> RowLayout:
        """Reads the documented arguments. ``max_length`` alone means truncation, as in transformers."""
        pads = _choice("padding", padding, PADDING)
        cuts = _choice("truncation", truncation, TRUNCATION)
        if side not in ("left", "right"):
            raise UnknownNameError(f"padding_side must be 'left' or 'right', not {side!r}")
        if max_length is not None and padding is False and truncation is None:
            warnings.warn(
                "max_length without truncation= cuts at max_length; say truncation=True", stacklevel=3
            )
            cuts = "longest_first"
        limited = model_max_length is not None and model_max_length < NO_LIMIT
        if max_length is None and not limited:
            pads, cuts = (None if pads == "max_length" else pads), None
        elif max_length is None:
            max_length = model_max_length
        if pads and cuts and pad_to_multiple_of and max_length and max_length % pad_to_multiple_of:
            raise InputError(
                f"max_length {max_length} must be a multiple of pad_to_multiple_of {pad_to_multiple_of}"
            )
        return cls(pads, cuts, max_length, pad_to_multiple_of, side)  # type: ignore[arg-type]

    def length(self, lengths: list[int]) -> int | None:
        """The length to which rows of these lengths are filled up; None where they stay as they are."""
        if self.padding is None:
            return None
        length = max(lengths, default=0) if self.padding == "longest" else int(self.max_length or 0)
        if self.multiple_of:
            length = -(-length // self.multiple_of) * self.multiple_of
        return length

    def pad(self, rows: Mapping[str, list[Any]], fillers: Mapping[str, Any]) -> dict[str, list[Any]]:
        """``rows`` (name to list of rows) filled up; names without a filler are passed through."""
        length = self.length([len(row) for row in rows["input_ids"]])
        if length is None:
            return dict(rows)
        return {
            name: [self._fill(row, length, fillers[name]) for row in values] if name in fillers else values
            for name, values in rows.items()
        }

    def _fill(self, row: list[Any], length: int, filler: Any) -> list[Any]:
        missing = [filler] * (length - len(row))
        return missing + list(row) if self.side == "left" else list(row) + missing


def lengths_kept(first: int, second: int | None, room: int, strategy: str) -> tuple[int, int]:
    """How many tokens of both sequences stay. "longest_first" shortens the longer one until both are even."""
    other = second or 0
    excess = first + other - room
    if excess <= 0:
        return first, other
    if strategy == "longest_first":
        shorter = min(first, other, room // 2)
        return (shorter, room - shorter) if first <= other else (room - shorter, shorter)
    cut = other if strategy == "only_second" else first
    if excess >= cut:
        raise InputError(
            f"truncation={strategy!r} cannot shorten {cut} tokens by {excess}; use truncation=True"
        )
    return (first, other - excess) if strategy == "only_second" else (first - excess, other)


def _choice(argument: str, value: Any, offered: Mapping[Any, str | None]) -> str | None:
    value = getattr(value, "value", value)  # transformers' enums carry these strings
    if value not in offered:
        raise UnknownNameError(f"{argument} must be one of {list(offered)}, not {value!r}")
    return offered[value]
