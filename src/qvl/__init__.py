"""qvl runs Qwen2.5-VL: pictures, documents, screens and videos in, text and boxes out.

Public names load on first use, so ``import qvl`` alone brings no torch.
"""

from __future__ import annotations

import gc
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "qvl.config": ["AutoConfig", "Qwen2_5_VLConfig", "Qwen2_5_VLTextConfig", "Qwen2_5_VLVisionConfig"],
    "qvl.processing.features": ["BatchFeature"],
    "qvl.processing.image": ["Qwen2VLImageProcessor", "smart_resize"],
    "qvl.processing.video.processor": ["Qwen2VLVideoProcessor", "Qwen2_5_VLVideoProcessor"],
    "qvl.processing.text.tokenizer": ["Qwen2TokenizerFast"],
    "qvl.processing.processor": ["Qwen2_5_VLProcessor"],
    "qvl.processing.grounding": ["Box", "Point"],
    "qvl.weights.quantize": ["TorchAoConfig"],
    "qvl.weights.quantization.config": ["QuantizationConfig"],
    "qvl.generation": [
        "GenerationConfig",
        "LogitsProcessor",
        "LogitsProcessorList",
        "StoppingCriteria",
        "StoppingCriteriaList",
        "TextIteratorStreamer",
        "TextStreamer",
    ],
    "qvl.outputs": [
        "BaseModelOutputWithPast",
        "GenerateBeamDecoderOnlyOutput",
        "GenerateDecoderOnlyOutput",
        "ModelOutput",
        "Qwen2_5_VLCausalLMOutputWithPast",
        "Qwen2_5_VLModelOutputWithPast",
    ],
    "qvl.modeling": [
        "Cache",
        "DynamicCache",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLModel",
        "Qwen2_5_VLTextModel",
        "StaticCache",
    ],
    "qvl.auto": ["AutoModel", "AutoModelForImageTextToText", "AutoProcessor", "AutoTokenizer"],
    "qvl.pipelines": ["pipeline"],
    "qvl.errors": ["QvlError"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [*_MODULE_OF, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(
            f"module 'qvl' has no attribute {name!r}; public names are listed in qvl.__all__"
        )
    value = getattr(_imported(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def _imported(name: str) -> ModuleType:
    """The module, imported without collecting cycles meanwhile: that takes a fifth of torch's import."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return import_module(name)
    finally:
        if collects:
            gc.enable()


def __dir__() -> list[str]:
    return sorted(__all__)
