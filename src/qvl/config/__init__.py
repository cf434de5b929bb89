"""What a checkpoint says about its architecture, read without torch.

Knows the settings and what makes them impossible; knows nothing of tensors. ``base`` reads and writes,
``vision``, ``text`` and ``qwen2_5_vl`` hold the three configs, ``rope_scaling`` checks that one key.
"""

from __future__ import annotations

from qvl.config.base import PretrainedConfig
from qvl.config.qwen2_5_vl import AutoConfig, Qwen2_5_VLConfig
from qvl.config.text import Qwen2_5_VLTextConfig
from qvl.config.vision import Qwen2_5_VLVisionConfig

__all__ = [
    "AutoConfig",
    "PretrainedConfig",
    "Qwen2_5_VLConfig",
    "Qwen2_5_VLTextConfig",
    "Qwen2_5_VLVisionConfig",
]
