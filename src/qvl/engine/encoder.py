"""Pictures and videos through the tower for the sequences that need them: each once, and not all at once.

Embeddings come from a cache of earlier ones, keyed by the digest of the medium, or are made: all that a step
needs in one call of the tower, or, where others should not wait for it, in short stages between steps.

Legend: P patches, C patch values, N merged vision tokens, D width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qvl.engine.scheduler import Step
from qvl.engine.sequence import Sequence
from qvl.engine.settings import Counters
from qvl.engine.vision import reached
from qvl.types import Grid, Medium

if TYPE_CHECKING:
    from qvl.network.stages import Encoding, Whole
    from qvl.network.vlm import VisionLanguageModel

TOGETHER = 4096  # patches: small media of a prompt go through the tower together up to so many

Key = bytes | int


class VisionCache:
    """Embeddings by digest, the least recently used out first. ``limit``: bytes; 0 keeps nothing."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._embeds: OrderedDict[bytes, Tensor] = OrderedDict()

    def get(self, digest: bytes | None) -> Tensor | None:
        if digest is None or digest not in self._embeds:
            return None
        self._embeds.move_to_end(digest)
        return self._embeds[digest]

    def put(self, digest: bytes | None, embeds_ND: Tensor) -> None:
        size = embeds_ND.numel() * embeds_ND.element_size()
        if digest is None or digest in self._embeds or size > self.limit:
            return
        # A part of what was encoded together would keep all of it in memory.
        self._embeds[digest] = embeds_ND.clone() if embeds_ND._is_view() else embeds_ND
        self.nbytes += size
        while self.nbytes > self.limit:
            _, oldest = self._embeds.popitem(last=False)
            self.nbytes -= oldest.numel() * oldest.element_size()


@dataclass(frozen=True, eq=False)
class Job:
    """Media on their way through the tower, in stages."""

    media: dict[Key, Medium]
    encoding: Encoding | Whole


