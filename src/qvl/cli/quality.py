"""What quantizing a model changed in what it says: perplexity and greedy choices on the same questions.

The model answers each question before it is quantized; both then read question and answer, token by token.

Legend: L tokens of a question with its answer, N of them that are scored, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

ANSWER = 32  # tokens of each answer
ROWS = 64  # tokens scored at a time: a row of scores has the size of the vocabulary

ABOUT_PICTURES = (
    "Describe this image in detail.",
    "Write down all text in this image.",
    "What objects are where in this image? Answer with their bounding boxes in JSON.",
    "What is unusual about this image?",
)
WITHOUT_PICTURES = (
    "Explain in three sentences why the sky is blue.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "请用中文介绍一下长城。",
    "List five countries of Europe with their capitals, as a table.",
)


@dataclass(frozen=True, eq=False)
class Reading:
    """A question with its answer as arguments of the model's forward; ``length``: tokens of the question."""

    inputs: dict[str, Any]
    length: int


@dataclass(frozen=True)
class Scores:
    """How a model scored the text of one reading: summed negative log-likelihood of ``count`` tokens, and the
    likeliest token at each place of the answer."""

    loss: float
    count: int
    choices: tuple[int, ...]


@dataclass(frozen=True)
class Quality:
    """``perplexity_ratio``: of the quantized model over the other, 1 at best. ``agreement``: share of the
    ``choices`` tokens of answers for which both like the same one best."""

    perplexity_ratio: float
    agreement: float
    tokens: int
    choices: int


def questions(pictures: Sequence[Image.Image], shift: int = 0) -> list[list[dict[str, Any]]]:
    """Messages: one question about each picture, another from one to the next; some without a picture.

    ``shift``: which of the questions comes first, so that the same pictures can be asked about differently.
    """
    asked = []
    for i, picture in enumerate(pictures):
        text = ABOUT_PICTURES[(i + shift) % len(ABOUT_PICTURES)]
        asked.append([{"type": "image", "image": picture}, {"type": "text", "text": text}])
    asked += [[{"type": "text", "text": text}] for text in WITHOUT_PICTURES[shift % 2 :: 2]]
    return [[{"role": "user", "content": content}] for content in asked]


def answered(
    model: Any, processor: Any, asked: Sequence[list[dict[str, Any]]], progress: Callable[[int, int], None]
) -> list[Reading]:
    """Every question with the model's own greedy answer, cut off after `ANSWER` tokens."""
    import torch

    found = []
    for done, messages in enumerate(asked, start=1):
        inputs = dict(
            processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        )
        ids = model.generate(**inputs, max_new_tokens=ANSWER, do_sample=False)
        given = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        found.append(Reading(given, inputs["input_ids"].shape[1]))
        progress(done, len(asked))
    return found


def scored(model: Any, readings: Sequence[Reading]) -> list[Scores]:
    """How the model scores each reading. Placeholders of media are no text and do not count."""
    return [_scored(model, reading) for reading in readings]


def _scored(model: Any, reading: Reading) -> Scores:
    import torch

    ids_L = reading.inputs["input_ids"][0]
    next_L = ids_L[1:]
    media = (model.config.image_token_id, model.config.video_token_id)
    is_text_L = torch.ones_like(next_L, dtype=torch.bool)
    for token in media:
        is_text_L &= next_L != token
    places_N = is_text_L.nonzero()[:, 0]
    loss, choices = 0.0, []
    with torch.inference_mode():
        hidden_LD = model.model(**reading.inputs).last_hidden_state[0]
        for places in places_N.split(ROWS):
            logits_NV: Tensor = model.logits(hidden_LD[places]).float()
            likely_NV = logits_NV.log_softmax(-1)
            loss -= float(likely_NV.gather(1, next_L[places, None]).sum())
            best = logits_NV.argmax(-1).tolist()
            choices += [
                b for b, place in zip(best, places.tolist(), strict=True) if place >= reading.length - 1
            ]
    return Scores(loss, len(places_N), tuple(choices))


def compared(before: Sequence[Scores], after: Sequence[Scores]) -> Quality:
    """The quantized model's scores (``after``) beside the other's, of the same readings."""
    tokens = sum(scores.count for scores in before)
    change = sum(b.loss - a.loss for a, b in zip(before, after, strict=True)) / max(tokens, 1)
    pairs = [
        pair for a, b in zip(before, after, strict=True) for pair in zip(a.choices, b.choices, strict=True)
    ]
    same = sum(one == other for one, other in pairs)
    return Quality(math.exp(change), same / max(len(pairs), 1), tokens, len(pairs))
