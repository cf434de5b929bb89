"""The file of predictions: a JSON object a line, written as answers come, so that a broken-off run can go on.

A process that is killed leaves at worst half a line at the end, which is dropped when the run goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

from qvl.errors import InputError
from qvl.evaluate.report import Prediction

NAMES = tuple(field.name for field in fields(Prediction))


def plain(prediction: Prediction) -> dict[str, Any]:
    """A prediction as values for JSON; what says nothing (no error, no details) is left out."""
    values = {name: getattr(prediction, name) for name in NAMES}
    values["references"] = list(prediction.references)
    return {name: value for name, value in values.items() if value or name not in ("error", "details", "key")}


def read_predictions(path: Path) -> list[Prediction]:
    """What a file of predictions holds; a last line that was broken off is cut from the file.

    Raises InputError where another line is none.
    """
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    found = [_read(line, number, path) for number, line in enumerate(whole.splitlines(), start=1)]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return found


def _read(line: bytes, number: int, path: Path) -> Prediction:
    try:
        values = json.loads(line)
        if not isinstance(values, Mapping) or not {"row", "id", "score"} <= values.keys():
            raise ValueError
        return Prediction(**{name: values[name] for name in NAMES if name in values})
    except (ValueError, TypeError):
        raise InputError(f"{path}, line {number}, is no prediction of qvl eval; name another file") from None


def answered(predictions: Iterable[Prediction]) -> dict[str, Prediction]:
    """By ``id``, those that need not be asked again: all but the ones with an error."""
    return {prediction.id: prediction for prediction in predictions if prediction.id and not prediction.error}


class PredictionsFile:
    """A file that predictions are added to, each on the disk's way at once. Use it in ``with``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> PredictionsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, prediction: Prediction) -> None:
        self._file.write(line_of(prediction))
        self._file.flush()


def line_of(prediction: Prediction) -> str:
    """One line; text that is no Unicode (half a pair of surrogates) is escaped."""
    text = json.dumps(plain(prediction), ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(plain(prediction), default=str)
    return text + "\n"


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """All predictions in this order, in place of what is there."""
    replace_file(path, "".join(map(line_of, predictions)))


def replace_file(path: Path, text: str) -> None:
    """``text`` as the whole content of ``path``: all of it or what was there before, whatever happens."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
