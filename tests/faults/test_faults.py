"""A real server among people who mean harm: others get their answers, and nothing of it is left behind.

A third of all requests is malformed, hostile or cut off; the media workers are killed on the way, and the
memory for keys, values and embeddings is far too small for what is asked at once. Every good answer must be
the one that its request gets alone. See `support/hostile.py`, `broken_off.py` and `honest.py` for what is
asked.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from support import broken_off, honest, hostile
from support.hostile import Bad
from support.media import encoded, http_server, photo, redirects, sends
from support.serve_process import ServeProcess, serve_process

AT_ONCE = 16
WORKERS = 2  # that open media
GROWTH = 0.05  # of the memory after the first round
ENDED_HERE = re.compile(r"Traceback|[\w/]+\.py\b|/(?:usr|home|work|tmp|proc|etc)/|<class| at 0x|site-pack")
CLASSES = re.compile(r"\b(?:[A-Z]\w*(?:Error|Exception)|NoneType|pydantic|numpy|torch|PIL|libav\w*)\b")

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures processes by /proc")


@dataclass
class Storm:
    """What came of one round: how many of each kind were asked, and everything that was wrong."""

    asked: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")  # of the bad requests


@dataclass(frozen=True)
class Place:
    """A server, what may be asked of it, and what it answered to each good request alone."""

    server: ServeProcess
    good: tuple[honest.Good, ...]
    bad: tuple[Bad, ...]
    alone: dict[str, Any]
    canary: list[str]  # what was asked of the server that must never be asked


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tricky_folder(tmp_path_factory.mktemp("faults"))
    answers: dict[str, Any] = {}
    with http_server(Everything()) as (canary_port, canary), http_server(answers) as (port, _):
        answers.update(web_server(port, canary_port))
        with serve_process(*options(root, port)) as server:
            good = tuple(honest.requests(root, port))
            bad = tuple(bad_requests(root, port, canary_port))
            yield Place(server, good, bad, asyncio.run(answers_alone(server, good)), canary)


class Everything(dict):
    """Answers of a web server that has a picture at every path."""

    def __missing__(self, path: str) -> Any:
        return sends(encoded(photo()))


def tricky_folder(folder: Path) -> Path:
    """A media root with ways out of it."""
    root = folder / "media"
    (root / "folder").mkdir(parents=True)
    outside = folder / "secret.png"
    outside.write_bytes(encoded(photo()))
    (root / "link.png").symlink_to(outside)
    (root / "linked").symlink_to(folder)
    os.mkfifo(root / "pipe")
    return root


def options(root: Path, port: int) -> list[str]:
    """Small budgets, so that a hundred requests fill them."""
    given = {
        "max-sequences": AT_ONCE,
        "dtype": "float32",  # in bfloat16 who else is in the batch moves the last digits of an answer
        "kv-memory": "960K",
        "vision-memory": "100K",  # four pictures
        "max-pixels": 28_224,
        "media-workers": WORKERS,
        "media-root": root,
        "allow-host": f"127.0.0.1:{port}",
        "max-body": "6M",
        "max-medium": "2M",
        "max-waiting-memory": "256M",
        "max-video-frames": 10_000,
        "max-output-tokens": 1000,
        "fetch-seconds": 3,
        "body-seconds": 2,
        "decode-memory": "1G",
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def web_server(port: int, canary: int) -> dict[str, Any]:
    """Answers by path. ``port``: its own."""
    picture = (honest.PICTURES / "digits.png").read_bytes()
    return {
        "/digits.png": sends(picture),
        "/moved": redirects("/digits.png"),
        "/to-loopback": redirects(f"http://127.0.0.1:{canary}/"),
        "/to-metadata": redirects("http://169.254.169.254/latest/meta-data/"),
        "/to-file": redirects("file:///etc/passwd"),
        "/to-itself": redirects("/to-itself"),
        "/to-rebind": redirects(f"http://rebind.test:{canary}/"),
        "/missing": sends(b"", 404),
        "/html": sends(b"<html>", Content_Type="image/png"),
        "/compressed": sends(picture, Content_Encoding="gzip"),
        "/lies": sends(picture, Content_Length="99999999999"),
        "/drips": drips,
        "/endless.mp4": endless,
    }


def drips(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b"\x89")
        time.sleep(0.1)


def endless(handler: Any) -> None:
    """A video without end, as long as somebody takes it."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2")
    for _ in range(1000):
        handler.wfile.write(b"\0\1\0\0mdat" + b"\0" * 65_528)