class MediaEncoder:
    """``encode`` makes what a step needs at once; ``advance`` and ``ready`` are the way in stages."""

    def __init__(self, backbone: VisionLanguageModel, cache_bytes: int = 0) -> None:
        self.backbone = backbone
        self.cache = VisionCache(cache_bytes)
        self.count = Counters()
        self.job: Job | None = None
        self._apart: set[Key] = set()  # media of a call that failed: each is tried by itself

    @torch.inference_mode()
    def encode(self, step: Step) -> dict[int, Exception]:
        """Encode the media that the step's tokens reach for the first time, all in one call of the tower.

        Media whose tokens are all cached already are never looked at. The embeddings are left on the
        sequences. Returns what went wrong, by the ids of the sequences it went wrong for.
        """
        missing = [
            (work.sequence, i)
            for work in step.chunks
            for i, _ in reached(work.sequence, work.start, work.count)
            if not self._fetch(work.sequence, i)
        ]
        media = {_key(m): m for m in (sequence.prompt.media[i] for sequence, i in missing)}
        if not media:
            return {}
        sequences = list({s.id: s for s, _ in missing}.values())
        failures: dict[int, Exception] = {}
        try:
            self._deliver(media, self._encoded(list(media.values())), sequences)
        except Exception as error:
            if len(media) == 1:
                return self._failed(media, sequences, error)
            for key, medium in media.items():
                failures |= self._try({key: medium}, sequences)
        return failures

    def ready(self, sequence: Sequence, start: int, count: int) -> int:
        """How many of these tokens can run: up to the first medium that is not encoded."""
        for i, span in reached(sequence, start, count):
            if not self._fetch(sequence, i):
                return max(0, span.start - start)
        return count

    @torch.inference_mode()
    def advance(
        self, prompts: SequenceOf[Sequence], everybody: SequenceOf[Sequence], seconds: float
    ) -> dict[int, Exception]:
        """Encode for about ``seconds`` what the prompts need next, and at least one stage.

        ``everybody``: all sequences that may be waiting for the same media. Returns what went wrong, by id.
        """
        started, failures = perf_counter(), dict[int, Exception]()
        while True:
            before = perf_counter()
            if self.job is None and not self._begin(prompts, failures):
                return failures
            job = self.job
            if job is not None:
                failures |= self._advance(job, everybody)
            now = perf_counter()
            if now - started + (now - before) > seconds:  # the next stage takes as long as this one
                return failures

    def release(self, everybody: Iterable[Sequence]) -> None:
        """Drop the work on media that nobody waits for any more."""
        if self.job is not None and not any(_lacks(sequence, self.job.media) for sequence in everybody):
            self.job = None

    def _begin(self, prompts: SequenceOf[Sequence], failures: dict[int, Exception]) -> bool:
        """Start on the first media that a prompt lacks; False if none lacks any."""
        for sequence in prompts:
            media = {} if sequence.id in failures else self._next_media(sequence)
            if not media:
                continue
            try:
                patches_PC, grids = self._inputs(list(media.values()))
                self.job = Job(media, self.backbone.encoding(patches_PC, grids))
            except Exception as error:
                failures |= self._failed(media, [sequence], error)
            return True
        return False

    def _next_media(self, sequence: Sequence) -> dict[Key, Medium]:
        media: dict[Key, Medium] = {}
        total = 0
        for i, _ in reached(sequence, sequence.num_computed, sequence.prompt_length):
            if self._fetch(sequence, i):
                continue
            medium = sequence.prompt.media[i]
            total += medium.grid.patches
            if media and (total > TOGETHER or _key(medium) in self._apart):
                break
            media[_key(medium)] = medium
            if _key(medium) in self._apart:
                break
        return media

    def _advance(self, job: Job, everybody: SequenceOf[Sequence]) -> dict[int, Exception]:
        try:
            job.encoding.advance()
            if job.encoding.embeds_ND is None:
                return {}
            self.job = None
            embeds_ND = self.backbone.checked(job.encoding.embeds_ND)
            self._deliver(job.media, self._split(embeds_ND, list(job.media.values())), everybody)
            return {}
        except Exception as error:
            self.job = None
            return self._failed(job.media, everybody, error)

    def _failed(
        self, media: dict[Key, Medium], sequences: Iterable[Sequence], error: Exception
    ) -> dict[int, Exception]:
        """Of a single medium: an error for all who want it. Of several: each is tried again by itself."""
        if len(media) > 1:
            self._apart |= set(media)
            return {}
        self._apart -= set(media)
        return {sequence.id: error for sequence in sequences if _lacks(sequence, media)}

    def _try(self, media: dict[Key, Medium], sequences: SequenceOf[Sequence]) -> dict[int, Exception]:
        try:
            self._deliver(media, self._encoded(list(media.values())), sequences)
        except Exception as error:
            return self._failed(media, sequences, error)
        return {}

    def _fetch(self, sequence: Sequence, i: int) -> bool:
        """Whether the sequence has the embeddings of its i-th medium, perhaps now from the cache."""
        if i in sequence.vision:
            return True
        cached = self.cache.get(sequence.prompt.media[i].digest)
        if cached is None:
            return False
        sequence.vision[i] = cached
        self.count.media_reused += 1
        return True

    def _deliver(
        self, media: dict[Key, Medium], embeds: Iterable[Tensor], sequences: Iterable[Sequence]
    ) -> None:
        found = dict(zip(media, embeds, strict=True))
        self.count.media_encoded += len(found)
        self._apart -= set(media)
        for key, embeds_ND in found.items():
            self.cache.put(media[key].digest, embeds_ND)
        for sequence in sequences:
            for i in _lacks(sequence, found):
                sequence.vision[i] = found[_key(sequence.prompt.media[i])]

    def _encoded(self, media: list[Medium]) -> Iterator[Tensor]:
        patches_PC, grids = self._inputs(media)
        return self._split(self.backbone.encode(patches_PC, grids), media)

    def _inputs(self, media: list[Medium]) -> tuple[Tensor, list[Grid]]:
        patches = [m.patches_PC for m in media]
        patches_PC = patches[0] if len(patches) == 1 else torch.cat(patches)
        return patches_PC.to(self.backbone.visual.device), [m.grid for m in media]

    def _split(self, embeds_ND: Tensor, media: list[Medium]) -> Iterator[Tensor]:
        size = self.backbone.visual.spatial_merge_size
        if len(media) == 1:
            return iter((embeds_ND,))
        return iter(embeds_ND.split([m.grid.tokens(size) for m in media]))


def _lacks(sequence: Sequence, media: Container[Key]) -> list[int]:
    """Which of these media the sequence has still to come to, and no embeddings of."""
    ahead = reached(sequence, sequence.num_computed, sequence.prompt_length)
    return [i for i, _ in ahead if i not in sequence.vision and _key(sequence.prompt.media[i]) in media]


def _key(medium: Medium) -> Key:
    """What makes two media the same: their digest, or else that they are one object."""
    return id(medium) if medium.digest is None else medium.digest
