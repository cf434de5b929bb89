"""The metrics by name, each with its settings: from an answer and its references to a score from 0 to 1.

What each of them computes stands in `texts`, `numbers` and `boxes`; this module only knows what they are
called, what may be set, and what they read of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from qvl.errors import InputError, UnknownNameError
from qvl.evaluate import boxes, numbers, texts
from qvl.processing.grounding import Box, ground
from qvl.types import Grid


@dataclass(frozen=True)
class Picture:
    """The picture that an answer's boxes lie in: its size in pixels, and what the processor made of it."""

    width: int
    height: int
    grid: Grid
    patch_size: int = 14


@dataclass(frozen=True)
class Answer:
    """What a model said: ``text`` without special tokens, ``raw`` with them (boxes may stand between)."""

    text: str
    raw: str = ""
    picture: Picture | None = None


@dataclass(frozen=True)
class Score:
    """``value``: from 0 to 1. ``details``: other figures of the row, whose means a report shows."""

    value: float
    details: Mapping[str, float] = field(default_factory=dict)


Judge = Callable[..., Score]


@dataclass(frozen=True)
class Metric:
    """``judge``: of (answer, references, **settings). ``settings``: the names that it takes, with defaults.

    ``places``: whether it looks for boxes or points, so that it must know the picture.
    """

    name: str
    about: str
    judge: Judge
    settings: Mapping[str, Any] = field(default_factory=dict)
    places: bool = False
    check: Callable[[Sequence[Any], Mapping[str, Any]], object] | None = None


def _of_text(function: Callable[..., float]) -> Judge:
    """A metric that reads an answer's text, and references as texts."""
    return lambda answer, references, **settings: Score(
        function(answer.text, [str(reference) for reference in references], **settings)
    )


def _iou(
    answer: Answer,
    references: Sequence[Any],
    threshold: float = 0.5,
    form: str = "xyxy",
    labels: bool = False,
) -> Score:
    wanted = boxes.reference_boxes(references, form)
    said = [shape for shape in _shapes(answer) if isinstance(shape, Box)]
    found = boxes.matched(said, wanted, threshold, labels)
    details = {"precision": found.precision, "recall": found.recall, "mean IoU": found.iou}
    return Score(found.f1, details)


def _point(answer: Answer, references: Sequence[Any], form: str = "xyxy") -> Score:
    return Score(boxes.pointed(_shapes(answer), boxes.reference_boxes(references, form)))


def _shapes(answer: Answer) -> Sequence[Any]:
    """In pixels of the original picture."""
    picture = answer.picture
    if picture is None:
        raise InputError("boxes need the picture that they lie in, and there is none")
    return ground(answer.raw or answer.text, picture.grid, picture.width, picture.height, picture.patch_size)


def _check_boxes(references: Sequence[Any], settings: Mapping[str, Any]) -> None:
    boxes.reference_boxes(references, settings.get("form", "xyxy"))


def _check_numbers(references: Sequence[Any], settings: Mapping[str, Any]) -> None:
    if wrong := [reference for reference in references if numbers.number_in(reference) is None]:
        raise InputError(f"the metric number needs numbers to compare with, not {wrong[0]!r:.80}")
    if not isinstance(settings.get("tolerance", 0.0), int | float) or settings.get("tolerance", 0.0) < 0:
        raise InputError(f"tolerance must be a number of at least 0, not {settings['tolerance']!r}")


def _check_ignored(references: Sequence[Any], settings: Mapping[str, Any]) -> None:
    ignore = settings.get("ignore", ())
    if isinstance(ignore, str) or not set(ignore) <= set(texts.IGNORABLE):
        raise InputError(f"ignore is a list of {', '.join(texts.IGNORABLE)}, not {ignore!r}")


def _check_letters(references: Sequence[Any], settings: Mapping[str, Any]) -> None:
    choices = settings.get("choices", ())
    if wrong := [one for one in references if texts.letter_of(str(one), choices) is None]:
        raise InputError(f"the metric choice needs a letter or the text of a choice, not {wrong[0]!r:.80}")


UNSCORED = "none"
"""Asked and not scored: for test sets whose answers are kept back."""

_TABLE = (
    Metric("exact", "equal text", _of_text(texts.exact), {"ignore": ()}, check=_check_ignored),
    Metric(
        "match",
        "equal text; case, spaces and a final full stop do not count",
        _of_text(lambda answer, references: texts.exact(answer, references, texts.IGNORABLE)),
    ),
    Metric("contains", "a reference stands in the answer", _of_text(texts.contains)),
    Metric("anls", "nearly equal text (DocVQA)", _of_text(texts.anls), {"threshold": 0.5}),
    Metric(
        "relaxed",
        "a number within 5 %, else equal text (ChartQA)",
        _of_text(numbers.relaxed),
        {"tolerance": 0.05},
    ),
    Metric(
        "number",
        "a number within a tolerance",
        _of_text(numbers.within),
        {"tolerance": 0.0},
        check=_check_numbers,
    ),
    Metric("vqa", "what at least 3 of 10 people say (VQAv2, TextVQA)", _of_text(texts.vqa)),
    Metric(
        "choice",
        "the letter of a choice (MMBench, MMMU)",
        _of_text(texts.choice),
        {"choices": ()},
        check=_check_letters,
    ),
    Metric(
        "iou",
        "boxes that overlap",
        _iou,
        {"threshold": 0.5, "form": "xyxy", "labels": False},
        places=True,
        check=_check_boxes,
    ),
    Metric(UNSCORED, "nothing is compared", lambda answer, references: Score(0.0)),
    Metric(
        "point",
        "a point inside a box (ScreenSpot)",
        _point,
        {"form": "xyxy"},
        places=True,
        check=_check_boxes,
    ),
)
METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _TABLE})
"""Every metric by its name."""


@dataclass(frozen=True)
class Scoring:
    """A metric with its settings: how one row is scored."""

    metric: Metric
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The metric's name with the settings that are not its defaults, for tables."""
        shown = {n: v for n, v in self.settings.items() if v != self.metric.settings[n] and n != "choices"}
        told = ", ".join(f"{n} {'+'.join(v) if isinstance(v, list | tuple) else v}" for n, v in shown.items())
        return f"{self.metric.name} ({told})" if told else self.metric.name

    def score(self, answer: Answer, references: Sequence[Any]) -> Score:
        return self.metric.judge(answer, references, **self.settings)

    def check(self, references: Sequence[Any]) -> None:
        """Raises InputError where the references are nothing that the metric can compare with."""
        if self.metric.name == UNSCORED:
            return
        if not references:
            raise InputError("it has no answer to compare with; the metric none asks without comparing")
        if self.metric.check is not None:
            self.metric.check(references, self.settings)


def scoring(metric: str | Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Scoring:
    """A metric by name, or by a mapping with its ``name`` and settings.

    ``defaults``: settings for whatever metric takes them. Raises UnknownNameError for an unknown metric,
    InputError for a setting that it lacks.
    """
    given = {"name": metric} if isinstance(metric, str) else dict(metric)
    name = given.pop("name", "")
    if not isinstance(name, str) or name not in METRICS:
        raise UnknownNameError(f"there is no metric {name!r}; there are {', '.join(METRICS)}")
    found = METRICS[name]
    if unknown := sorted(given.keys() - found.settings.keys()):
        known = ", ".join(found.settings) or "none"
        raise InputError(f"the metric {name} has no setting {unknown[0]}; it has {known}")
    taken = {key: value for key, value in (defaults or {}).items() if key in found.settings}
    return Scoring(found, taken | given)
