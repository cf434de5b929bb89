"""A question as a prompt for the engine: media opened, tokens and patches made, the boxes' picture known.

It runs in threads, several questions at the same time; nothing here is shared between them but the processor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from qvl.errors import InputError
from qvl.evaluate.asked_boxes import speaks_of_boxes, with_resized_boxes
from qvl.evaluate.metrics import Picture
from qvl.evaluate.questions import Question
from qvl.generation.inputs import ModelInputs
from qvl.generation.prompts import build_prompts
from qvl.processing.measuring import Measure
from qvl.processing.media.opening import load_image
from qvl.processing.positions import read_grids
from qvl.processing.text.messages import KINDS, SOURCES, find_media
from qvl.types import Grid, Medium, Prompt


@dataclass(frozen=True, eq=False)
class Prepared:
    """A question with its prompt. ``picture``: what boxes of the answer lie in, where the metric needs it."""

    question: Question
    prompt: Prompt
    picture: Picture | None = None

    @property
    def nbytes(self) -> int:
        """Memory that its patches take."""
        return sum(medium.patches_PC.nbytes for medium in self.prompt.media)


class Preparer:
    """Makes prompts for one model. ``config``: its (outer) config. ``options``: of the processor's calls.

    ``shared``: sources of media that several questions are about; they are recognised when they come again.
    """

    def __init__(
        self,
        processor: Any,
        config: Any,
        options: Mapping[str, Any] | None = None,
        shared: Iterable[str] = (),
    ) -> None:
        self.processor, self.config, self.options = processor, config, dict(options or {})
        self.shared = frozenset(shared)
        self._measure = Measure(processor, self.options)

    def __call__(self, question: Question) -> Prepared:
        """Raises what the processor raises: MediaError for a broken medium, PromptError for a message."""
        messages: Sequence[Mapping[str, Any]] = question.messages
        pictures: list[Any] = []
        if question.scoring.metric.places:
            messages, pictures = opened(messages)
        if speaks_of_boxes(messages):
            messages = with_resized_boxes(messages, self._measure)
        features = self.processor.apply_chat_template(
            list(messages),
            tools=question.tools,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **self.options,
        )
        inputs = ModelInputs(**{name: features[name] for name in ModelInputs.names() if name in features})
        (prompt,) = build_prompts(
            inputs, torch.ones_like(features["input_ids"], dtype=torch.bool), self.config
        )
        if self.shared and self.shared.intersection(sources(question.messages)):
            prompt = replace(prompt, media=tuple(replace(m, digest=digest(m)) for m in prompt.media))
        if not question.scoring.metric.places:
            return Prepared(question, prompt)
        grids = read_grids(features.get("image_grid_thw"))
        side = self.processor.image_processor.patch_size
        return Prepared(question, prompt, _picture(pictures, grids, side, question.picture))


def opened(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """The messages with their pictures open, upright and in RGB, and these pictures in order."""
    pictures: list[Any] = []

    def open_in(item: Any) -> Any:
        kind = KINDS.get(str(item.get("type"))) if isinstance(item, Mapping) else None
        key = (
            next((key for key in SOURCES["image"] if item.get(key) is not None), None)
            if kind == "image"
            else None
        )
        if key is None:
            return item
        source = item[key]["url"] if isinstance(item[key], Mapping) else item[key]
        pictures.append(load_image(source))
        rest = {name: value for name, value in item.items() if name not in SOURCES["image"]}
        return {**rest, "type": "image", "image": pictures[-1]}

    found = []
    for message in messages:
        content = message.get("content")
        items = [open_in(item) for item in content] if isinstance(content, list | tuple) else content
        found.append({**message, "content": items})
    return found, pictures


def _picture(pictures: Sequence[Any], grids: Sequence[Grid], side: int, chosen: int | None) -> Picture:
    """The picture that boxes lie in. An answer does not say which of several pictures it speaks of."""
    made = [Picture(p.width, p.height, grid, side) for p, grid in zip(pictures, grids, strict=True)]
    if chosen is not None:
        if not 0 <= chosen < len(made):
            raise InputError(f"picture is {chosen}, but it has {len(made)} pictures (they count from 0)")
        return made[chosen]
    if not made:
        raise InputError("its metric compares boxes, and it has no picture that they could lie in")
    if len(set(made)) > 1:
        raise InputError(
            'it has several pictures; say which one the boxes lie in: "picture": 0 for the first'
        )
    return made[0]


def sources(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the media of a conversation are named, of those that are named at all."""
    return [item.source for item in find_media(messages) if isinstance(item.source, str)]


def shared_sources(questions: Iterable[Question]) -> set[str]:
    """Media that more than one question is about."""
    counts = Counter(name for question in questions for name in set(sources(question.messages)))
    return {name for name, count in counts.items() if count > 1}


def digest(medium: Medium) -> bytes:
    """The same for media with the same patches, times and kind."""
    found = blake2b(repr((medium.kind, medium.grid, medium.seconds_per_grid)).encode(), digest_size=32)
    found.update(np.ascontiguousarray(medium.patches_PC.float().numpy()).data)
    return found.digest()