def bad_requests(root: Path, port: int, canary: int) -> Iterator[Bad]:
    yield from hostile.malformed()
    yield from hostile.misdirected()
    yield from hostile.schemas()
    yield from hostile.media()
    yield from hostile.media_options()
    yield from hostile.encodings()
    yield from hostile.addresses(port, canary)
    yield from hostile.paths(str(root))


def asking(server: ServeProcess) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=4 * AT_ONCE, max_keepalive_connections=AT_ONCE)
    return httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits, trust_env=False)


async def answers_alone(server: ServeProcess, good: tuple[honest.Good, ...]) -> dict[str, Any]:
    async with asking(server) as client:
        return {one.name: await one.answer(client) for one in good}


def complaint(bad: Bad, response: httpx.Response) -> str | None:
    """What is wrong with the answer to a bad request: it must be a plain 4xx in OpenAI's shape."""
    if response.status_code == 200 and bad.harmless:
        return None
    allowed = (bad.status,) if bad.status else (400, 403)
    if response.status_code not in allowed:
        return f"status {response.status_code}: {response.text[:200]}"
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return f"not OpenAI's shape: {response.text[:200]}"
    if set(error) != {"message", "type", "param", "code"} or not str(error["message"]).strip():
        return f"not OpenAI's shape: {error}"
    message = error["message"]
    if ENDED_HERE.search(message) or CLASSES.search(message) or len(message) > 1000:
        return f"says too much: {message}"
    return None if bad.says in message else f"does not say {bad.says!r}: {message}"


async def storm(place: Place, counts: tuple[int, int, int], seed: int, kills: int = 0) -> Storm:
    """So many good requests, bad ones, and such that are broken off, AT_ONCE at a time, in an order that
    ``seed`` says, while ``kills`` media workers are killed."""
    result = Storm()
    good, bad, broken = counts
    port = int(place.server.url.rpartition(":")[2])
    async with asking(place.server) as client:

        async def ask_good(one: honest.Good) -> None:
            answer = await one.answer(client)
            if answer != place.alone[one.name]:
                result.wrong.append(f"{one.name}: {answer} instead of {place.alone[one.name]}")

        async def ask_bad(one: Bad) -> None:
            began = time.monotonic()
            response = await client.request(one.method, one.path, content=one.content, headers=one.headers)
            found = complaint(one, response)
            result.slowest = max(result.slowest, (time.monotonic() - began, one.name))
            if found is not None:
                result.wrong.append(f"{one.name}: {found}")

        async def ask_broken(one: broken_off.Ask) -> None:
            await broken_off.ask(port, one)

        jobs = list(
            chain(
                (("good", ask_good, one) for one in islice(cycle(place.good), good)),
                (("bad", ask_bad, one) for one in islice(cycle(place.bad), bad)),
                (("broken off", ask_broken, one) for one in islice(cycle(broken_off.ALL), broken)),
            )
        )
        random.Random(seed).shuffle(jobs)
        killing = asyncio.create_task(kill_workers(place.server, kills))
        await ask_all(jobs, result)
        result.asked["worker killed"] = await killing
    return result


async def ask_all(jobs: list[tuple[str, Callable[[Any], Awaitable[None]], Any]], result: Storm) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(kind: str, ask: Callable[[Any], Awaitable[None]], what: Any) -> None:
        async with gate:
            result.asked[kind] += 1
            try:
                await ask(what)
            except Exception as error:
                name = getattr(what, "name", None) or what.__name__
                result.wrong.append(f"{kind}, {name}: {type(error).__name__} {error}"[:400])

    await asyncio.gather(*(one(*job) for job in jobs))


