"""How much work a task is: bytes that must be read and operations that must be done, from the shape alone.

Two operations for a multiply-add. Only what no implementation can leave out: matrix products and attention;
norms, activations and rotary turns are small beside them.

Legend: T tokens, P patches.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.checkpoints import Shape

PATCH_VALUES = 3 * 14 * 14  # of a still picture: the two halves of the temporal kernel may be added
MERGED = 4
CACHE_BYTES = {"fp32": 4.0}  # of one cached number where the weights are in this format; else 2


@dataclass(frozen=True)
class Work:
    """``peak``: of "fp32", "bf16" and "int8", which multiply-adds the weights allow."""

    bytes: float
    operations: float
    peak: str


def peak_kind(weights: str) -> str:
    """The fastest multiply-adds that an answer in this format allows.

    Quantized weights meet int8 activations.
    """
    formats = {"fp32": "fp32", "F32": "fp32", "bf16": "bf16", "BF16": "bf16", "F16": "bf16"}
    return formats.get(weights, "int8")


def layer_weights(shape: Shape) -> int:
    """Weights in the matrices of one text layer."""
    head = shape.hidden // shape.heads
    attention = 2 * shape.hidden * shape.hidden + 2 * shape.hidden * shape.kv_heads * head
    return attention + 3 * shape.hidden * shape.inner


def head_weights(shape: Shape) -> int:
    return shape.hidden * shape.vocabulary


def prefill(shape: Shape, tokens: int, decoder_bytes: float, weights: str) -> Work:
    """A prompt.

    The head runs on one row, and of the last layer only keys and values are needed on the others.
    """
    head = shape.hidden // shape.heads
    key_value = 2 * shape.hidden * shape.kv_heads * head
    whole = (shape.layers - 1) * layer_weights(shape) + key_value
    one_row = layer_weights(shape) - key_value + head_weights(shape)
    attention = 4 * (shape.layers - 1) * tokens * (tokens + 1) / 2 * shape.hidden + 4 * tokens * shape.hidden
    operations = 2.0 * (tokens * whole + one_row) + attention
    return Work(decoder_bytes, operations, peak_kind(weights))


def decode(shape: Shape, streams: int, context: int, decoder_bytes: float, weights: str) -> Work:
    """One step: the weights once, every stream's cache, and the head on every stream."""
    head = shape.hidden // shape.heads
    cached = 2 * shape.layers * shape.kv_heads * head * context * streams
    products = 2.0 * streams * (shape.layers * layer_weights(shape) + head_weights(shape))
    attention = 4.0 * streams * shape.layers * context * shape.hidden
    size = CACHE_BYTES.get(weights, 2.0)
    return Work(decoder_bytes + cached * size, products + attention, peak_kind(weights))


def vision(shape: Shape, pixels: int, weights: str) -> Work:
    """The tower on a square picture of so many pixels a side: windows of 8 x 8 patches, and whole frames."""
    side = pixels // 14
    patches, wide = side * side, shape.vision_hidden
    matrices = shape.vision_layers * (4 * wide * wide + 3 * wide * shape.vision_inner) + PATCH_VALUES * wide
    merger = (MERGED * wide) ** 2 + MERGED * wide * shape.hidden
    full = len(shape.full_attention)
    pairs = full * patches * patches + (shape.vision_layers - full) * _window_pairs(side)
    operations = 2.0 * patches * matrices + 2.0 * patches / MERGED * merger + 4.0 * pairs * wide
    return Work(0.0, operations, peak_kind(weights.removesuffix("-vision")))


def _window_pairs(side: int) -> int:
    """Pairs of patches that see each other: windows of 8 patches a side, smaller ones at the far edges."""
    edges = [8] * (side // 8) + ([side % 8] if side % 8 else [])
    return sum((a * b) ** 2 for a in edges for b in edges)
