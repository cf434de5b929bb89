"""The measuring side of a worker process: starts it, asks it, ends it.

And the environment all of them share.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from benchmarks.checkpoints import ROOT, WORK
from benchmarks.peers import PeerUnavailable

THREADS = 2
# What picks the instruction set in libraries that are not ours: the same one for every contestant that has a
# switch.
ISA_SWITCHES = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
}


def environment(isa: str = "", threads: int = THREADS) -> dict[str, str]:
    """For every process that is measured.

    ``isa``: the value of ``QVL_KERNELS``; "" leaves the choice to qvl.
    """
    chosen = {"QVL_KERNELS": isa, **ISA_SWITCHES.get(isa, {})} if isa else {}
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", **chosen}


@dataclass(frozen=True)
class Contestant:
    """A library with weights in one format."""

    who: str
    weights: str

    def __str__(self) -> str:
        return f"{self.who} {self.weights}"


class Worker:
    """A contestant's process. Its own output goes to a log file beside the checkpoints.

    Raises PeerUnavailable where the contestant can't run here, RuntimeError where it failed.
    """

    def __init__(self, contestant: Contestant, shape: str, parts: str = "text", isa: str = "") -> None:
        self.contestant = contestant
        WORK.mkdir(parents=True, exist_ok=True)
        self.log = WORK / f"{contestant}.log".replace(" ", "-")
        command = [sys.executable, "-m", "benchmarks.worker", contestant.who, contestant.weights]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--shape", shape, "--parts", parts],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=environment(isa),
            )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, task: str, **arguments: Any) -> Any:
        """The result of one task."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; its log says why
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])
            raise RuntimeError(f"{self.contestant} ended in the middle of its work:\n{tail}")
        answer = json.loads(line)
        if "unavailable" in answer:
            raise PeerUnavailable(answer["unavailable"])
        return answer["result"]

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
