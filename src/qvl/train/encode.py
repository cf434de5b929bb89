"""From messages to a sample: the processor's own tokens and patches, and which of the tokens to learn.

What a model is trained on must be what it will be served: everything goes through the documented processor,
with the checkpoint's own chat template. The assistant's turns are found in the tokens, by the control tokens
around them; as text inside a message never becomes a control token, nobody can write a turn into a message.

Legend: T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch

from qvl.errors import InputError, PromptError
from qvl.processing.features import BatchFeature
from qvl.processing.positions import Placement, multimodal_positions, place_media, read_grids, read_seconds
from qvl.processing.processor import Qwen2_5_VLProcessor
from qvl.train.sample import IGNORED, Sample
from qvl.types import Medium, Prompt

Learn = Literal["answers", "last", "all"]
"""Which tokens count: every turn of the assistant, its last turn, or everything but media."""


class Encoder:
    """Makes samples for one model. ``config``: its (outer) config. ``options``: of the processor's calls."""

    def __init__(
        self, processor: Qwen2_5_VLProcessor, config: Any, *, learn: Learn = "answers", **options: Any
    ) -> None:
        if learn not in get_args(Learn):
            raise InputError(f"learn is one of {', '.join(get_args(Learn))}, not {learn!r}")
        self.processor, self.config, self.learn, self.options = processor, config, learn, options
        tokenizer = processor.tokenizer
        self._opening = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
        self._end: int = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._media = {config.image_token_id, config.video_token_id}

    def encode(
        self, messages: Sequence[Mapping[str, Any]], name: str = "", tools: Sequence[Any] | None = None
    ) -> Sample:
        """The sample of a conversation, its media opened. Raises what the processor raises, and PromptError
        where there is nothing to learn.
        """
        features = self.processor.apply_chat_template(
            [*messages], tools=tools, tokenize=True, return_dict=True, **self.options
        )
        row = features["input_ids"]
        ids: list[int] = row[0] if row and isinstance(row[0], list) else row
        targets = self.targets(ids)
        if all(target == IGNORED for target in targets):
            raise PromptError("The conversation has no turn of the assistant, so there is nothing to learn")
        return Sample(self._prompt(ids, features), torch.tensor(targets), name)

    def targets(self, ids: Sequence[int]) -> list[int]:
        """For every token the one to learn after it, or ``IGNORED``."""
        if self.learn == "all":
            following = [*ids[1:], IGNORED]
            return [IGNORED if token in self._media else token for token in following]
        targets = [IGNORED] * len(ids)
        turns = list(self._answers(ids))
        for start, end in turns[-1:] if self.learn == "last" else turns:
            targets[start - 1 : end - 1] = [
                IGNORED if token in self._media else token for token in ids[start:end]
            ]
        return targets

    def _answers(self, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        """[start, end) of every turn of the assistant, the token that ends it included."""
        opening, place = list(self._opening), 0
        while place <= len(ids) - len(opening):
            if list(ids[place : place + len(opening)]) != opening:
                place += 1
                continue
            start = place + len(opening)
            end = next((i + 1 for i in range(start, len(ids)) if ids[i] == self._end), len(ids))
            if end > start:
                yield start, end
            place = end

    def _prompt(self, ids: list[int], features: BatchFeature) -> Prompt:
        images = read_grids(features.get("image_grid_thw"))
        videos = read_grids(features.get("video_grid_thw"))
        seconds = read_seconds(features.get("second_per_grid_ts"), len(videos))
        vision = self.config.vision_config
        (placed,) = place_media(
            [ids],
            images,
            videos,
            image_token_id=self.config.image_token_id,
            video_token_id=self.config.video_token_id,
            merge_size=vision.spatial_merge_size,
        )
        positions_3T, delta = multimodal_positions(
            len(ids),
            [p.span for p in placed],
            [p.grid for p in placed],
            [seconds[p.index] if p.span.kind == "video" else 0.0 for p in placed],
            merge_size=vision.spatial_merge_size,
            tokens_per_second=vision.tokens_per_second,
        )
        return Prompt(
            token_ids=tuple(ids),
            positions_3T=positions_3T,
            rope_delta=delta,
            spans=tuple(p.span for p in placed),
            media=tuple(_media(placed, features, seconds)),
        )


def _media(placed: Sequence[Placement], features: BatchFeature, seconds: Sequence[float]) -> Iterator[Medium]:
    """The media in reading order, each with its own patches."""
    patches = {}
    for kind, values, grids in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        if values in features:
            rows = torch.as_tensor(features[values])
            patches[kind] = rows.split([grid.patches for grid in read_grids(features[grids])])
    for place in placed:
        kind = place.span.kind
        yield Medium(
            kind, place.grid, patches[kind][place.index], seconds[place.index] if kind == "video" else 0.0
        )
