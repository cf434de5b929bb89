"""Placeholders in prompt texts: repeated to the length of their media, counted, checked after tokenizing.

Knows texts and counts; where media stand among token ids is for positions.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from qvl.errors import PlaceholderMismatchError
from qvl.processing.text.inert import MarkedText, repeat_token
from qvl.types import Modality

# In mm_token_type_ids; text is 0.
TOKEN_TYPES: Mapping[Modality, int] = MappingProxyType({"image": 1, "video": 2})


def expanded(texts: Sequence[Any], kind: Modality, token: str, lengths: Sequence[int]) -> list[Any]:
    """``texts`` with the i-th ``token`` of them all repeated ``lengths[i]`` times, in linear time.

    Lists of words cannot hold media and pass through. Raises PlaceholderMismatchError, with both counts.
    """
    found = sum(_source(text).count(token) for text in texts)
    if found != len(lengths):
        raise PlaceholderMismatchError(
            f"The text has {found} {token} placeholder(s), but {len(lengths)} {kind}(s) were given: "
            f"give one {kind} for each placeholder"
        )
    runs = iter(lengths)
    return [
        text.with_runs(token, runs)
        if isinstance(text, MarkedText)
        else repeat_token(text, token, runs)
        if isinstance(text, str)
        else text
        for text in texts
    ]


def check_each(texts: Sequence[Any], kind: Modality, token: str, counts: Sequence[int]) -> None:
    """PlaceholderMismatchError unless text i has ``counts[i]`` tokens: for media that come in one list per
    text, where equal sums could hide a medium in the wrong text.
    """
    for index, (text, count) in enumerate(zip(texts, counts, strict=True)):
        if (found := _source(text).count(token)) != count:
            raise PlaceholderMismatchError(
                f"Text {index} has {found} {token} placeholder(s), but its list holds {count} {kind}(s): "
                f"give one {kind} for each placeholder, or one flat list for all texts"
            )


def check_kept(rows: Sequence[Sequence[int]], kind: Modality, token_id: int, expected: int) -> None:
    """PlaceholderMismatchError unless all ``expected`` placeholder tokens came through tokenizing."""
    found = sum(list(row).count(token_id) for row in rows)
    if found != expected:
        raise PlaceholderMismatchError(
            f"After tokenizing there are {found} {kind} tokens where the {kind}s take {expected}: "
            "truncation cut into a medium; raise max_length, or use smaller media (max_pixels)"
        )


def token_types(row: Sequence[int], ids: Mapping[Modality, int]) -> list[int]:
    """For every token of a row 0 (text) or the number of its kind in TOKEN_TYPES."""
    number = {ids[kind]: value for kind, value in TOKEN_TYPES.items()}
    return [number.get(index, 0) for index in row]


def _source(text: Any) -> str:
    """Where placeholders are looked for: typed ones are broken by marks there."""
    return text.marked if isinstance(text, MarkedText) else text if isinstance(text, str) else ""
