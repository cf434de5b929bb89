"""Prepared media, kept for the next question about them: a conversation sends its pictures every time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from qvl.serve.media.requests import MediumCost
from qvl.types import Medium

Kept = tuple[tuple[Medium, ...], tuple[MediumCost, ...]]


class KeptMedia:
    """What became of media that were asked about lately: a question about the same picture decodes nothing.

    Keyed by the bytes of the file and the options; least recently used out beyond ``size`` bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self.used = 0
        self._lock = Lock()  # `clear` is called from whichever thread finds no room

    def get(self, key: bytes) -> Kept | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: bytes, media: tuple[Medium, ...], costs: tuple[MediumCost, ...]) -> None:
        with self._lock:
            if key in self._kept or _bytes_of(media) > self._size:
                return
            self._kept[key] = (media, costs)
            self.used += _bytes_of(media)
            while self.used > self._size:
                _, (dropped, _) = self._kept.popitem(last=False)
                self.used -= _bytes_of(dropped)

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self.used = 0


def _bytes_of(media: Sequence[Medium]) -> int:
    return sum(medium.patches_PC.nbytes for medium in media)
