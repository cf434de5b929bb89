"""The documented model classes and caches."""

from qvl.modeling.backbone import Qwen2_5_VisionTransformerPretrainedModel, Qwen2_5_VLModel
from qvl.modeling.base import PreTrainedModel
from qvl.modeling.cache import Cache, DynamicCache, StaticCache
from qvl.modeling.conditional import Qwen2_5_VLForConditionalGeneration
from qvl.modeling.text import Qwen2_5_VLTextModel

__all__ = [
    "Cache",
    "DynamicCache",
    "PreTrainedModel",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen2_5_VLModel",
    "Qwen2_5_VLTextModel",
    "Qwen2_5_VisionTransformerPretrainedModel",
    "StaticCache",
]
