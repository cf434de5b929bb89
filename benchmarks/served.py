"""Servers as processes: a checkpoint that can be served, the ways to start one, their readiness and memory.

The random checkpoints know a few hundred words, and their heads have the released number of rows: most of
what they say would decode to nothing, and no stream would show it. So the tokenizer that is served beside the
same weights has a word for every row.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import string
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import ROOT, WORK, Shape, checkpoint, made_once
from benchmarks.peers import PeerUnavailable
from benchmarks.process import environment

START_SECONDS, STOP_SECONDS = 180.0, 45.0
PEER = "benchmarks.peers.serving_transformers"
QVL, BATCHED, SERVE = "qvl serve", "transformers, batched", "transformers serve"


def served_checkpoint(shape: Shape) -> Path:
    """The fp32 checkpoint with a word for every id; its weights are links to those of the other folder."""
    weights = checkpoint(shape, "fp32")
    return made_once(f"{shape.name}-served", lambda folder: write_served(weights, shape, folder))


def write_served(weights: Path, shape: Shape, folder: Path) -> None:
    folder.mkdir(parents=True)
    for path in weights.iterdir():
        if path.suffix == ".safetensors":
            (folder / path.name).symlink_to(os.path.relpath(path, folder))
        else:
            shutil.copy(path, folder / path.name)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    add_words(tokenizer, shape.vocabulary)
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    # transformers 4.57 reads the outer config's `architectures` from the inner one of the text.
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["text_config"]["architectures"] = config["architectures"]
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def add_words(tokenizer: dict[str, Any], size: int) -> None:
    """Give every free id below ``size`` a word of its own, which nobody's text is ever cut into.

    Each ends in a space: what passes on whole words passes it on at once.
    """
    vocabulary = tokenizer["model"]["vocab"]
    # An added token keeps its number in a vocabulary of all numbers only if it has its place there too.
    vocabulary |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    taken = set(vocabulary.values())
    letters = itertools.product(string.ascii_lowercase, repeat=4)
    for number in range(size):
        if number not in taken:
            vocabulary["".join(next(letters)) + "\u0120"] = number  # how byte-level BPE writes a space


@dataclass(frozen=True)
class Way:
    """How a server is started: ``command`` lacks its port; ``ready``: a path that says 200 once it is."""

    name: str
    command: tuple[str, ...]
    ready: str


def way(name: str, shape: Shape) -> Way:
    """The server ``name`` on the checkpoint, as its users start it."""
    folder = str(served_checkpoint(shape))
    if name == QVL:
        command = ("-m", "qvl.cli", "serve", "--model", folder, "--dtype", "float32")
        return Way(name, (sys.executable, *command), "/ready")
    kind = "serve" if name == SERVE else "batched"
    return Way(name, (sys.executable, "-m", PEER, kind, "--model", folder), "/health")


class Server:
    """A server's process. Its own output goes to a log file beside the checkpoints.

    Raises RuntimeError where it ends before it is ready, PeerUnavailable where it says it can't run here.
    ``start_seconds``: from its start until it was ready.
    """

    def __init__(self, how: Way, isa: str = "") -> None:
        self.name = how.name
        self.url = f"http://127.0.0.1:{free_port()}"
        WORK.mkdir(parents=True, exist_ok=True)
        self.log = WORK / f"{how.name}.log".replace(" ", "-").replace(",", "")
        self.began = time.perf_counter()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*how.command, "--port", self.url.rpartition(":")[2]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment(isa),
            )
        try:
            self._wait(self.url + how.ready)
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - self.began

    def _wait(self, url: str) -> None:
        while not answers(url):
            if self.process.poll() is not None:
                lines = self.log.read_text(errors="replace").splitlines()
                if self.process.returncode == UNAVAILABLE:
                    raise PeerUnavailable(lines[-1])
                raise RuntimeError(f"{self.name} ended before it was ready:\n" + "\n".join(lines[-12:]))
            if time.perf_counter() - self.began > START_SECONDS:
                raise RuntimeError(f"{self.name} was not ready within {START_SECONDS:g} seconds")
            time.sleep(0.02)

    def memory(self, field: str = "VmRSS") -> float:
        """Bytes of it and its children that are in memory; 0 where Linux' account of them is missing.

        ``field``: of a process's status; "RssAnon" leaves out what is mapped from files, as weights are.
        """
        return sum(bytes_of(number, field) for number in family(self.process.pid))

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


UNAVAILABLE = 69  # the exit status of a peer that can't run here: EX_UNAVAILABLE of sysexits.h


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def family(process: int) -> list[int]:
    """A process and all that it started, as far as Linux tells."""
    found = [process]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in path.read_text().split()]
    return found


def bytes_of(process: int, field: str) -> float:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0.0)
