"""A checkpoint folder with everything but weights: tiny tokenizer, small pictures, the released template."""

import json
from pathlib import Path

from support.tokens import VISION_TEMPLATE, write_tiny_tokenizer

PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "min_pixels": 3136,
    "max_pixels": 50176,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def write_tiny_processor(folder: Path) -> Path:
    """The files of a released processor, with at most 50,176 pixels a picture; returns the folder."""
    write_tiny_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": VISION_TEMPLATE}))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    return folder
