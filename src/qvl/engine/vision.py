"""Embeddings of pictures and videos where a step needs them: encoded once, kept until their tokens are done.

Knows which tokens of a step are placeholders of which medium; knows nothing about text.

Legend: T packed tokens of a step, P patches, C patch values, N merged vision tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qvl.engine.scheduler import Step, Work
from qvl.errors import PlaceholderMismatchError
from qvl.types import Medium, Prompt, Span

if TYPE_CHECKING:
    from qvl.network.vlm import VisionLanguageModel


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


def encode_media(backbone: VisionLanguageModel, step: Step) -> None:
    """Encode the media that the step's tokens reach for the first time, all in one call of the tower.

    Media whose tokens are all cached already are never looked at. The embeddings are left on the sequences.
    """
    missing = [
        (work.sequence, i) for work in step.chunks for i, _ in _reached(work) if i not in work.sequence.vision
    ]
    if not missing:
        return
    media = {id(m): m for m in (sequence.prompt.media[i] for sequence, i in missing)}  # shared ones once
    embeds = dict(zip(media, _encode(backbone, list(media.values())), strict=True))
    for sequence, i in missing:
        sequence.vision[i] = embeds[id(sequence.prompt.media[i])]


def vision_rows(step: Step, tokens: int) -> tuple[Tensor, Tensor] | None:
    """``(vision_ND, mask_T)``: the embeddings that the step's placeholders take, and where they are.

    None if the step has no placeholders.
    """
    parts: list[Tensor] = []
    mask_T = torch.zeros(tokens, dtype=torch.bool)
    offset = sum(work.count for work in step.decodes)
    for work in step.chunks:
        for i, span in _reached(work):
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


def _reached(work: Work) -> Iterator[tuple[int, Span]]:
    """Media that have tokens in this piece of a prompt."""
    for i, span in enumerate(work.sequence.prompt.spans):
        if span.start < work.start + work.count and span.end > work.start:
            yield i, span


def _encode(backbone: VisionLanguageModel, media: list[Medium]) -> tuple[Tensor, ...]:
    patches = [m.patches_PC for m in media]
    patches_PC = patches[0] if len(patches) == 1 else torch.cat(patches)
    tower = backbone.visual
    embeds_ND = backbone.encode(patches_PC.to(tower.device), [m.grid for m in media])
    return embeds_ND.split([m.grid.tokens(tower.spatial_merge_size) for m in media])
