"""What the rows of a file mean and what becomes of those that are too long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from qvl.errors import InputError

Boxes = Literal["original", "resized", "thousandths"]
ObjectsAs = Literal["tokens", "numbers"]
TooLong = Literal["error", "drop", "shrink"]


@dataclass(frozen=True)
class DataSettings:
    """``media_root``: where relative paths of media start; None: the folder of each file.

    ``boxes``: what the numbers of boxes and points in texts count: pixels of the picture as every viewer
    shows it ("original"), pixels of what the processor makes of it ("resized"), or thousandths of its sides,
    as Qwen2-VL had them. ``objects_as``: how the tags of ms-swift's ``objects`` are written out: between the
    model's box tokens, or as plain names and JSON lists of numbers. ``max_tokens``: of one row, media and
    all; None: what the model has positions for. ``too_long``: "error" keeps training from starting, "drop"
    leaves such rows out, "shrink" makes their pictures and videos smaller until they fit (rows that are too
    long without them are left out). Nothing is ever cut.
    """

    media_root: str | None = None
    boxes: Boxes = "original"
    objects_as: ObjectsAs = "tokens"
    max_tokens: int | None = None
    too_long: TooLong = "error"

    def __post_init__(self) -> None:
        for name, choices in (("boxes", Boxes), ("objects_as", ObjectsAs), ("too_long", TooLong)):
            if getattr(self, name) not in get_args(choices):
                raise InputError(
                    f"{name} is one of {', '.join(get_args(choices))}, not {getattr(self, name)!r}"
                )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InputError(f"max_tokens must be 1 or more, not {self.max_tokens}")
