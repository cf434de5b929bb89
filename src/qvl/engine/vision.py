"""Where the embeddings of pictures and videos belong in a step, and until when they are needed.

Knows which tokens of a step are placeholders of which medium; knows nothing about text, and not how the
embeddings are made (`qvl.engine.encoder`).

Legend: T packed tokens of a step, N merged vision tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from qvl.engine.scheduler import Step, Work
from qvl.engine.sequence import Sequence
from qvl.errors import PlaceholderMismatchError
from qvl.types import Prompt, Span


def check_media(prompt: Prompt, merge_size: int) -> None:
    """Raise PlaceholderMismatchError unless every medium has exactly its placeholders."""
    if len(prompt.spans) != len(prompt.media):
        raise PlaceholderMismatchError(
            f"The prompt has places for {len(prompt.spans)} pictures and videos, "
            f"but {len(prompt.media)} were given."
        )
    for span, medium in zip(prompt.spans, prompt.media, strict=True):
        needed = medium.grid.tokens(merge_size)
        if span.length != needed:
            raise PlaceholderMismatchError(
                f"The {medium.kind} at token {span.start} has {span.length} placeholders, but its size makes "
                f"{needed} tokens."
            )


def vision_rows(step: Step, tokens: int) -> tuple[Tensor, Tensor] | None:
    """``(vision_ND, mask_T)``: the embeddings that the step's placeholders take, and where they are.

    None if the step has no placeholders.
    """
    parts: list[Tensor] = []
    mask_T = torch.zeros(tokens, dtype=torch.bool)
    offset = sum(work.count for work in step.decodes)
    for work in step.chunks:
        for i, span in reached(work.sequence, work.start, work.count):
            low, high = max(span.start, work.start), min(span.end, work.start + work.count)
            parts.append(work.sequence.vision[i][low - span.start : high - span.start])
            mask_T[offset + low - work.start : offset + high - work.start] = True
        offset += work.count
    return (torch.cat(parts), mask_T) if parts else None


def forget_media(work: Work) -> None:
    """Drop the embeddings whose last token is now cached."""
    sequence = work.sequence
    for i in [i for i in sequence.vision if sequence.prompt.spans[i].end <= sequence.num_computed]:
        del sequence.vision[i]


def reached(sequence: Sequence, start: int, count: int) -> Iterator[tuple[int, Span]]:
    """Media that have tokens among these of a prompt."""
    for i, span in enumerate(sequence.prompt.spans):
        if span.start < start + count and span.end > start:
            yield i, span
