"""Files of questions as people have them, as plain records: JSON, JSON lines, TSV, CSV and Parquet.

What the fields of a record mean is decided elsewhere.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvl.errors import InputError, MissingDependencyError, RowError
from qvl.processing.rows import RowFile

LISTS = ("data", "questions", "annotations", "rows")
"""Where a JSON file that is one object keeps its records."""


@dataclass(frozen=True)
class Record:
    """``values`` of one question, and the ``line`` (or number, from 1) where it stands in its file."""

    line: int
    values: Mapping[str, Any]


def read_records(path: Path) -> Iterator[Record | RowError]:
    """All records of a file in order, by its ending; a bad line's error stands in its place.

    Raises InputError for a file that cannot be read or holds no records, MissingDependencyError for Parquet
    without pyarrow or pandas.
    """
    ending = path.suffix.lower()
    if not path.is_file():
        raise InputError(f"There is no file {path}")
    if ending in (".tsv", ".csv"):
        yield from _table(path, "\t" if ending == ".tsv" else ",")
    elif ending in (".parquet", ".pq"):
        yield from _parquet(path)
    else:
        listed = _listed(path)
        yield from _json_rows(path) if listed is None else _numbered(path, listed)


def _listed(path: Path) -> Sequence[Any] | None:
    """The records of a file that is one JSON object with a list of them in it; None for any other file."""
    with path.open("rb") as file:
        head = file.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()
    first = head.split(b"\n", 1)[0].rstrip()
    if not head.startswith(b"{") or (first.endswith(b"}") and _is_json(first)):
        return None  # an array, or JSON lines
    try:
        value = json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        return None  # JSON lines with a bad first line: told where it stands
    key = next((key for key in LISTS if isinstance(value.get(key), list)), None)
    if key is None:
        raise InputError(f"{path} is one JSON object without a list of questions ({', '.join(LISTS)})")
    listed: Sequence[Any] = value[key]
    return listed


def _is_json(line: bytes) -> bool:
    """Whether a first line is a record by itself, and not the whole of a file on one line."""
    try:
        value = json.loads(line)
    except ValueError:
        return False
    return not any(isinstance(value.get(key), list) for key in LISTS)


def _numbered(path: Path, values: Sequence[Any]) -> Iterator[Record | RowError]:
    for number, value in enumerate(values, start=1):
        if isinstance(value, Mapping):
            yield Record(number, value)
        else:
            yield RowError(str(path), number, "a question must be a JSON object")


def _json_rows(path: Path) -> Iterator[Record | RowError]:
    file = RowFile(path)
    for index, raw in enumerate(file.raws()):
        try:
            value = file.parsed(index, raw)
        except RowError as error:
            yield error
            continue
        line = file.line(index)
        yield Record(line, value) if isinstance(value, Mapping) else file.error(line, "it is no JSON object")


def _table(path: Path, delimiter: str) -> Iterator[Record]:
    """Rows of a table with a header; empty cells are left out. Pictures may stand in cells, as base64."""
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter=delimiter), start=2):
            yield Record(
                number, {key: value for key, value in row.items() if key and value not in (None, "")}
            )


def _parquet(path: Path) -> Iterator[Record]:
    """Rows of a Parquet file, a piece of it at a time."""
    number = 0
    for rows in _parquet_pieces(path):
        for row in rows:
            number += 1
            yield Record(number, row)


def _parquet_pieces(path: Path) -> Iterator[list[dict[str, Any]]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingDependencyError(
            f"{path.name}: reading Parquet needs the package pyarrow: pip install pyarrow"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                yield batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of ValueError
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error


def picture_of(value: Any, root: Path) -> Any:
    """What a record says of its picture, as something that can be opened.

    A name is a file under ``root``; ``{"bytes": ..., "path": ...}`` is how data sets on the hub keep
    pictures; a long text is base64.
    """
    if isinstance(value, Mapping):
        data = value.get("bytes")
        return data if data is not None else picture_of(value.get("path"), root)
    if isinstance(value, str):
        outside = value.lower().startswith(("http://", "https://", "data:", "file:")) or len(value) > 1024
        return value if outside else str(root / value)
    return value
