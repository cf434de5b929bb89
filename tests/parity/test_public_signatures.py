"""The public classes and functions besides configs and forward passes: parameters of the same names in the
same places, so that calls written for transformers mean the same here."""

from __future__ import annotations

import inspect

import pytest
import transformers
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

import qvl

pytestmark = pytest.mark.oracle

# Arguments of other back-ends, other tasks and training on several machines, which qvl does not have.
ABSENT = {
    "from_pretrained": {"ignore_mismatched_sizes", "weights_only"},
    "generate": {
        "synced_gpus",
        "assistant_model",
        "negative_prompt_ids",
        "negative_prompt_attention_mask",
        "custom_generate",
    },
    "pipeline": {"feature_extractor", "framework", "use_fast", "trust_remote_code", "pipeline_class"},
    "__init__": {"offloading", "offload_only_non_sliding", "ddp_cache_data"},
}
KEYWORDS = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
METHODS = [
    ("Qwen2VLImageProcessor", "__init__"),
    ("Qwen2VLImageProcessor", "preprocess"),
    ("Qwen2_5_VLProcessor", "__init__"),
    ("Qwen2_5_VLProcessor", "__call__"),
    ("Qwen2_5_VLProcessor", "apply_chat_template"),
    ("Qwen2TokenizerFast", "__init__"),
    ("Qwen2TokenizerFast", "decode"),
    ("Qwen2TokenizerFast", "batch_decode"),
    ("Qwen2TokenizerFast", "apply_chat_template"),
    ("Qwen2_5_VLForConditionalGeneration", "from_pretrained"),
    ("Qwen2_5_VLForConditionalGeneration", "save_pretrained"),
    ("Qwen2_5_VLForConditionalGeneration", "resize_token_embeddings"),
    ("Qwen2_5_VLModel", "get_rope_index"),
    ("Qwen2_5_VLForConditionalGeneration", "get_image_features"),
    ("Qwen2_5_VLForConditionalGeneration", "get_video_features"),
    ("Qwen2_5_VLForConditionalGeneration", "num_parameters"),
    ("DynamicCache", "__init__"),
    ("DynamicCache", "get_seq_length"),
    ("DynamicCache", "crop"),
    ("StaticCache", "__init__"),
    ("TextStreamer", "__init__"),
    ("TextStreamer", "on_finalized_text"),
    ("TextIteratorStreamer", "__init__"),
    ("StoppingCriteria", "__call__"),
    ("StoppingCriteriaList", "__call__"),
    ("LogitsProcessor", "__call__"),
    ("LogitsProcessorList", "__call__"),
    ("TorchAoConfig", "__init__"),
    ("AutoConfig", "from_pretrained"),
    ("AutoProcessor", "from_pretrained"),
    ("AutoTokenizer", "from_pretrained"),
]


def parameters(function):
    return {n: p for n, p in inspect.signature(function).parameters.items() if p.kind not in KEYWORDS}


def takes_more(function):
    return any(
        p.kind == inspect.Parameter.VAR_KEYWORD for p in inspect.signature(function).parameters.values()
    )


def assert_offers(ours, theirs, absent=frozenset()):
    """Every parameter of theirs but the absent ones: by name, or in ``**kwargs``; named ones in order."""
    have, wanted = parameters(ours), [name for name in parameters(theirs) if name not in absent]
    missing = [name for name in wanted if name not in have]
    assert not missing or takes_more(ours), f"no parameters {missing}"
    named = [name for name in wanted if name in have]
    assert [name for name in have if name in named] == named, "another order"


@pytest.mark.parametrize("name, method", METHODS)
def test_methods(name, method):
    ours, theirs = (getattr(getattr(library, name), method) for library in (qvl, transformers))
    assert_offers(ours, theirs, ABSENT.get(method, frozenset()))


def test_generate():
    ours, theirs = (library.Qwen2_5_VLForConditionalGeneration.generate for library in (qvl, transformers))
    assert_offers(ours, theirs, ABSENT["generate"])


def test_functions():
    assert_offers(qvl.pipeline, transformers.pipeline, ABSENT["pipeline"])
    assert_offers(qvl.smart_resize, smart_resize)


def test_positional_saving():
    """Second comes ``is_main_process``, third ``state_dict``."""
    names = list(parameters(qvl.Qwen2_5_VLForConditionalGeneration.save_pretrained))
    theirs = list(parameters(transformers.Qwen2_5_VLForConditionalGeneration.save_pretrained))
    assert names == theirs
