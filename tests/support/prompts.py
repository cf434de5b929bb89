"""Prompts for an engine from messages, as the documented classes make them; media get digests."""

from dataclasses import replace
from hashlib import blake2b

import torch

from qvl.generation.inputs import ModelInputs
from qvl.generation.prompts import build_prompts


def message_prompt(processor, config, messages, **options):
    """One `Prompt` for a conversation, every medium of it with a digest of its patches."""
    inputs = processor.apply_chat_template(
        messages,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        **options,
    )
    given = {name: value for name, value in inputs.items() if name in ModelInputs.names()}
    (prompt,) = build_prompts(ModelInputs(**given), torch.ones_like(inputs["input_ids"]).bool(), config)
    return replace(prompt, media=tuple(with_digest(medium) for medium in prompt.media))


def with_digest(medium):
    return replace(medium, digest=blake2b(medium.patches_PC.numpy().tobytes(), digest_size=32).digest())
