"""The shape of the small model, and its checkpoint folder: everything but the learning.

The folder is laid out as a released one: the same files, the same tensor names, weights in bfloat16.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from examples.digits import tokenizer
from qvl.config import Qwen2_5_VLConfig
from qvl.network.vlm import CausalLM
from qvl.weights.names import to_released

ASSETS = Path("src/qvl/assets/digits")  # the bundled model, in the package
ROWS = 512  # of the embedding: a few more than there are tokens, as in the released models
# Scans of 8 x 8 cells hold no more than this shows, and the sizes in ``lessons`` are those that come of it.
MIN_PIXELS, MAX_PIXELS = 56 * 84, 84 * 112


def model_config() -> Qwen2_5_VLConfig:
    """The released architecture, small: 0.97 million parameters."""
    words = tokenizer.build()
    ids = {
        name: words.token_to_id(f"<|{name}|>") for name in ("endoftext", "im_end", "image_pad", "video_pad")
    }
    return Qwen2_5_VLConfig(
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        dtype="bfloat16",
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=words.token_to_id("<|vision_start|>"),
        vision_end_token_id=words.token_to_id("<|vision_end|>"),
        text_config={
            "vocab_size": ROWS,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "initializer_range": 0.06,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            # The last third of the frequencies carries the column. A small base keeps neighbours apart there.
            "rope_theta": 10.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 4, 4]},
            "bos_token_id": ids["endoftext"],
            "eos_token_id": ids["im_end"],
        },
        vision_config={
            "depth": 4,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 4,
            "out_hidden_size": 96,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
            "initializer_range": 0.06,
        },
    )


def write_small_files(folder: Path) -> Tokenizer:
    """Everything but the weights. The chat template is the released one, as the package has it."""
    folder.mkdir(parents=True, exist_ok=True)
    template = ASSETS / "chat_template.jinja"
    if not (folder / template.name).exists():
        shutil.copyfile(template, folder / template.name)
    words = tokenizer.save(folder)
    model_config().save_pretrained(folder)
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": words.token_to_id("<|endoftext|>"),
            "do_sample": False,
            "eos_token_id": [words.token_to_id("<|im_end|>"), words.token_to_id("<|endoftext|>")],
            "pad_token_id": words.token_to_id("<|endoftext|>"),
        },
    )
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "max_pixels": MAX_PIXELS,
            "merge_size": 2,
            "min_pixels": MIN_PIXELS,
            "patch_size": 14,
            "processor_class": "Qwen2_5_VLProcessor",
            "temporal_patch_size": 2,
        },
    )
    return words


def export(network: CausalLM, folder: Path) -> None:
    """Writes ``model.safetensors`` in bfloat16 under the released names; the tied head is not written."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        to_released(name): value.detach().to(torch.bfloat16).contiguous()
        for name, value in network.state_dict().items()
        if name != "lm_head.weight"
    }
    path = folder / "model.safetensors"
    save_file(tensors, str(path), metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes for its owner alone, and this file is to be shipped


def write_json(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
