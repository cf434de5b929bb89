"""The shape of the bundled model, and its checkpoint folder: everything but the learning.

The folder is laid out as a released one: the same files, the same tensor names, weights in bfloat16.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer

from examples.tiny import tokenizer
from examples.tiny.things import MAX_PIXELS, MIN_PIXELS
from qvl.config import Qwen2_5_VLConfig

ASSETS = Path("src/qvl/assets/tiny")  # the bundled model, in the package
ROWS = 1152  # of the embedding: a few more than there are tokens, as in the released models


def model_config() -> Qwen2_5_VLConfig:
    """The released architecture, small."""
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
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "initializer_range": 0.04,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            # Pictures are a few tokens wide: a small base keeps neighbours apart in the last frequencies,
            # which carry the column.
            "rope_theta": 100.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [6, 5, 5]},
            "bos_token_id": ids["endoftext"],
            "eos_token_id": ids["im_end"],
        },
        vision_config={
            "depth": 6,
            "hidden_size": 160,
            "intermediate_size": 432,
            "num_heads": 5,
            "out_hidden_size": 192,
            "window_size": 112,
            "fullatt_block_indexes": [2, 5],
            "tokens_per_second": 2,
            "initializer_range": 0.04,
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
    pictures = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_pixels": MAX_PIXELS,
        "merge_size": 2,
        "min_pixels": MIN_PIXELS,
        "patch_size": 14,
        "processor_class": "Qwen2_5_VLProcessor",
        "temporal_patch_size": 2,
    }
    write_json(folder / "preprocessor_config.json", pictures)
    del pictures["image_processor_type"]
    # As the films of the lessons are: few frames, and small ones.
    films = {
        "fps": 2.0,
        "max_frames": 16,
        "max_pixels": 84 * 84,
        "video_processor_type": "Qwen2VLVideoProcessor",
    }
    write_json(folder / "video_preprocessor_config.json", dict(sorted({**pictures, **films}.items())))
    return words


def write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
