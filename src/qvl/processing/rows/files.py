"""Where the rows of a file begin and end, so that any one of them can be read without the others.

It knows JSON lines and JSON arrays, and nothing of what a row means.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qvl.errors import InputError, RowError

BOM = b"\xef\xbb\xbf"
SPACE = re.compile(r"[ \t\r\n]*")


class RowFile:
    """A file of rows: JSON lines (empty lines do not count), or one JSON array as a whole.

    ``len`` is the number of rows; ``value(i)`` reads the i-th from the file as plain JSON; ``line(i)`` is
    where it begins, from 1. Only places are kept, 24 bytes a row, so that a file of millions of rows costs
    nothing; an array is read once as a whole for that. Raises InputError for a file that is not there or
    holds no row, RowError where an array breaks off.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._starts, self._sizes, self._lines = array("q"), array("q"), array("q")
        try:
            with self.path.open("rb") as file:
                head = file.read(4096).removeprefix(BOM).lstrip()
                if head.startswith(b"["):
                    self._index_array(self.path.read_bytes())
                else:
                    file.seek(0)
                    self._index_lines(file)
        except FileNotFoundError:
            raise InputError(f"There is no file {path}") from None
        except IsADirectoryError:
            raise InputError(
                f"{path} is a folder; name a file of rows (JSON lines or a JSON array)"
            ) from None
        except OSError as error:
            raise InputError(f"The file {path} cannot be read: {error.strerror or error}") from error
        if not self._lines:
            raise InputError(
                f"{path} holds no rows; expected one JSON object a line, or a JSON array of them"
            )

    def __len__(self) -> int:
        return len(self._lines)

    def line(self, index: int) -> int:
        return self._lines[index]

    def raw(self, index: int) -> bytes:
        """The bytes of a row as they stand in the file."""
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            return file.read(self._sizes[index])

    def value(self, index: int) -> Any:
        """A row as plain JSON; RowError where it is none."""
        return self.parsed(index, self.raw(index))

    def parsed(self, index: int, raw: bytes) -> Any:
        """The value of what ``raw`` gave."""
        line = self._lines[index]
        try:
            return json.loads(raw.removeprefix(BOM).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise self.error(line, f"not UTF-8 text (byte {error.start + 1} of the line)") from None
        except json.JSONDecodeError as error:
            raise self.error(line, f"not valid JSON: {error.msg} at character {error.pos + 1}") from None
        except (RecursionError, ValueError) as error:  # an integer of thousands of digits
            raise self.error(line, f"not JSON that can be read: {error}") from None

    def raws(self) -> Iterator[bytes]:
        """The bytes of all rows in order, with the file opened once."""
        with self.path.open("rb") as file:
            for start, size in zip(self._starts, self._sizes, strict=True):
                file.seek(start)
                yield file.read(size)

    def error(self, line: int, reason: str) -> RowError:
        return RowError(str(self.path), line, reason)

    def _index_lines(self, file: Any) -> None:
        start = 0
        for number, line in enumerate(file, start=1):
            if line.removeprefix(BOM).strip():
                self._add(start, len(line), number)
            start += len(line)

    def _index_array(self, data: bytes) -> None:
        """The elements of an array, found with one pass of the JSON reader."""
        try:
            text = data.removeprefix(BOM).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(data.count(b"\n", 0, error.start) + 1, "not UTF-8 text") from None
        decoder = json.JSONDecoder()
        position = text.index("[") + 1
        line = text.count("\n", 0, position) + 1
        place = len(data) - len(data.removeprefix(BOM)) + len(text[:position].encode())
        while True:
            start = _after_space(text, position)
            if text[start : start + 1] == "]":
                self._check_end(text, start)
                return
            line += text.count("\n", position, start)
            place += len(text[position:start].encode())
            try:
                _, end = decoder.raw_decode(text, start)
            except (json.JSONDecodeError, RecursionError) as error:
                where = line + text.count("\n", start, getattr(error, "pos", start))
                reason = getattr(error, "msg", "nested too deeply")
                raise self.error(
                    where, f"not valid JSON: {reason}; the rows behind it cannot be read"
                ) from None
            size = len(text[start:end].encode())
            self._add(place, size, line)
            line += text.count("\n", start, end)
            place += size
            position = _after_space(text, end)
            line += text.count("\n", end, position)
            place += len(text[end:position].encode())
            if text[position : position + 1] == ",":
                position, place = position + 1, place + 1
            elif text[position : position + 1] != "]":
                raise self.error(line, "a comma or the end of the array is missing behind this row")

    def _check_end(self, text: str, start: int) -> None:
        if text[start + 1 :].strip():
            raise self.error(text.count("\n", 0, start) + 1, "there is more behind the end of the array")

    def _add(self, start: int, size: int, line: int) -> None:
        self._starts.append(start)
        self._sizes.append(size)
        self._lines.append(line)


def _after_space(text: str, position: int) -> int:
    found = SPACE.match(text, position)
    return found.end() if found else position
