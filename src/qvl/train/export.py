"""Everything that serves, written into a folder: weights, configs, processor and tokenizer files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from qvl.modeling import Qwen2_5_VLForConditionalGeneration
from qvl.processing.processor import Qwen2_5_VLProcessor


class ModelWriter:
    """Writes a whole model. ``dtype``: of the stored weights; trained ones are float32 while they learn."""

    def __init__(self, processor: Qwen2_5_VLProcessor, dtype: torch.dtype) -> None:
        self.processor, self.dtype = processor, dtype

    def __call__(self, model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
        stored: dict[str, Any] = {
            name: value.to(self.dtype) if value.is_floating_point() else value
            for name, value in model.state_dict().items()
        }
        model.save_pretrained(folder, state_dict=stored)
        self.processor.save_pretrained(folder)
