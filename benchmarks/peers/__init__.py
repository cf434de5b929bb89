"""The contestants of the benchmarks: one class each, the same few tasks, as a careful user would write them.

Every class loads one checkpoint in its constructor and has the methods of `Peer`. Nothing is timed here: the
worker process around a peer holds the clock.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from benchmarks.checkpoints import Shape


class PeerUnavailable(Exception):
    """A contestant that can't run here, in one sentence: a package or a feature that is missing."""


class Peer(Protocol):
    """What a contestant can do.

    Weights stay loaded between tasks; every ``begin`` forgets what was before.
    """

    def prefill(self, ids: list[int]) -> None:
        """Compute a prompt from nothing, to the logits of the token after it."""

    def begin_streams(self, prompts: list[list[int]], room: int) -> None:
        """Compute the prompts; up to ``room`` steps follow."""

    def step(self) -> None:
        """One greedy token for every stream."""

    def streamed(self) -> list[list[int]]:
        """The tokens of every stream so far."""

    def begin_picture(self, path: str) -> None:
        """Preprocess a picture, ready for the tower."""

    def encode(self) -> None:
        """The tower's embeddings of the picture."""

    def embeddings(self) -> Any:
        """What ``encode`` computed last: (N, D) float32."""

    def logits(self, ids: list[int]) -> Any:
        """(V,) float32 logits of the token after a prompt."""

    def decoder_bytes(self) -> int:
        """Bytes of weights that a decoded token reads: layers, last norm, head."""

    def weight_bytes(self) -> int:
        """Bytes of all the weights of the checkpoint."""


def load_peer(who: str, shape: Shape, weights: str, parts: tuple[str, ...]) -> Peer:
    """The contestant ``who`` with its weights. ``parts``: of "text" and "vision", what will be used.

    Raises PeerUnavailable.
    """
    if who == "transformers":
        from benchmarks.peers.with_transformers import TransformersPeer as made
    elif who == "llama.cpp":
        from benchmarks.peers.with_llama import LlamaPeer as made  # type: ignore[assignment]
    else:
        from benchmarks.peers.with_qvl import QvlPeer as made  # type: ignore[assignment]
    return made(shape, weights, parts)


def stored_bytes(*modules: Any) -> int:
    """Bytes of the parameters and buffers in torch modules that share none of them."""
    tensors = (t for module in modules for t in [*module.parameters(), *module.buffers()])
    return sum(t.numel() * t.element_size() for t in tensors)


def folder_bytes(folder: Path, pattern: str = "*.safetensors") -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))