async def kill_workers(server: ServeProcess, count: int) -> int:
    """Kills one media worker after the other, once all are ready, so that no job meets two deaths."""
    killed = 0
    while killed < count:
        while len(server.ready_workers()) < WORKERS:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)  # jobs that a dead one left are done by then
        with suppress(ProcessLookupError, IndexError):  # one that holds much memory is replaced by the server
            os.kill(server.ready_workers()[0], signal.SIGKILL)
            killed += 1
    return killed


def gauges(server: ServeProcess) -> dict[str, float]:
    """Metrics without labels."""
    text = httpx.get(f"{server.url}/metrics", trust_env=False).text
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)}


def settle(server: ServeProcess) -> dict[str, float]:
    """Waits until nothing is under way and all workers are there; the metrics then."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = gauges(server)
        busy = found["qvl_running"] or found["qvl_waiting"] or found["qvl_media_encoding"]
        if not busy and len(server.workers()) == len(server.ready_workers()) == WORKERS:
            return found
        time.sleep(0.1)
    raise AssertionError(f"still at work: {found}, workers {server.workers()}")


def check_nothing_is_left(place: Place, memory: tuple[int, int], descriptors: int) -> None:
    """``memory`` and ``descriptors``: of before."""
    server = place.server
    after = settle(server)
    assert after["qvl_kv_bytes"] == after["qvl_kept_prefix_bytes"]  # no sequence holds any
    assert after["qvl_sequences_failed_total"] == after["qvl_engine_errors_total"] == 0
    assert server.process.poll() is None
    for what, was, now in zip(("server", "with workers"), memory, server.memory(), strict=True):
        said = f"{what}: {was / 2**20:.1f} MiB before, {now / 2**20:.1f} MiB after"
        print(said)
        assert now <= was * (1 + GROWTH), said
    assert server.descriptors() <= descriptors + 2, (descriptors, server.descriptors())
    log = server.log.read_text()
    assert "Traceback" not in log
    assert re.findall(r'.*"status": 5\d\d.*', log) == []
    assert place.canary == []


def check_it_was_hard(place: Place) -> None:
    """All of this means something only where there was too little memory for all at once, and people left."""
    text = httpx.get(f"{place.server.url}/metrics", trust_env=False).text
    found = gauges(place.server)
    assert found["qvl_preemptions_total"] > 0
    assert found["qvl_media_encoded_total"] > 2 * sum("picture" in one.name for one in place.good)
    (left,) = re.findall(r'^qvl_answers_total\{end="abort"\} (\S+)$', text, re.MULTILINE)
    assert float(left) >= 4  # in two rounds one in the middle of a stream, one with three answers


def all_wrong(place: Place, result: Storm) -> str:
    """With what the server logged beside its lines about requests."""
    log = [line for line in place.server.log.read_text().splitlines() if not line.startswith("{")]
    return "\n".join([*result.wrong, *log])


def run_storm(place: Place, counts: tuple[int, int, int], kills: int) -> None:
    """Everything once, so that all that is ever kept is there; then ``counts``, and nothing more may be."""
    everything = (len(place.good), len(place.bad), len(broken_off.ALL))
    first = asyncio.run(storm(place, everything, seed=1))
    assert not first.wrong, all_wrong(place, first)
    settle(place.server)
    before = (place.server.memory(), place.server.descriptors())
    result = asyncio.run(storm(place, counts, seed=2, kills=kills))
    print(f"{dict(result.asked)}, slowest bad request {result.slowest}")
    assert not result.wrong, all_wrong(place, result)
    assert result.asked["worker killed"] == kills
    check_nothing_is_left(place, *before)
    check_it_was_hard(place)


def test_everything_once_and_a_hundred_more(place: Place) -> None:
    run_storm(place, (66, 24, 10), kills=1)


@pytest.mark.slow
def test_a_thousand(place: Place) -> None:
    run_storm(place, (666, 294, 40), kills=5)
