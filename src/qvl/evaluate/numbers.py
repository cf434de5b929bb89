"""How right an answer is as a number: within an absolute or a relative tolerance.

Pure functions; scores are 0 or 1, the best over all references.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

ROUNDING = 1e-9  # 2.0 - 1.5 may be a hair more than 0.5
_CLOCK = re.compile(r"(?<![\w:.])(?:(\d+):)?(\d{1,3}):(\d{2}(?:\.\d+)?)(?![\w:])")
_NUMBER = re.compile(
    r"(?:(?<![\w.])[-+−])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+(?!\w))?"
)


def number_in(value: object) -> float | None:
    """The first number in a text, or the number itself; None if there is none.

    Thousands may have commas ("1,250.5"). A time of day is seconds: "01:02.5" is 62.5, "1:00:00" 3600.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    text = str(value)
    number, clock = _NUMBER.search(text), _CLOCK.search(text)
    if clock and (number is None or clock.start() <= number.start()):
        hours, minutes, seconds = clock.groups()
        return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds)
    return float(number[0].replace(",", "").replace("−", "-")) if number else None


def within(answer: str, references: Sequence[object], tolerance: float = 0.0) -> float:
    """1 where the first number of the answer differs from a reference's by at most ``tolerance``."""
    said = number_in(answer)
    if said is None:
        return 0.0
    wanted = (number_in(reference) for reference in references)
    return float(
        any(w is not None and abs(said - w) <= tolerance + ROUNDING * max(1.0, abs(w)) for w in wanted)
    )


def relaxed(answer: str, references: Sequence[object], tolerance: float = 0.05) -> float:
    """Relaxed accuracy of ChartQA: a number within the share ``tolerance`` of the reference, or equal text.

    ChartQA (arXiv 2203.10244), end of section 5.1; read as those who report it do: the whole text must be
    the number ("14", "14%" is 0.14), a reference of 0 must be met as text, and case does not count.
    """
    return float(any(_relaxed(answer.strip(), str(r).strip(), tolerance) for r in references))


def _relaxed(answer: str, reference: str, tolerance: float) -> bool:
    said, wanted = _whole_number(answer), _whole_number(reference)
    if said is not None and wanted:
        return abs(said - wanted) / abs(wanted) <= tolerance
    return answer.lower() == reference.lower()


def _whole_number(text: str) -> float | None:
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
