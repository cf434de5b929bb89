"""Samples for tests of training: from padded forward arguments, and a source of small random ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from qvl.generation.inputs import ModelInputs
from qvl.generation.prompts import build_prompts
from qvl.train.sample import IGNORED, Sample
from support.batches import batch, prompt_row
from support.tiny import VISION_START


def labels_of(arguments: dict[str, Any], *, seed: int = 0, share: float = 0.6) -> torch.Tensor:
    """Labels (B, L): a random ``share`` of the ordinary tokens, and the last one; never padding or media.

    Never a row's first token either: with padding on the left, transformers would learn it from padding.
    """
    ids, mask = arguments["input_ids"], arguments["attention_mask"].bool()
    drawn = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) < share
    drawn |= mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    drawn &= mask.cumsum(1) > 1
    return ids.masked_fill(~(mask & drawn & (ids < VISION_START)), IGNORED)


def samples_of(arguments: dict[str, Any], labels: torch.Tensor, config: Any) -> list[Sample]:
    """What the padded call of ``arguments`` with ``labels`` learns, one sample for each row."""
    real_BL = arguments["attention_mask"].bool()
    given = {name: value for name, value in arguments.items() if name in ModelInputs.names()}
    prompts = build_prompts(ModelInputs(**given), real_BL, config)
    rows = (row[real] for row, real in zip(labels, real_BL, strict=True))
    targets = (torch.cat([own[1:], torch.tensor([IGNORED])]) for own in rows)
    return [Sample(*pair, f"row {i}") for i, pair in enumerate(zip(prompts, targets, strict=True))]


@dataclass(frozen=True)
class RandomSource:
    """So many samples of a few tokens each, every third with a picture and every fifth with a video."""

    count: int
    config: Any

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        parts: list[Any] = [3 + index % 5, 4 + index % 7]
        if index % 3 == 0:
            parts.insert(1, ("image", (1, 4, 4 + 2 * (index % 2))))
        if index % 5 == 0:
            parts.append(("video", (2, 4, 4)))
            parts.append(3)
        arguments = batch(prompt_row(*parts, seed=100 * index), seed=index)
        (sample,) = samples_of(arguments, labels_of(arguments, seed=index), self.config)
        return sample
