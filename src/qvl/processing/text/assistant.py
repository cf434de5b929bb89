"""Which tokens the assistant wrote: from a rendered template's generation blocks to 0 and 1 per token.

Needs only spans of characters and the offsets of tokens; it knows no template and no vocabulary.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from qvl.processing.features import BatchFeature
from qvl.processing.text.inert import MarkedText


def add_assistant_masks(
    encoded: BatchFeature, texts: Sequence[MarkedText], *, keep_offsets: bool = False
) -> None:
    """Adds ``assistant_masks`` to lists of rows that have an ``offset_mapping``, which goes unless kept."""
    encoded["assistant_masks"] = [
        _mask(offsets, text.assistant_spans())
        for offsets, text in zip(encoded["offset_mapping"], texts, strict=True)
    ]
    if not keep_offsets:
        del encoded["offset_mapping"]


def _mask(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """1 for every token, given by [first, last) in the text, that overlaps one of the ascending ``spans``."""
    ends = [end for _, end in spans]
    nearest = ((bisect_right(ends, first), last) for first, last in offsets)
    return [int(place < len(spans) and last > spans[place][0]) for place, last in nearest]
