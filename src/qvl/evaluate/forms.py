"""The forms of public benchmarks, each with its prompt and metric: records become rows with messages.

Known are DocVQA, InfographicVQA, ChartQA, TextVQA and VQAv2 as their authors (or the hub's copies of them)
give them out, tables of choices as MMBench and MMMU have them, and any record whose fields somebody names.
The prompts are those that Qwen2.5-VL is scored with in lmms-eval and VLMEvalKit.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qvl.errors import InputError, RowError
from qvl.evaluate.records import Record, picture_of
from qvl.processing.rows.forms import PAIRS
from qvl.processing.rows.row import Row, row_of

SHORT = "{question}\nAnswer the question using a single word or phrase."
LETTER = "{question}\nPlease select the correct answer from the options above."
FOLDERS = ("", "images", "png", "documents", "train_images", "val_images", "test_images")
"""Beside the questions, or under the root that was given, where pictures may lie."""
NAMES_OF_ROWS = ("questionId", "question_id", "id", "index")


@dataclass(frozen=True)
class Form:
    """Which fields of a record mean what.

    ``image``, ``question``, ``answer``: the first of these keys that a record has. ``prompt``: what is asked,
    with ``{question}`` in it. ``file``: the picture's file name, if the record holds only a part of it.
    ``fits``: whether a record is of this form. ``task``: a key that divides the rows into tasks.
    """

    name: str
    metric: str | None
    image: tuple[str, ...] = ("image",)
    question: tuple[str, ...] = ("question",)
    answer: tuple[str, ...] = ("answers", "answer")
    prompt: str = SHORT
    file: str = "{}"
    task: str = "task"
    fits: Callable[[Mapping[str, Any]], bool] = lambda record: False


def _has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda record: record.keys() >= set(names)


def _is_chart(record: Mapping[str, Any]) -> bool:
    return str(record.get("type")) in ("human_test", "augmented_test", "human_val", "augmented_val")


FORMS = (
    Form("infovqa", "anls", image=("image_local_name", "image"), fits=_has("question", "image_local_name")),
    Form("docvqa", "anls", fits=_has("question", "image", "docId")),
    Form("chartqa", "relaxed", ("imgname",), ("query",), ("label",), fits=_has("imgname", "query", "label")),
    Form("chartqa", "relaxed", task="type", fits=_is_chart),
    Form(
        "textvqa",
        "vqa",
        ("image", "image_id"),
        file="{}.jpg",
        fits=_has("question", "image_id", "image_classes"),
    ),
    Form("vqav2", "vqa", fits=_has("question", "image", "answers", "multiple_choice_answer")),
    Form("choices", "choice", prompt=LETTER, fits=_has("question", "A", "B")),
    Form(
        "plain",
        None,
        answer=("answers", "answer", "expected", "target", "label"),
        prompt="{question}",
        fits=_has("question"),
    ),
)
"""The first that fits the first record of a file counts for all of it."""


@dataclass(frozen=True)
class Naming:
    """What somebody says of the fields and of where pictures lie; None: as the form has it."""

    image_key: str | None = None
    question_key: str | None = None
    answer_key: str | None = None
    prompt: str | None = None
    root: Path | None = None

    def __post_init__(self) -> None:
        if self.prompt is not None and "{question}" not in self.prompt:
            raise InputError("the prompt must hold {question}, where the question of each row goes")

    def applied(self, form: Form) -> Form:
        """``form`` with what was named in place of its own."""
        named = {"image": self.image_key, "question": self.question_key, "answer": self.answer_key}
        changes: dict[str, Any] = {key: (value,) for key, value in named.items() if value is not None}
        if self.image_key is not None:
            changes["file"] = "{}"
        if self.prompt is not None:
            changes["prompt"] = self.prompt.replace("\\n", "\n")
        return replace(form, **changes)

    @property
    def fields(self) -> bool:
        return self.question_key is not None or self.image_key is not None or self.answer_key is not None


def rows_of(records: Iterable[Record | RowError], path: Path, naming: Naming) -> Iterator[Row | RowError]:
    """Rows with messages, of whatever form the records are; for a record of none an error in its place.

    ``path``: the file, for messages and for relative paths. Conversations are read as training reads them.
    """
    form: Form | None = None
    for record in records:
        if isinstance(record, RowError):
            yield record
            continue
        try:
            if not naming.fields and _is_conversation(record.values):
                yield row_of(record.values, record.line, naming.root or path.parent)
                continue
            form = form or _form_of(record.values, naming)
            yield _row(record, form, naming.root or path.parent)
        except InputError as error:
            yield error if isinstance(error, RowError) else RowError(str(path), record.line, str(error))


def _is_conversation(values: Mapping[str, Any]) -> bool:
    """Whether a record is what people train on: messages, or a question together with its answer."""
    turns = ("messages", "conversations", "conversation")
    return any(key in values for key in turns) or any(values.keys() >= set(pair) for pair in PAIRS)


def _form_of(values: Mapping[str, Any], naming: Naming) -> Form:
    found = next((form for form in FORMS if form.fits(values)), None)
    if found is None and naming.fields:
        found = FORMS[-1]
    if found is None:
        raise InputError(
            f"it is of no form that is known, with the fields {', '.join(list(values)[:12]) or 'none'}; "
            "expected messages, or name the fields (--question-key, --image-key, --answer-key)"
        )
    return naming.applied(found)


def _row(record: Record, form: Form, root: Path) -> Row:
    values = record.values
    question = next((values[key] for key in form.question if values.get(key) is not None), None)
    if not isinstance(question, str):
        raise InputError(f"it has no text under {' or '.join(form.question)}")
    choices = _choices(values)
    if form.name == "choices" or choices:
        question = _with_choices(question, choices, values.get("hint"))
    text = form.prompt.replace("{question}", question)
    pictures = [{"type": "image", "image": picture} for picture in _pictures(values, form, root)]
    content = [*pictures, {"type": "text", "text": text}]
    extras = {key: values[key] for key in ("metric", "tolerance", "threshold", "picture") if key in values}
    extras |= {"answers": _answers(values, form), "task": values.get(form.task), "key": _key(values)}
    if form.metric and "metric" not in extras:
        extras["form_metric"] = form.metric
    if choices:
        extras["choices"] = choices
    return Row(record.line, [{"role": "user", "content": content}], extras)


def _pictures(values: Mapping[str, Any], form: Form, root: Path) -> list[Any]:
    key = next((key for key in form.image if values.get(key) not in (None, "", [])), None)
    given = None if key is None else values[key]
    named = form.file if key == form.image[-1] else "{}"
    return [
        _found(one, named, root) for one in (given if isinstance(given, list) else [given]) if one is not None
    ]


def _found(value: Any, named: str, root: Path) -> Any:
    """A picture that can be opened; of several places where it may lie the first that has it."""
    if not isinstance(value, str) or len(value) > 1024:
        return picture_of(value, root)
    name = named.format(value)
    places = (root / folder / name for folder in FOLDERS)
    return next((str(place) for place in places if place.is_file()), None) or picture_of(name, root)


def _answers(values: Mapping[str, Any], form: Form) -> list[Any] | None:
    """All right answers; None where the record brings none, as those of test sets do."""
    given = next((values[key] for key in form.answer if values.get(key) not in (None, [])), None)
    if given is None:
        return None
    answers = list(given) if isinstance(given, list | tuple) else [given]
    return [one["answer"] if isinstance(one, Mapping) and "answer" in one else one for one in answers]


def _choices(values: Mapping[str, Any]) -> list[str]:
    """The texts of A, B, C ... as far as there are any, or a list under ``choices`` or ``options``."""
    listed = values.get("choices", values.get("options"))
    if isinstance(listed, Sequence) and not isinstance(listed, str):
        return [str(choice) for choice in listed]
    found = []
    for letter in string.ascii_uppercase:
        if values.get(letter) in (None, ""):
            break
        found.append(str(values[letter]))
    return found if len(found) > 1 else []


def _with_choices(question: str, choices: Sequence[str], hint: Any) -> str:
    """The question as Qwen2.5-VL is asked it in VLMEvalKit: hint, question, lettered options."""
    lines = [f"Hint: {hint}"] if hint else []
    lettered = [f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, choices, strict=False)]
    return "\n".join([*lines, f"Question: {question}", "Options:", *lettered])


def _key(values: Mapping[str, Any]) -> Any:
    return next((values[name] for name in NAMES_OF_ROWS if values.get(name) is not None), None)
