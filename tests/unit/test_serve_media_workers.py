"""Workers may be killed, run out of memory or time, or be left alone: the others go on."""

import asyncio
import gc
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from qvl.errors import InputError, MediaDecodeError, MediaTooLargeError
from qvl.hub import resolve
from qvl.serve.errors import DrainingError
from qvl.serve.media import pool as pools
from qvl.serve.media.datauri import read_data_uri
from qvl.serve.media.held import Allowance, HeldFile, nameless_file
from qvl.serve.media.process import Launch, WorkerDiedError, WorkerStartError
from qvl.serve.media.service import MediaRequest, MediaService
from qvl.serve.settings import Access, Limits, ServeSettings
from support.media import data_uri, encoded, photo, png_bomb, running_media


@pytest.fixture(scope="module")
def media():
    os.environ["QVL_API_KEY"] = "a secret of the server"
    try:
        with running_media(workers=2) as running:
            yield running
    finally:
        del os.environ["QVL_API_KEY"]


def picture(seed=0, **options):
    return MediaRequest(f"messages[{seed}]", "image", data_uri(encoded(photo(seed=seed))), options)


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def idle(media):
    """Workers that wait for a job."""
    return len(media.service._pool._idle)


def stop_workers(media):
    """All workers, once they wait for jobs, which they take from now on and do not answer."""
    until(lambda: idle(media) == len(media.workers) > 0)
    for pid in media.workers:
        os.kill(pid, signal.SIGSTOP)
    return media.workers


def may_leave_the_network():
    """Whether this system lets a process make a network of its own."""
    program = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x50000000) != 0)"
    return subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_worker_has_no_secrets_and_little_else(media):
    for pid in media.workers:
        proc = Path(f"/proc/{pid}")
        environment = (proc / "environ").read_bytes()
        assert b"QVL_API_KEY" not in environment and b"a secret" not in environment
        assert b"OMP_NUM_THREADS=1\0" in environment
        assert len(list((proc / "fd").iterdir())) <= 4  # stdin, stdout, stderr and its socket
        assert os.getsid(pid) == pid
        limits = {
            line[:25].strip(): line[25:].split()[0] for line in (proc / "limits").read_text().splitlines()
        }
        assert limits["Max core file size"] == "0"
        assert limits["Max open files"] == "64"
        assert limits["Max file size"] == str(4 * 2**30)
        assert 4 * 2**30 < int(limits["Max data size"]) < 6 * 2**30
        assert (proc / "oom_score_adj").read_text() == "1000\n"
        assert may_leave_the_network() == (
            (proc / "ns/net").readlink() != Path("/proc/self/ns/net").readlink()
        )
        assert (proc / "cwd").resolve() == Path("/")


def test_a_worker_that_is_killed_while_it_works_costs_nobody_an_answer(media):
    before = stop_workers(media)
    job = media.begin(media.service.prepare([picture(1)], most_tokens=1000))
    until(lambda: idle(media) == 1)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert job.result(60)[0].costs[0].width == 90
    until(lambda: idle(media) == 2)
    assert not set(before) & set(media.workers)
    assert media.service.alive


def test_a_medium_that_makes_its_decoder_crash_is_at_fault(media):
    before, pool = stop_workers(media), media.service._pool
    job = media.begin(media.service.prepare([picture(3)], most_tokens=1000))
    until(lambda: idle(media) == 1)
    (busy,) = [worker.process.pid for worker in pool._workers if worker not in pool._idle]
    os.kill(busy, signal.SIGSEGV)
    for pid in before:
        os.kill(pid, signal.SIGCONT)
    with pytest.raises(MediaDecodeError, match=r"^messages\[3\]: its content makes the decoder fail$"):
        job.result(60)
    assert media.prepare(picture(4))[0].costs[0].width == 90
    until(lambda: idle(media) == 2)
    assert set(before) - set(media.workers) == {busy}


