"""What an engine is told and what it tells of itself: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qvl.errors import GenerationError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class EngineSettings:
    """``max_step_tokens``: tokens that one pass through the network computes; long prompts are cut into such
    pieces. ``max_sequences``: sequences (beams counted) that are under way at the same time. ``kv_dtype``:
    what new caches keep keys and values in, float32, bfloat16 or int8; None: as the network computes.

    ``kv_bytes``: of memory for keys and values, those that are kept for later requests included; None: no
    limit. Requests wait for their share, and the youngest one gives its own up, and is computed again later,
    where the others outgrow it. While a buffer grows, that one buffer (of one layer of one sequence) is there
    twice. What a draft model keeps is not counted.
    ``keep_prefixes``: leave keys and values of finished requests for prompts that begin in the same way;
    needs ``kv_bytes``. ``vision_bytes``: of embeddings of media that are kept for later requests; 0: none.

    ``client_share``: of ``max_sequences``, what one client's running sequences may take while sequences of
    others wait. ``step_seconds``: what a step should take while sequences decode (twice what decoding takes,
    if that is more): the rest of it is given to prompts and to the encoding of pictures; None: as long as it
    takes.
    """

    max_step_tokens: int = 2048
    max_sequences: int = 256
    kv_dtype: torch.dtype | None = None
    kv_bytes: int | None = None
    keep_prefixes: bool = False
    vision_bytes: int = 0
    client_share: float = 1.0
    step_seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.kv_bytes is not None and self.kv_bytes < 1) or self.vision_bytes < 0:
            raise GenerationError(
                "kv_bytes must be at least 1 (or None), and vision_bytes at least 0, "
                f"not {self.kv_bytes} and {self.vision_bytes}."
            )
        if self.keep_prefixes and self.kv_bytes is None:
            raise GenerationError("keep_prefixes needs kv_bytes: without a limit all memory would be kept.")
        if not 0 < self.client_share <= 1:
            raise GenerationError(f"client_share must lie above 0 and not above 1, not {self.client_share}.")
        if self.step_seconds is not None and not self.step_seconds > 0:
            raise GenerationError(
                f"step_seconds must be above 0 (or None for no limit), not {self.step_seconds}."
            )


@dataclass
class Counters:
    """What counts from an engine's start.

    ``prompt_tokens`` and ``output_tokens``: computed, and drawn. ``prefix_tokens``: of prompts, taken from
    other requests' keys. ``preempted``: times that a running request gave up its memory, and
    ``recomputed_tokens``: what was computed again because of it. ``media_encoded`` and ``media_reused``:
    pictures and videos. ``finished`` counts ends of every kind, ``failed`` those with reason "error".
    """

    steps: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    prefix_tokens: int = 0
    preempted: int = 0
    recomputed_tokens: int = 0
    media_encoded: int = 0
    media_reused: int = 0
    finished: int = 0
    failed: int = 0


@dataclass
class EngineStats(Counters):
    """An engine at one moment: its counters, and gauges. ``running`` and ``waiting`` requests, ``kv_bytes``
    allocated, of these ``kept_bytes`` in ``kept_prefixes``, ``vision_bytes`` of kept embeddings, ``encoding``
    media on their way through the tower.
    """

    running: int = 0
    waiting: int = 0
    kv_bytes: int = 0
    kept_bytes: int = 0
    kept_prefixes: int = 0
    vision_bytes: int = 0
    encoding: int = 0
