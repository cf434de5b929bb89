"""A complete tiny checkpoint folder: config, random weights, tokenizer, chat template, image settings.

The tokenizer is the bundled model's (1,061 tokens, the special tokens of the released one), so any text
works and the answers are nonsense.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

import qvl
from qvl.hub import BUNDLED
from support.tiny import tiny_settings

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.json", "chat_template.jinja")


def added_token_ids() -> dict[str, int]:
    """Ids of the special tokens, as the bundled tokenizer numbers them."""
    settings = json.loads((BUNDLED["qvl/tiny"] / "tokenizer_config.json").read_text(encoding="utf-8"))
    return {token["content"]: int(number) for number, token in settings["added_tokens_decoder"].items()}


def config_settings(**text: Any) -> dict[str, Any]:
    """Arguments of a ``Qwen2_5_VLConfig`` for the bundled tokenizer; ``text`` overrides text settings."""
    ids = added_token_ids()
    eos, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    special = {"bos_token_id": pad, "eos_token_id": eos, "pad_token_id": pad}
    text = {"vocab_size": 1152, "max_position_embeddings": 4096, **special, **text}
    return tiny_settings(
        text=text,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def write_checkpoint(folder: Path, *, weights: bool = True, seed: int = 0, **text: Any) -> Path:
    """Fills ``folder`` (made if missing) and returns it. Without ``weights`` everything but the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = config_settings(**text)
    config = qvl.Qwen2_5_VLConfig(**settings)
    config.save_pretrained(folder)
    if weights:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            qvl.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (BUNDLED["qvl/tiny"] / name).exists():
            shutil.copy(BUNDLED["qvl/tiny"] / name, folder / name)
    eos, pad = settings["text_config"]["eos_token_id"], settings["text_config"]["pad_token_id"]
    _write(folder / "generation_config.json", {"eos_token_id": eos, "pad_token_id": pad, "do_sample": False})
    _write(folder / "preprocessor_config.json", IMAGE_SETTINGS)
    return folder


IMAGE_SETTINGS = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "min_pixels": 56 * 56,
    "max_pixels": 112 * 112,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