@pytest.mark.parametrize(("killed", "workers", "runs"), [(True, 1, 2), (True, 2, 3), (False, 2, 1)])
def test_a_job_is_run_again_once_for_every_worker_at_most(monkeypatch, killed, workers, runs):
    pool = pools.WorkerPool(Launch("", Limits()), workers, 1.0)
    pool._closed, asked = False, []

    async def run_once(message, descriptors):
        asked.append(message)
        raise WorkerDiedError("gone", killed=killed)

    monkeypatch.setattr(pool, "_run_once", run_once)
    with pytest.raises(MediaDecodeError, match="makes the decoder fail"):
        asyncio.run(pool.run({}, []))
    assert len(asked) == runs


def test_jobs_that_nobody_waits_for_hold_nobody_up(media, monkeypatch):
    monkeypatch.setattr(pools, "ABANDONED_SECONDS", 0.05)
    before, pool = stop_workers(media), media.service._pool
    stuck = [media.begin(media.service.prepare([picture(n)], most_tokens=1000)) for n in range(10, 14)]
    until(lambda: len(pool._waiting) == 2)  # two are at the workers, two in the queue
    for job in stuck:
        job.cancel()
    assert media.prepare(picture(15))[0].costs[0].width == 90
    until(lambda: idle(media) == 2 and not set(before) & set(media.workers))
    assert not pool._waiting


def test_requests_take_turns(media):
    """A request with many pictures does not keep one with a single picture waiting until its last."""
    large = {"max_pixels": 28**2 * 500, "min_pixels": 28**2 * 400}
    pictures = [picture(n, **large) for n in range(20, 60)]
    many = media.begin(media.service.prepare(pictures, most_tokens=10**6))
    few = media.begin(media.service.prepare([picture(70)], most_tokens=1000))
    assert few.result(30)
    assert not many.done()
    assert len(many.result(60)) == 40


def test_a_worker_that_runs_out_of_memory():
    with running_media(decode_memory=150 * 2**20, image_pixels=10**8) as media:
        before = media.workers
        large = png_bomb(9000)  # 80 MB as it is stored, 320 MB as colours
        with pytest.raises(
            MediaTooLargeError, match=r"messages\[0\]: decoding it needs more memory than this server"
        ):
            media.prepare(MediaRequest("messages[0]", "image", data_uri(large)))
        assert media.prepare(picture(1))[0].costs[0].width == 90
        patches = {"max_pixels": 28**2 * 9000, "min_pixels": 28**2 * 8900}  # 170 MB of them
        with pytest.raises(MediaTooLargeError, match="decoding it needs more memory"):
            media.prepare(MediaRequest("messages[0]", "image", data_uri(encoded(photo())), patches))
        assert media.prepare(picture(2))[0].costs[0].width == 90
        assert media.service.alive and len(before) == 1


def test_a_medium_that_takes_too_long():
    with running_media(decode_seconds=1.0) as media:
        (pid,) = stop_workers(media)
        with pytest.raises(
            MediaTooLargeError, match=r"messages\[0\]: decoding it takes more than the 1 seconds"
        ):
            media.prepare(picture(0))
        until(lambda: not alive(pid))
        assert media.prepare(picture(1))[0].costs[0].width == 90


def test_a_worker_ends_itself_when_its_server_forgets_it():
    """Its own alarm goes off a little after the time in which its server should have ended it."""
    program = (
        "import socket, sys, time\n"
        "from qvl.serve.media import worker\n"
        "from qvl.serve.settings import Limits\n"
        "worker.GRACE_SECONDS, worker._answer = 0.1, lambda *_: time.sleep(30)\n"
        "worker._serve(socket.socket(fileno=int(sys.argv[1])), None, Limits(decode_seconds=0.1), 0)\n"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        handed = [theirs.fileno()]
        process = subprocess.Popen([sys.executable, "-c", program, str(handed[0])], pass_fds=handed)
        ours.sendall(b"{}")
        assert process.wait(20) == -signal.SIGALRM


def test_a_worker_ends_with_its_server_though_it_is_at_work():
    program = (
        "import time\n"
        "from qvl.serve.media import worker\n"
        "worker._answer = lambda *_: time.sleep(60)\n"
        "worker.main()\n"
    )
    settings = {"folder": str(resolve("qvl/tiny")), "limits": asdict(Limits())}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = [str(theirs.fileno()), json.dumps(settings)]
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, pass_fds=[theirs.fileno()]
        )
        assert b"ready" in ours.recv(1000)
        ours.sendall(b"{}")
        time.sleep(0.2)
        process.stdin.close()
        assert process.wait(20) == 0


