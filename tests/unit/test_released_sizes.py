"""The released 3B, 7B, 32B and 72B: parameter counts, and every tensor's name and shape, without any memory.

The names, shapes and counts are written down here from the architecture, without looking at the network. The
configs are those of the released config.json files.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qvl.config import Qwen2_5_VLConfig
from qvl.modeling import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLTextModel
from qvl.network.vlm import CausalLM
from qvl.weights.names import to_internal, to_released

CONFIGS = Path(__file__).parents[1] / "golden" / "configs"
PARAMETERS = {"3b": 3_754_622_976, "7b": 8_292_166_656, "32b": 33_452_718_336, "72b": 73_410_777_344}


def config_of(size):
    return Qwen2_5_VLConfig.from_pretrained(CONFIGS / f"qwen2_5_vl_{size}.json")


def linear(name, outputs, inputs, bias=True):
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def released_tensors(config):
    """Released name -> shape, from the architecture alone."""
    text, vision = config.text_config, config.vision_config
    width, inner = text.hidden_size, text.intermediate_size
    kv_width = width // text.num_attention_heads * text.num_key_value_heads
    tensors = {"model.embed_tokens.weight": (text.vocab_size, width), "model.norm.weight": (width,)}
    if not text.tie_word_embeddings:
        tensors["lm_head.weight"] = (text.vocab_size, width)
    for layer in range(text.num_hidden_layers):
        at = f"model.layers.{layer}."
        tensors |= {at + "input_layernorm.weight": (width,), at + "post_attention_layernorm.weight": (width,)}
        tensors |= linear(at + "self_attn.q_proj", width, width)
        tensors |= linear(at + "self_attn.k_proj", kv_width, width)
        tensors |= linear(at + "self_attn.v_proj", kv_width, width)
        tensors |= linear(at + "self_attn.o_proj", width, width, bias=False)
        tensors |= linear(at + "mlp.gate_proj", inner, width, bias=False)
        tensors |= linear(at + "mlp.up_proj", inner, width, bias=False)
        tensors |= linear(at + "mlp.down_proj", width, inner, bias=False)
    return tensors | tower_tensors(vision)


def tower_tensors(vision):
    width, inner = vision.hidden_size, vision.intermediate_size
    merged = width * 4  # two by two patches
    tensors = {"visual.patch_embed.proj.weight": (width, 3, 2, 14, 14), "visual.merger.ln_q.weight": (width,)}
    tensors |= linear("visual.merger.mlp.0", merged, merged)
    tensors |= linear("visual.merger.mlp.2", vision.out_hidden_size, merged)
    for block in range(vision.depth):
        at = f"visual.blocks.{block}."
        tensors |= {at + "norm1.weight": (width,), at + "norm2.weight": (width,)}
        tensors |= linear(at + "attn.qkv", 3 * width, width) | linear(at + "attn.proj", width, width)
        tensors |= linear(at + "mlp.gate_proj", inner, width) | linear(at + "mlp.up_proj", inner, width)
        tensors |= linear(at + "mlp.down_proj", width, inner)
    return tensors


def count(tensors):
    return sum(torch.Size(shape).numel() for shape in tensors.values())


@pytest.mark.parametrize("size", PARAMETERS)
def test_names_shapes_and_counts(size):
    config = config_of(size)
    expected = released_tensors(config)
    assert count(expected) == PARAMETERS[size]
    with torch.device("meta"):
        model = CausalLM(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[size]
    found = {to_released(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert found == expected
    assert {to_internal(name) for name in expected} == {name for name, _ in model.named_parameters()}
    assert not list(model.buffers()), "a buffer would be wrong after loading from the meta device"


@pytest.mark.parametrize("size", PARAMETERS)
def test_the_documented_classes_on_the_meta_device(size):
    config = config_of(size)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
        text = Qwen2_5_VLTextModel(config)
    assert model.num_parameters() == PARAMETERS[size]
    assert {to_released(name) for name, _ in model.named_parameters()} == set(released_tensors(config))
    assert (model.device.type, model.config.text_config.hidden_size) == ("meta", config.hidden_size)
    expected = released_tensors(config)
    of_text = {name: shape for name, shape in expected.items() if name.startswith("model.")}
    assert text.num_parameters() == count(of_text)


@pytest.mark.parametrize("size, tensors", [("3b", 824), ("7b", 729), ("32b", 1161), ("72b", 1353)])
def test_number_of_tensors(size, tensors):
    assert len(released_tensors(config_of(size))) == tensors


@pytest.mark.parametrize("size", PARAMETERS)
def test_what_the_released_configs_say(size):
    config = config_of(size)
    assert (config.head_dim, config.mrope_section) == (128, [16, 24, 24])
    assert config.vision_config.tokens_per_second == 2
    assert config.vision_config.out_hidden_size == config.hidden_size
    assert (config.tie_word_embeddings, config.vocab_size) == (
        (True, 151936) if size == "3b" else (False, 152064)
    )
    assert (config.dtype_name, config.sliding_window, config.max_position_embeddings) == (
        "bfloat16",
        None,
        128000,
    )
    assert (config.bos_token_id, config.eos_token_id) == (151643, 151645)
