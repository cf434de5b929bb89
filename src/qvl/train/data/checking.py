"""A file of rows looked through before training: every row read, its media measured, its tokens counted.

Headers are read in threads, since most of the time goes into waiting for disks; pixels are decoded only where
that is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvl.errors import (
    InputError,
    MediaDecodeError,
    MediaFetchError,
    MediaNotFoundError,
    PromptTooLongError,
    RowError,
)
from qvl.processing.measuring import Measured
from qvl.processing.media.opening import load_image, open_video
from qvl.processing.rows import RowFile
from qvl.processing.text.messages import find_media
from qvl.train.data.dataset import Dataset
from qvl.train.data.settings import DataSettings
from qvl.train.encode import Encoder

THREADS = 8  # that wait for disks
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BadRow:
    """``kind``: "form", "media" or "long"."""

    line: int
    reason: str
    kind: str


@dataclass
class Report:
    """What one file holds. Lists are in the order of the file; ``kept`` are numbers of rows from 0.

    ``bad``: rows that keep training from starting; ``dropped``: rows that are left out because they are too
    long. ``duplicates``: (line, line of the first one like it). ``lengths``, ``vision``, ``lines``: tokens,
    tokens of media and line of each kept row. ``answers_empty``, ``ends_asking``, ``shrunk``: rows.
    ``digests``: of the conversations, to find them again in other files.
    """

    path: Path
    rows: int = 0
    pictures: int = 0
    videos: int = 0
    turns: int = 0
    learned: int = 0
    with_media: int = 0
    shrunk: int = 0
    answers_empty: int = 0
    ends_asking: int = 0
    bad: list[BadRow] = field(default_factory=list)
    dropped: list[BadRow] = field(default_factory=list)
    duplicates: list[tuple[int, int]] = field(default_factory=list)
    kept: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    vision: array[int] = field(default_factory=lambda: array("q"))
    lines: array[int] = field(default_factory=lambda: array("q"))
    digests: set[bytes] = field(default_factory=set)

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def sound(self) -> bool:
        """Whether training may start: no bad row, and something left to learn from."""
        return not self.bad and len(self.kept) > 0

    def percentile(self, share: float) -> int:
        """The length that ``share`` of the rows do not exceed (nearest rank); 0 without rows."""
        ordered = sorted(self.lengths)
        return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)] if ordered else 0

    def longest(self, count: int) -> list[tuple[int, int]]:
        """(tokens, line) of the longest rows, the longest first."""
        pairs = zip(self.lengths, self.lines, strict=True)
        return sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[:count]

    def counts(self) -> dict[str, int]:
        """How many bad rows there are of each kind."""
        return dict(Counter(row.kind for row in self.bad))


@dataclass(frozen=True)
class Found:
    """What one row came to; ``digest``: of its conversation."""

    index: int
    line: int
    digest: bytes = b""
    kinds: tuple[str, ...] = ()
    turns: int = 0
    learned: int = 0
    tokens: int = 0
    vision: int = 0
    shrunk: bool = False
    answer_empty: bool = False
    ends_asking: bool = False
    bad: BadRow | None = None


def check(
    path: str | Path | RowFile,
    encoder: Encoder,
    settings: DataSettings | None = None,
    *,
    decode: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Looks through a whole file. ``decode``: opens every picture whole and the ends of every video, which
    finds broken ones that have a sound header. ``progress(done, rows)`` is called as rows are done.

    Raises InputError for a file that is not there or holds no rows; bad rows are in the report.
    """
    settings = settings or DataSettings()
    data = Dataset(path, encoder, settings)
    report = Report(data.file.path, rows=len(data.file))
    first: dict[bytes, int] = {}

    def look(item: tuple[int, bytes]) -> Found:
        return _look(data, *item, decode=decode)

    for done, found in enumerate(_in_threads(look, enumerate(data.file.raws())), start=1):
        _note(report, found, first, settings)
        if progress is not None and (done % 64 == 0 or done == report.rows):
            progress(done, report.rows)
    return report


def _look(data: Dataset, index: int, raw: bytes, *, decode: bool) -> Found:
    """One row, whatever is wrong with it."""
    line = data.file.line(index)
    try:
        row, prepared = data.prepared(index, raw)
        if decode:
            _decode(row.messages)
    except PromptTooLongError as error:
        return Found(index, line, bad=BadRow(line, str(error), "long"))
    except RowError as error:
        return Found(index, line, bad=BadRow(line, error.reason, "form"))
    except InputError as error:
        lost = isinstance(error, MediaNotFoundError | MediaDecodeError | MediaFetchError)
        return Found(index, line, bad=BadRow(line, str(error), "media" if lost else "form"))
    media: tuple[Measured, ...] = prepared.media
    answers = [m for m in row.messages if m["role"] == "assistant"]
    return Found(
        index,
        line,
        hashlib.blake2b(
            json.dumps([row.messages, row.tools], sort_keys=True).encode("utf-8", "surrogatepass"),
            digest_size=12,
        ).digest(),
        tuple(one.kind for one in media),
        len(answers),
        prepared.learned,
        prepared.tokens,
        prepared.vision,
        prepared.shrunk,
        any(_is_empty(message) for message in answers),
        row.messages[-1]["role"] != "assistant",
    )


def _is_empty(message: dict[str, Any]) -> bool:
    content = message["content"]
    text = content if isinstance(content, str) else "".join(part.get("text", "m") for part in content)
    return not text.strip() and not message.get("tool_calls")


def _decode(messages: list[dict[str, Any]]) -> None:
    """Opens all pixels of pictures, and the first and last frame of videos."""
    for item in find_media(messages):
        frames = item.source if isinstance(item.source, list) else None
        if item.kind == "image" or frames is not None:
            for source in frames or [item.source]:
                load_image(source)
            continue
        with open_video(item.source) as video:
            for _ in video.frames(sorted({0, video.total_frames - 1})):
                pass


def _note(report: Report, found: Found, first: dict[bytes, int], settings: DataSettings) -> None:
    """Adds one row to the report."""
    if found.bad is not None:
        leaves_out = found.bad.kind == "long" and settings.too_long != "error"
        (report.dropped if leaves_out else report.bad).append(found.bad)
        return
    earlier = first.setdefault(found.digest, found.line)
    report.digests.add(found.digest)
    if earlier != found.line:
        report.duplicates.append((found.line, earlier))
    report.pictures += found.kinds.count("image")
    report.videos += found.kinds.count("video")
    report.with_media += bool(found.kinds)
    report.turns += found.turns
    report.learned += found.learned
    report.shrunk += found.shrunk
    report.answers_empty += found.answer_empty
    report.ends_asking += found.ends_asking
    for column, value in (
        (report.kept, found.index),
        (report.lengths, found.tokens),
        (report.vision, found.vision),
        (report.lines, found.line),
    ):
        column.append(value)


def _in_threads(
    work: Callable[[tuple[int, bytes]], Found], items: Iterable[tuple[int, bytes]]
) -> Iterator[Found]:
    """``work`` of each item, in order, with a bounded number of items under way."""
    count = min(THREADS, (os.cpu_count() or 1) + 2)
    with ThreadPoolExecutor(count, thread_name_prefix="qvl-check") as pool:
        pending: deque[Future[Found]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > 4 * count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for waiting in pending:
                waiting.cancel()