def test_workers_end_with_their_server():
    program = (
        "import asyncio, os, signal\n"
        "from qvl.serve.media.service import MediaService\n"
        "from qvl.serve.settings import ServeSettings\n"
        "async def main():\n"
        "    service = MediaService(ServeSettings(), 'qvl/tiny')\n"
        "    await service.start()\n"
        "    print(*service._pool.pids, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == ServeSettings().media_workers
    until(lambda: not any(map(alive, pids)))


def test_nothing_is_left_behind():
    """No process, no zombie, no descriptor and no file in shared memory, whatever happened meanwhile."""

    async def life():
        service = MediaService(ServeSettings(media_workers=2, access=Access(media_root="/tmp")), "qvl/tiny")
        assert not service.alive
        await service.start()
        pids = service._pool.pids
        assert service.alive and len(pids) == 2
        await service.prepare([picture(n) for n in range(4)], most_tokens=1000)
        with pytest.raises(MediaDecodeError):
            await service.prepare([MediaRequest("x", "image", data_uri(b"nothing"))], most_tokens=1)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        stuck = asyncio.create_task(service.prepare([picture(n) for n in range(5, 9)], most_tokens=1000))
        gone = asyncio.create_task(service.prepare([picture(9)], most_tokens=1000))
        await asyncio.sleep(0.1)
        gone.cancel()
        await service.close()
        with pytest.raises(DrainingError, match=r"messages\[.\]: the server is about to stop"):
            await stuck
        assert not service.alive and service.held_bytes == 0
        with pytest.raises(DrainingError, match="not running"):
            await service.prepare([picture(0)], most_tokens=1000)
        await service.close()
        return pids

    asyncio.run(asyncio.sleep(0))
    gc.collect()
    before, shared = set(os.listdir("/proc/self/fd")), os.listdir("/dev/shm")
    pids = asyncio.run(life())
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before
    assert os.listdir("/dev/shm") == shared
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY  # only workers are limited


@pytest.mark.parametrize(
    "wrong", [{"media_root": "/nowhere/at/all"}, {"fetch_hosts": ("http://x",), "media_root": "/"}]
)
def test_settings_that_cannot_be(wrong):
    before = set(os.listdir("/proc/self/fd"))
    service = MediaService(ServeSettings(access=Access(**wrong)), "qvl/tiny")
    with pytest.raises(InputError, match=r"is not a folder|is no host"):
        asyncio.run(service.start())
    assert not service.alive and set(os.listdir("/proc/self/fd")) == before


def test_requests_with_one_bad_medium_leave_nothing_of_the_others(media):
    bad = MediaRequest("messages[9]", "image", data_uri(b"nothing"))
    media.prepare(picture(80))
    before, held = len(os.listdir("/proc/self/fd")), media.service.held_bytes
    for _ in range(5):
        with pytest.raises(MediaDecodeError, match=r"^messages\[9\]"):
            media.prepare(picture(80), picture(81), bad)
    assert len(os.listdir("/proc/self/fd")) == before
    assert media.service.held_bytes == held


def test_a_job_that_is_run_again_starts_over(media):
    """A worker that was killed may have written a part of the patches into the same file."""
    uri = picture(85).url
    with (
        HeldFile(10**6, Allowance(10**6)) as source,
        open(nameless_file("test"), "w+b", buffering=0) as result,
    ):
        read_data_uri(uri, source)
        result.write(b"a part of an earlier attempt")
        task = {"kind": "image", "format": "PNG", "options": {}}
        job = media.service._pool.run({"task": task, "most_tokens": 100}, [source.fileno, result.fileno()])
        assert media(job)["seconds_per_grid"] == [0.0]
        wanted = media.prepare(picture(85))[0].media[0].patches_PC
        assert os.pread(result.fileno(), 10**7, 0) == wanted.numpy().tobytes()


COST = {
    "kind": "image",
    "width": 9,
    "height": 9,
    "resized_width": 28,
    "resized_height": 28,
    "grid": {"t": 1, "h": 2, "w": 2},
    "tokens": 1,
    "seconds": 0.0,
    "frames": 0,
    "sampled_fps": 0.0,
}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"costs": 5},
        {"costs": [{}]},
        {"costs": [{**COST, "width": "wide"}]},
        {"costs": [{**COST, "grid": {"t": 1, "h": -2, "w": -2}}]},
        {"costs": [{**COST, "tokens": -5}]},
        {"costs": [{**COST, "seconds": [1]}]},
        {"costs": [COST]},
        {"costs": [COST], "seconds_per_grid": []},
        {"costs": [COST], "seconds_per_grid": [float("nan")]},
        {"costs": [COST], "seconds_per_grid": [0.0]},
        {"error": ["decode"], "message": "x" * 10**6},
    ],
    ids=range(12),
)
def test_a_worker_is_not_believed(media, monkeypatch, answer):
    """A decoder that a file has taken over may answer anything; here nothing was written as patches."""

    async def run(message, descriptors):
        if len(descriptors) == 2 and answer.get("seconds_per_grid") == [0.0]:
            os.write(descriptors[1], bytes(7))
        return answer

    monkeypatch.setattr(media.service._pool, "run", run)
    with pytest.raises(MediaDecodeError, match=r"^messages\[86\]: ") as caught:
        media.prepare(picture(86))
    assert len(str(caught.value)) < 600


