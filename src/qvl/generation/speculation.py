"""What a ``generate()`` call says about guessing ahead: its assistant model, and how far it may run.

An assistant is any smaller checkpoint that numbers the same tokens. Knows configs and tokenizers; how drafts
are made and checked is the engine's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from qvl.engine.guessing import StepTimes
from qvl.errors import GenerationError, InputTypeError
from qvl.generation.config import GenerationConfig
from qvl.network.vlm import CausalLM

# Both models read the same ids and patches, so these must mean the same in both.
SHARED_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
SHARED_GEOMETRY = ("patch_size", "temporal_patch_size", "spatial_merge_size", "in_channels")
ASSISTANT_SETTINGS = (
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
)


@dataclass(frozen=True, eq=False)
class Assistant:
    """The model that drafts, and where it comes from: its tokenizer, and that of the model that it helps."""

    model: Any
    tokenizer: Any = None
    main_tokenizer: Any = None

    def check(self, config: GenerationConfig, main: Any) -> None:
        """Raises InputTypeError for something that is no model of ours, GenerationError for one that cannot
        help ``main`` with these settings.
        """
        if self.model is None:
            if self.tokenizer is not None:
                raise GenerationError("assistant_tokenizer was given without an assistant_model.")
            return
        if not isinstance(self.model, CausalLM):
            raise InputTypeError(
                "assistant_model must be a loaded Qwen2.5-VL model, such as from_pretrained gives, not "
                f"{type(self.model).__name__}."
            )
        if config.num_beams > 1:
            raise GenerationError(
                "An assistant_model helps greedy decoding and sampling, not a beam search; set num_beams=1."
            )
        if config.prompt_lookup_num_tokens:
            raise GenerationError(
                "assistant_model and prompt_lookup_num_tokens are two ways of guessing; give one of them."
            )
        self._check_vocabulary(main.config, self.model.config)

    def _check_vocabulary(self, main: Any, assistant: Any) -> None:
        for part, names in ((None, SHARED_IDS), ("vision_config", SHARED_GEOMETRY)):
            ours, theirs = (getattr(c, part) if part else c for c in (main, assistant))
            for name in names:
                if getattr(ours, name) != getattr(theirs, name):
                    raise GenerationError(
                        f"assistant_model has {name} {getattr(theirs, name)} and the model "
                        f"{getattr(ours, name)}: both must read the same prompt; use a checkpoint of the "
                        "same family."
                    )
        sizes = [c.text_config.vocab_size for c in (main, assistant)]
        pair = (self.main_tokenizer, self.tokenizer)
        if None not in pair:
            if pair[0].get_vocab() != pair[1].get_vocab():
                raise GenerationError(
                    "The tokenizer of assistant_model numbers other tokens than the model's; use a "
                    "checkpoint with the same tokenizer."
                )
        elif sizes[0] != sizes[1]:
            raise GenerationError(
                f"assistant_model has {sizes[1]} rows of vocabulary and the model {sizes[0]}. If both have "
                "the same tokenizer (the rest being unused rows), show it: pass tokenizer= and "
                "assistant_tokenizer=."
            )


def assistant_settings(config: GenerationConfig, assistant: Any) -> dict[str, Any]:
    """The three settings of `SamplingParams`: the call's, else the assistant's own; the rest is measured."""
    chosen: dict[str, Any] = {}
    for name in ASSISTANT_SETTINGS:
        for source in (config, getattr(assistant, "generation_config", None)):
            if source is not None and name in source.explicit:
                chosen[name] = getattr(source, name)
                break
    if chosen.get("assistant_confidence_threshold", 0.0) is None:
        chosen["assistant_confidence_threshold"] = 0.0
    if chosen.get("num_assistant_tokens_schedule", "") is None:
        del chosen["num_assistant_tokens_schedule"]
    if chosen.get("num_assistant_tokens_schedule", "constant") != "constant":
        chosen.setdefault("num_assistant_tokens", config.num_assistant_tokens)  # what it starts from
    return chosen


@contextmanager
def step_times(model: Any) -> Iterator[StepTimes]:
    """What earlier calls measured of the model's steps, taken off the model for the length of this one.

    It is a measurement of the model on its machine, no request's state. A second call at the same time
    measures for itself.
    """
    key = (model.device, model.dtype, torch.get_num_threads())
    known_key, times = model.__dict__.pop("_step_times", (None, None))
    if times is None or known_key != key:
        times = StepTimes()
    try:
        yield times
    finally:
        model.__dict__["_step_times"] = (key, times)
