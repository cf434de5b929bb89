"""A row of data as a question with its right answers: what is asked, what is compared, and how.

Rows come from files or from memory. It knows no model, and opens no medium.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from qvl.errors import InputError, InputTypeError
from qvl.evaluate.metrics import METRICS, Scoring, scoring
from qvl.processing.grounding import Box, find_shapes

REFERENCE_KEYS = ("expected", "answers", "answer", "target")
"""Where a row may keep what is right; the first that is there counts, before the assistant's last turn."""
SETTING_KEYS = tuple(dict.fromkeys(name for metric in METRICS.values() for name in metric.settings))
"""Settings of metrics that a row may hold beside its ``metric``."""


@dataclass(frozen=True, eq=False)
class Question:
    """``messages``: the conversation up to the answer. ``references``: all answers that are right.

    ``name``: where it came from ("test.jsonl:12"); ``key``: what its own data set calls it. ``picture``:
    which of several pictures boxes lie in.
    """

    name: str
    messages: Sequence[Mapping[str, Any]]
    references: tuple[Any, ...]
    scoring: Scoring
    task: str = ""
    tools: Sequence[Any] | None = None
    picture: int | None = None
    key: Any = None

    @property
    def digest(self) -> str:
        """The same for the same question, references and metric; of media only how they are named."""
        named = [self.messages, self.references, self.scoring.name, self.tools, self.picture]
        text = json.dumps(named, sort_keys=True, default=lambda value: type(value).__name__)
        return blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Asking:
    """What holds for rows that do not say it themselves.

    ``metric``: a name or a mapping (see `metrics.scoring`); None: ``iou`` where the right answer is JSON with
    ``bbox_2d``, else ``exact``. ``metrics``: by task. ``settings``: of the metrics that take them. ``task``:
    of rows without one. ``system``: a system prompt for conversations that have none.
    """

    metric: str | Mapping[str, Any] | None = None
    metrics: Mapping[str, str | Mapping[str, Any]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    task: str = ""
    system: str | None = None

    def __post_init__(self) -> None:
        for metric in (self.metric, *self.metrics.values()):
            if metric is not None:
                scoring(metric, self.settings)


def question_of(row: Any, name: str, asking: Asking) -> Question:
    """The question of a row: a mapping with ``messages``, or an object with ``messages`` and ``extras``.

    Beside the messages a row may have ``task``, ``metric``, ``tools``, ``picture``, one of `REFERENCE_KEYS`
    and any of `SETTING_KEYS`. Without a key of those the last turn, if it is the assistant's, is the right
    answer. Raises InputError for a row that lacks what its metric needs.
    """
    if getattr(row, "objects", None) is not None:
        raise InputError(
            "it has boxes under 'objects'; qvl eval reads boxes as JSON with bbox_2d in the texts"
        )
    messages, values, tools = _parts(row)
    messages, last = _without_answer(messages)
    given = next((values[key] for key in REFERENCE_KEYS if values.get(key) is not None), last)
    task = str(values.get("task") or asking.task)
    metric = values.get("metric") or asking.metrics.get(task) or asking.metric
    metric = metric or values.get("form_metric") or _guessed(given)
    own = {key: values[key] for key in SETTING_KEYS if values.get(key) is not None}
    found = scoring(metric, {**asking.settings, **own})
    if isinstance(given, list | tuple) and not found.metric.places:
        references = tuple(given)
    else:
        references = () if given is None else (given,)
    found.check(references)
    picture = values.get("picture")
    if picture is not None and (not isinstance(picture, int) or isinstance(picture, bool)):
        raise InputError(f"picture is the number of the picture that boxes lie in, from 0, not {picture!r}")
    if asking.system is not None and messages[0].get("role") != "system":
        messages = [{"role": "system", "content": asking.system}, *messages]
    return Question(
        name, messages, references, found, task, tools, picture, values.get("key", values.get("id"))
    )


def _parts(row: Any) -> tuple[list[Any], Mapping[str, Any], Sequence[Any] | None]:
    if isinstance(row, Mapping):
        messages, values, tools = row.get("messages"), row, row.get("tools")
    elif hasattr(row, "messages"):
        messages, values, tools = row.messages, getattr(row, "extras", {}), getattr(row, "tools", None)
    else:
        raise InputTypeError(f"a row must be a mapping with messages, not {type(row).__name__}")
    if not isinstance(messages, list | tuple) or not messages:
        raise InputError("it has no messages")
    return list(messages), values, tools or None


def _without_answer(messages: list[Any]) -> tuple[list[Any], str | None]:
    """The conversation without the assistant's last turn, and the text of that turn."""
    last = messages[-1]
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        return messages, None
    if len(messages) == 1:
        raise InputError("its one message is the assistant's; there is no question")
    content = last.get("content")
    if not isinstance(content, str):
        content = "".join(part.get("text", "") for part in content or () if isinstance(part, Mapping))
    return messages[:-1], content or None


def _guessed(reference: Any) -> str:
    text = reference if isinstance(reference, str) else ""
    places = "bbox_2d" in text and any(isinstance(shape, Box) for shape in find_shapes(text))
    return "iou" if places else "exact"
