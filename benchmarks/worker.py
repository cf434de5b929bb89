"""One contestant in a process of its own: loads a checkpoint, then answers one JSON line for each on stdin.

    python -m benchmarks.worker WHO WEIGHTS --shape cut3b --parts text,vision

Holds the clock: only the contestant's own work is between its two readings. Several states (streams that are
under way, pictures) live side by side under names, so that rounds can go back and forth between them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checkpoints import CUT_3B, TINY, Shape, prompt_ids
from benchmarks.peers import Peer, PeerUnavailable, load_peer

SHAPES = {shape.name: shape for shape in (CUT_3B, TINY)}
SHOWN_LOGITS = 512  # of them, evenly spread, are compared between contestants


class Tasks:
    """What a worker can be asked: every public method takes JSON values and returns some."""

    def __init__(self, peer: Peer, load: dict[str, float]) -> None:
        self._peer = peer
        self._load = load
        self._states: dict[str, Peer] = {}

    def facts(self) -> dict[str, float]:
        """Bytes and seconds that belong to the loaded checkpoint."""
        sizes = {"decoder_bytes": self._peer.decoder_bytes(), "weight_bytes": self._peer.weight_bytes()}
        return {**sizes, **self._load}

    def prefill(self, tokens: int) -> float:
        """Seconds for a prompt of so many tokens, from nothing to its logits."""
        peer, ids = self._fresh("prefill"), prompt_ids(tokens)
        return seconds_of(lambda: peer.prefill(ids))

    def begin_streams(self, name: str, streams: int, context: int, room: int) -> None:
        prompts = [prompt_ids(context, seed=i) for i in range(streams)]
        self._fresh(name).begin_streams(prompts, room)

    def steps(self, name: str, count: int) -> list[float]:
        """Seconds of each of the next steps of the streams."""
        return [seconds_of(self._states[name].step) for _ in range(count)]

    def streamed(self, name: str) -> list[list[int]]:
        return self._states[name].streamed()

    def begin_picture(self, name: str, path: str) -> None:
        self._fresh(name).begin_picture(path)

    def encode(self, name: str) -> float:
        return seconds_of(self._states[name].encode)

    def encode_grid(self, height: int, width: int) -> dict[str, float]:
        """A picture of height x width random patches.

        Seconds, and bytes at most above weights and patches.
        """
        small, large = random_picture(8, 8), random_picture(height, width)
        peer: Any = self._fresh("grid")
        peer.picture = small
        peer.encode()  # maps the weights in
        peer.picture = large
        before = memory().get("now", 0.0)
        forget_peak()
        seconds = seconds_of(peer.encode)
        return {"seconds": seconds, "bytes": memory().get("peak", 0.0) - before}

    def forget(self) -> None:
        self._states.clear()

    def logits(self, tokens: int) -> list[float]:
        """Some of the logits after a prompt, for comparison."""
        return sample(self._fresh("logits").logits(prompt_ids(tokens)))

    def embeddings(self, name: str) -> list[float]:
        """Some of the embeddings of the picture that was encoded last, for comparison."""
        return sample(self._states[name].embeddings())

    def memory(self) -> dict[str, float]:
        """Bytes in memory, now and at most since loading began."""
        return memory()

    def _fresh(self, name: str) -> Peer:
        """A state of its own on the same weights."""
        self._states.pop(name, None)
        self._states[name] = copy.copy(self._peer)
        return self._states[name]


def random_picture(height: int, width: int) -> dict[str, Any]:
    """What an image processor returns, of noise."""
    import torch

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(height * width, 3 * 2 * 14 * 14, generator=generator)
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, height, width]])}


def seconds_of(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def sample(values: Any) -> list[float]:
    flat = np.asarray(values, dtype=np.float32).reshape(-1)
    return [float(value) for value in flat[np.linspace(0, flat.size - 1, SHOWN_LOGITS).astype(int)]]


def memory() -> dict[str, float]:
    """From Linux' account of this process; elsewhere nothing."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    kilobytes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    names = {"now": "VmRSS", "peak": "VmHWM"}
    return {name: 1024.0 * int(kilobytes[key]) for name, key in names.items() if key in kilobytes}


def forget_peak() -> None:
    """From here on ``peak`` counts anew."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def load(who: str, shape: Shape, weights: str, parts: tuple[str, ...]) -> Tasks:
    """The contestant with its checkpoint, and what loading took."""
    if who in ("qvl", "transformers"):  # what an import costs is not the checkpoint's doing
        library = __import__(who)
        _ = library.Qwen2_5_VLForConditionalGeneration
    before = memory().get("now", 0.0)
    forget_peak()
    start = time.perf_counter()
    peer = load_peer(who, shape, weights, parts)
    took = {"load_seconds": time.perf_counter() - start}
    if "peak" in memory():
        took["load_peak_bytes"] = memory()["peak"] - before
    return Tasks(peer, took)


def serve(tasks: Tasks, requests: Iterator[str], reply: Callable[[dict[str, Any]], None]) -> None:
    for line in requests:
        request = json.loads(line)
        method = getattr(tasks, request.pop("task"))
        try:
            reply({"result": method(**request)})
        except PeerUnavailable as reason:
            reply({"unavailable": str(reason)})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("who", choices=["qvl", "transformers", "llama.cpp"])
    parser.add_argument("weights")
    parser.add_argument("--shape", choices=SHAPES, default=CUT_3B.name)
    parser.add_argument("--parts", default="text", help="of text,vision: what will be used")
    options = parser.parse_args()
    # Libraries print what they like; the protocol gets the real stdout to itself.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=out, flush=True)

    try:
        tasks = load(options.who, SHAPES[options.shape], options.weights, tuple(options.parts.split(",")))
    except PeerUnavailable as reason:
        return reply({"unavailable": str(reason)})
    reply({"result": "ready"})
    return serve(tasks, iter(sys.stdin.readline, ""), reply)


if __name__ == "__main__":
    main()
