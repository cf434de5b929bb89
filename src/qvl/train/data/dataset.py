"""Files of rows as a source of samples: a row is read, prepared and encoded when it is asked for.

The order in which samples are taken is the trainer's (`qvl.train.schedule`), not the source's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qvl.errors import InputError, RowError
from qvl.processing.rows import Row, RowFile, parse_row
from qvl.train.data.preparing import Prepared, Preparer
from qvl.train.data.settings import DataSettings
from qvl.train.encode import Encoder
from qvl.train.sample import Sample


class Dataset:
    """A `Source` of the rows of one file. ``kept``: which of them, None: all.

    What it holds is small and can be pickled, so that processes may prepare samples beside the trainer.
    """

    def __init__(
        self,
        path: str | Path | RowFile,
        encoder: Encoder,
        settings: DataSettings | None = None,
        kept: Sequence[int] | None = None,
    ) -> None:
        self.file = path if isinstance(path, RowFile) else RowFile(path)
        self.settings = settings or DataSettings()
        self.encoder = encoder
        self.prepare = Preparer(encoder, self.settings)
        self.kept = None if kept is None else list(kept)

    def __len__(self) -> int:
        return len(self.file) if self.kept is None else len(self.kept)

    def __getitem__(self, index: int) -> Sample:
        """Raises RowError, which names file and line, whatever is wrong with the row."""
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} samples, not one of number {index}")
        number = index if self.kept is None else self.kept[index]
        row = self.row(number)
        name = f"{self.file.path}:{row.line}"
        try:
            messages, tools = self.prepare.messages(row)
            return self.encoder.encode(messages, name, tools)
        except RowError:
            raise
        except InputError as error:
            raise self.file.error(row.line, str(error)) from error

    def row(self, number: int) -> Row:
        """The ``number``-th row of the file, whether kept or not."""
        return parse_row(self.file, number, media_root=self.settings.media_root)

    def prepared(self, number: int, raw: bytes | None = None) -> tuple[Row, Prepared]:
        """A row and what is known of it without pixels; ``raw``: its bytes. Raises InputErrors."""
        row = parse_row(self.file, number, raw, self.settings.media_root)
        return row, self.prepare(row)


class Mixture:
    """Several sources as one `Source`; ``weights``: how often each is gone through in an epoch of the whole.

    2 takes every sample twice, 0.5 every second one.
    """

    def __init__(self, sources: Sequence[Dataset | Mixture], weights: Sequence[float] | None = None) -> None:
        weights = [1.0] * len(sources) if weights is None else list(weights)
        if len(weights) != len(sources):
            raise InputError(f"There must be one weight for each file: {len(sources)}, not {len(weights)}")
        if not all(weight > 0 for weight in weights):
            raise InputError(f"Weights of files must be more than 0, got {', '.join(map(str, weights))}")
        self.sources, self.weights = list(sources), weights
        self.lengths = [
            max(1, round(len(source) * weight)) if len(source) else 0
            for source, weight in zip(sources, weights, strict=True)
        ]

    def __len__(self) -> int:
        return sum(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} samples, not one of number {index}")
        for source, length in zip(self.sources, self.lengths, strict=True):
            if index < length:
                return source[index * len(source) // length]
            index -= length
        raise AssertionError("lengths add up")
