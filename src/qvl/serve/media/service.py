"""Media of requests, from their URLs to patches: the one door through which strangers' files come in.

Fetching and recognising happen here; everything that interprets a file's content happens in the workers.
Which messages a medium belongs to and what its tokens are for is no concern of this package.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from qvl import hub
from qvl.errors import (
    InputError,
    MediaDecodeError,
    MediaError,
    MediaTooLargeError,
    QvlError,
)
from qvl.serve.errors import DrainingError, RefusedError
from qvl.serve.media.datauri import read_data_uri
from qvl.serve.media.fetching import Fetcher, Resolve
from qvl.serve.media.files import MediaFolder
from qvl.serve.media.formats import recognised
from qvl.serve.media.held import PIECE_BYTES, Allowance, HeldFile, nameless_file
from qvl.serve.media.kept import Kept, KeptMedia
from qvl.serve.media.options import plain_options
from qvl.serve.media.pool import WorkerPool
from qvl.serve.media.process import Launch
from qvl.serve.media.requests import MediaRequest, MediumCost, PreparedMedia
from qvl.serve.media.turns import in_turn, to_the_end
from qvl.serve.settings import ServeSettings
from qvl.types import Grid, Medium

__all__ = ["MediaRequest", "MediaService", "MediumCost", "PreparedMedia"]

AT_ONCE = 4  # media of one request that are fetched at the same time
MESSAGE_LETTERS = 500  # of what a worker says is wrong
FAILS = "its content makes the decoder fail"
KEPT_BYTES = 64 * 2**20  # of patches of media that were asked about before
ERRORS: Mapping[str, type[QvlError]] = {
    "too_large": MediaTooLargeError,
    "decode": MediaDecodeError,
    "media": MediaError,
    "input": InputError,
}

Part = TypeVar("Part")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Job:
    """One medium with its bytes, recognised. ``key``: what its patches depend on, as one digest."""

    request: MediaRequest
    file: HeldFile
    task: dict[str, Any]
    key: bytes


class MediaService:
    """Prepares and measures media for one server. ``resolve`` stands in for the system's resolver in tests.

    ``model_folder``: the checkpoint's name or folder, for the settings of its processor.
    """

    def __init__(self, settings: ServeSettings, model_folder: str, *, resolve: Resolve | None = None) -> None:
        limits = settings.limits
        self._limits = limits
        self._settings = settings
        self._model_folder = model_folder
        self._resolve = resolve
        self._kept = KeptMedia(min(KEPT_BYTES, limits.waiting_memory // 8))
        self._allowance = Allowance(limits.waiting_memory, self._kept.clear)
        self._pool: WorkerPool | None = None
        self._fetcher: Fetcher | None = None
        self._folder = MediaFolder(None)

    @property
    def alive(self) -> bool:
        """Whether media can be prepared: started, not closed, and a worker is up or on its way."""
        return self._pool is not None and self._pool.alive

    @property
    def held_bytes(self) -> int:
        """Bytes of files and patches that requests, the engine and the store of kept media hold."""
        return self._allowance.used

    async def start(self) -> None:
        """Starts the workers and returns once they are ready: a second or two.

        Raises InputError for a media root that is no folder and for an exempt host that is none,
        WorkerStartError.
        """
        settings = self._settings
        folder = str(hub.resolve(self._model_folder, patterns=hub.SMALL_FILES))
        self._folder = MediaFolder(settings.access.media_root)
        pool = WorkerPool(Launch(folder, self._limits), settings.media_workers, self._limits.decode_seconds)
        try:
            self._fetcher = Fetcher(settings.access, self._limits, self._resolve)
            await pool.start()
        except BaseException:
            await self.close()
            raise
        self._pool = pool

    async def close(self) -> None:
        """Ends the workers; what still waits ends with DrainingError."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await pool.close()
        if self._fetcher is not None:
            self._fetcher.close()
            self._fetcher = None
        self._folder.close()
        self._kept.clear()

    async def prepare(self, requests: Sequence[MediaRequest], *, most_tokens: int) -> list[PreparedMedia]:
        """All media of one request to the server, in order.

        All are fetched and measured before one is decoded. ``most_tokens``: of all together. Raises
        MediaError and its kinds, other InputErrors for options, RefusedError, QueueFullError where the server
        holds as much as it can, DrainingError; each message begins with the medium's ``where``.
        """
        with ExitStack() as files:
            jobs = await in_turn(lambda request: self._job(request, files), requests, AT_ONCE)
            costs = await in_turn(self._known_costs, jobs, self._settings.media_workers)
            self._check_costs(jobs, costs, most_tokens)
            return await in_turn(
                lambda pair: self._prepared(*pair, most_tokens),
                list(zip(jobs, costs, strict=True)),
                self._settings.media_workers,
            )

    async def measure(self, requests: Sequence[MediaRequest]) -> list[list[MediumCost]]:
        """What each medium costs, a list for each, from its headers: nothing but a video's first frame is
        decoded. Raises what :meth:`prepare` does."""
        with ExitStack() as files:
            jobs = await in_turn(lambda request: self._job(request, files), requests, AT_ONCE)
            return await in_turn(self._known_costs, jobs, self._settings.media_workers)

    # One medium

    async def _job(self, request: MediaRequest, files: ExitStack) -> Job:
        """The medium's bytes, in a file that closes with ``files``, and what they are."""
        with located(request.where):
            options = plain_options(request.options)
            file = files.enter_context(HeldFile(self._limits.medium, self._allowance))
            await self._read(request.url, file)
            task = {
                "kind": request.kind,
                "format": recognised(request.kind, file.head),
                "options": options,
                "most_tokens": request.most_tokens,
            }
            key = hashlib.sha256(file.digest + json.dumps(task, sort_keys=True).encode()).digest()
            return Job(request, file, task, key)

    async def _read(self, url: str, file: HeldFile) -> None:
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            await to_the_end(read_data_uri, url, file)
        elif scheme == "file":
            await to_the_end(self._folder.read, url, file)
        elif scheme in ("http", "https"):
            await self._running(self._fetcher).fetch(url, file)
        else:
            raise RefusedError("a medium's URL must begin with data:, http: or https:")

    async def _known_costs(self, job: Job) -> list[MediumCost]:
        kept = self._kept.get(job.key)
        if kept is not None:
            return list(kept[1])
        with located(job.request.where):
            answer = await self._ask({"task": job.task}, [job.file.fileno])
            return _told(lambda: [_cost(entry) for entry in answer["costs"]])

    def _check_costs(self, jobs: Sequence[Job], costs: Sequence[list[MediumCost]], most_tokens: int) -> None:
        total = 0
        for job, own in zip(jobs, costs, strict=True):
            tokens = sum(cost.tokens for cost in own)
            total += tokens
            if total > most_tokens:
                what = "it takes" if tokens > most_tokens else "with what stands before it, it takes"
                raise MediaTooLargeError(
                    f"{job.request.where}: {what} {max(tokens, total):,} tokens, more than the "
                    f"{most_tokens:,} that there is room for: lower max_pixels, or fps of a video"
                )

    async def _prepared(self, job: Job, costs: Sequence[MediumCost], most_tokens: int) -> PreparedMedia:
        kept = self._kept.get(job.key)
        if kept is None:
            with located(job.request.where):
                kept = await self._decoded(job, costs, most_tokens)
            self._kept.put(job.key, *kept)
        return PreparedMedia(job.request, *kept)

    async def _decoded(self, job: Job, costs: Sequence[MediumCost], most_tokens: int) -> Kept:
        result = nameless_file("qvl-patches")
        try:
            message = {"task": job.task, "most_tokens": most_tokens}
            answer = await self._ask(message, [job.file.fileno, result])
            seconds = _told(lambda: [float(value) for value in answer["seconds_per_grid"]])
            size, patches = os.fstat(result).st_size, sum(cost.grid.patches for cost in costs)
            if len(seconds) != len(costs) or not all(map(math.isfinite, seconds)) or size % (4 * patches):
                raise MediaDecodeError(FAILS)
            media = await to_the_end(self._read_patches, result, size // (4 * patches), costs, seconds)
            return media, tuple(costs)
        finally:
            os.close(result)

    def _read_patches(
        self, result: int, width: int, costs: Sequence[MediumCost], seconds: Sequence[float]
    ) -> tuple[Medium, ...]:
        """The media whose patches of ``width`` float32 values lie end to end in ``result``; their share of
        the allowance is given back when their memory is freed."""
        media, position = [], 0
        for cost, step in zip(costs, seconds, strict=True):
            self._allowance.take(cost.grid.patches * width * 4)
            patches_PC = np.empty((cost.grid.patches, width), np.float32)
            weakref.finalize(patches_PC, self._allowance.give_back, patches_PC.nbytes).atexit = False
            digest = _read_into(result, position, patches_PC, _name(cost, step))
            position += patches_PC.nbytes
            media.append(Medium(cost.kind, cost.grid, torch.from_numpy(patches_PC), step, digest))
        return tuple(media)

    async def _ask(self, message: dict[str, Any], descriptors: Sequence[int]) -> dict[str, Any]:
        """A worker's answer; what it says went wrong is raised."""
        answer = await self._running(self._pool).run(message, descriptors)
        if "error" in answer:
            kind = ERRORS.get(str(answer["error"]), MediaDecodeError)
            raise kind(str(answer.get("message"))[:MESSAGE_LETTERS])
        return answer

    def _running(self, part: Part | None) -> Part:
        if part is None:
            raise DrainingError("the media service is not running")
        return part


@contextmanager
def located(where: str) -> Iterator[None]:
    """Puts the place of a medium in front of what is wrong with it."""
    try:
        yield
    except QvlError as error:
        raise type(error)(f"{where}: {error}") from error


def _told(read: Callable[[], Result]) -> Result:
    """What ``read`` takes out of a worker's answer; an answer that makes no sense is the medium's fault."""
    try:
        return read()
    except (KeyError, TypeError, ValueError, OverflowError):
        raise MediaDecodeError(FAILS) from None


def _cost(entry: Mapping[str, Any]) -> MediumCost:
    """One cost as a worker tells it, every value of its type and above nothing."""
    grid = Grid(**{name: int(entry["grid"][name]) for name in ("t", "h", "w")})
    sizes = ("width", "height", "resized_width", "resized_height", "tokens", "frames")
    cost = MediumCost(
        kind="video" if entry["kind"] == "video" else "image",
        grid=grid,
        seconds=float(entry["seconds"]),
        sampled_fps=float(entry["sampled_fps"]),
        **{name: int(entry[name]) for name in sizes},
    )
    if min(grid.t, grid.h, grid.w, cost.tokens, cost.width, cost.height) < 1:
        raise ValueError(entry)
    return cost


def _name(cost: MediumCost, seconds_per_grid: float) -> bytes:
    """What a medium's embeddings and positions depend on besides its patches."""
    return repr((cost.kind, cost.grid, seconds_per_grid)).encode()


def _read_into(file: int, start: int, patches_PC: np.ndarray, name: bytes) -> bytes:
    """Fills ``patches_PC`` from ``file`` and returns the SHA-256 of ``name`` and the patches.

    Made here and not by the worker: a worker that a file has taken over must not choose under which name
    other requests find its pixels. Read and not mapped: a mapped file that shrinks would end this process.
    """
    digest = hashlib.sha256(name)
    data, done = patches_PC.data.cast("B"), 0
    while done < len(data):
        count = os.preadv(file, [data[done : done + PIECE_BYTES]], start + done)
        if count == 0:
            raise MediaDecodeError(FAILS)
        digest.update(data[done : done + count])
        done += count
    return digest.digest()