def test_workers_that_cannot_be_started_again(media, monkeypatch, caplog):
    """Requests do not wait for them, the service says that it is down, and it comes back by itself."""
    start, pool = pools.Worker.start, media.service._pool
    monkeypatch.setattr(pools, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(pools.Worker, "start", failing_start)
    before = stop_workers(media)
    waiting = media.begin(media.service.prepare([picture(90 + n) for n in range(3)], most_tokens=1000))
    until(lambda: idle(media) == 0)
    assert media.service.alive
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(DrainingError, match="no media can be decoded at the moment"):
        waiting.result(60)
    until(lambda: not media.service.alive and pool.pids == [])
    with pytest.raises(DrainingError, match="try again shortly"):
        media.prepare(picture(93))
    assert "could not be started again: not today" in caplog.text
    monkeypatch.setattr(pools.Worker, "start", start)
    until(lambda: media.service.alive and idle(media) == 2)
    assert media.prepare(picture(94))


def test_a_worker_that_is_killed_while_it_starts_costs_nobody_an_answer(monkeypatch):
    start, starts = pools.Worker.start, []

    async def first_killed(launch):
        starts.append(launch)
        return await (failing_start(launch) if len(starts) == 2 else start(launch))

    monkeypatch.setattr(pools, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(pools.Worker, "start", first_killed)
    with running_media() as media:
        os.kill(media.workers[0], signal.SIGKILL)
        until(lambda: len(starts) == 2)
        assert media.prepare(picture(95))
    assert len(starts) == 3


async def failing_start(launch):
    raise WorkerStartError("not today")


def test_a_worker_that_does_not_start_says_why(tmp_path):
    async def start():
        pool = pools.WorkerPool(Launch(str(tmp_path), Limits()), 2, 1.0)
        try:
            await pool.start()
        finally:
            assert pool.pids == [] and not pool.alive

    before = os.listdir("/proc/self/fd")
    with pytest.raises(
        WorkerStartError, match=r"did not start: .*CheckpointNotFoundError.*preprocessor_config"
    ):
        asyncio.run(start())
    assert os.listdir("/proc/self/fd") == before
