"""Models in 8 and 4 bits: quantized while they load, saved, loaded again, moved, refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import qvl
from qvl import QuantizationConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel, Qwen2_5_VLTextModel
from qvl.config import Qwen2_5_VLConfig
from qvl.errors import CheckpointMismatchError, ConfigError, InputError, InputTypeError, UnsupportedError
from qvl.ops.quantized import quantize_int4
from qvl.weights.quantization.config import stored_quantization
from qvl.weights.quantization.linear import QuantizedLinear, Scheme
from support.tiny import IMAGE, VISION_END, VISION_START, random_ids, random_patches, tiny_settings

INT8, INT4 = QuantizationConfig("int8"), QuantizationConfig("int4", group_size=32)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = tiny_settings(text={"tie_word_embeddings": request.param})
        Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**settings)).save_pretrained(folder)
    return folder


def load(folder, model_class=Qwen2_5_VLForConditionalGeneration, **options):
    return model_class.from_pretrained(folder, **options)


@torch.no_grad()
def logits(model):
    """Of a prompt with a picture, so that the tower counts too."""
    picture = [VISION_START, *[IMAGE] * 4, VISION_END]
    ids = torch.cat([random_ids(1, 3), torch.tensor([picture]), random_ids(1, 5, seed=1)], dim=1)
    grid = torch.tensor([[1, 4, 4]])
    return model(ids, pixel_values=random_patches([(1, 4, 4)]), image_grid_thw=grid).logits.float()


def packed_names(model):
    return {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def linear_names(model):
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def text_names(model):
    return {name for name in linear_names(model) if "language_model" in name}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("config", "tolerance"), [(INT8, 0.02), (INT4, 0.25)], ids=["int8", "int4"])
def test_the_text_decoder_is_quantized(folder, config, tolerance, dtype):
    plain = load(folder, dtype=dtype)
    model = load(folder, dtype=dtype, quantization_config=config)
    assert packed_names(model) == text_names(plain)
    assert linear_names(model) == linear_names(plain) - text_names(plain)
    exact = logits(plain)
    assert 0 < (logits(model) - exact).norm() / exact.norm() < tolerance
    assert model.num_parameters() == plain.num_parameters()
    assert model.dtype == getattr(torch, dtype)
    bits = {module.bits for module in model.modules() if isinstance(module, QuantizedLinear)}
    assert bits == {int(config.weights.removeprefix("int"))}


def test_tower_and_head_are_options(folder):
    plain = load(folder)
    model = load(folder, quantization_config=QuantizationConfig("int8", vision=True, head=True))
    assert packed_names(model) == linear_names(plain)
    assert not model.config.tie_word_embeddings
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    exact = logits(plain)
    assert 0 < (logits(model) - exact).norm() / exact.norm() < 0.03


def test_sensitive_layers_are_kept_higher(folder):
    config = QuantizationConfig(
        "int4", modules_in_int8=["layers.1.mlp"], modules_to_not_convert=["layers.0", "down_proj"]
    )
    model = load(folder, quantization_config=config)
    layers = model.model.language_model.layers
    assert isinstance(layers[0].self_attn.q_proj, nn.Linear)
    assert isinstance(layers[2].mlp.down_proj, nn.Linear)
    assert layers[1].mlp.up_proj.scheme == Scheme(8, 32)
    assert layers[2].mlp.up_proj.scheme == Scheme(4, 64)


@pytest.mark.parametrize(
    "config",
    [
        INT8,
        INT4,
        QuantizationConfig("int4", 128, vision=True, head=True, modules_in_int8=["lm_head"], exact=True),
        QuantizationConfig("int8", modules_to_not_convert=["layers.1"]),
    ],
    ids=["int8", "int4", "everything", "not all"],
)
@pytest.mark.parametrize("shard", ["5GB", "30KB"])
def test_saved_and_loaded_without_being_told(folder, tmp_path, config, shard):
    model = load(folder, quantization_config=config, dtype="bfloat16")
    model.save_pretrained(tmp_path, max_shard_size=shard)
    again = load(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert packed_names(again) == packed_names(model)
    assert again.config.dtype == torch.bfloat16
    assert {m.exact for m in again.modules() if isinstance(m, QuantizedLinear)} == {config.exact}
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert stored["quant_method"] == "qvl"
    assert stored["weights"] == config.weights
    assert stored_quantization(stored).head == config.head
    again.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_other_dtypes_leave_the_weights_alone(folder, tmp_path):
    load(folder, quantization_config=INT8).save_pretrained(tmp_path)
    narrow, wide = load(tmp_path, dtype="bfloat16"), load(tmp_path, dtype="float32")
    moved = wide.to(torch.bfloat16)
    name = "model.language_model.layers.1.mlp.up_proj"
    first, second = (model.get_submodule(name) for model in (narrow, moved))
    assert first.scales.dtype == second.scales.dtype == torch.float16
    assert torch.equal(first.dequantize(), second.dequantize())
    assert torch.equal(logits(narrow), logits(moved))


@pytest.mark.parametrize("model_class", [Qwen2_5_VLModel, Qwen2_5_VLTextModel])
@pytest.mark.parametrize("stored", [False, True], ids=["on load", "stored"])
def test_parts_of_the_model(folder, tmp_path, model_class, stored):
    config = QuantizationConfig("int8", head=True)
    whole = load(folder, quantization_config=config)
    if stored:
        whole.save_pretrained(tmp_path)
        part = load(tmp_path, model_class)
    else:
        part = load(folder, model_class, quantization_config=config)
    decoder, other = whole.model.language_model, getattr(part, "language_model", part)
    assert packed_names(decoder) == packed_names(other)
    ids = random_ids(1, 6)
    with torch.no_grad():
        assert torch.equal(
            Qwen2_5_VLTextModel.forward(other, ids)[0] if part is other else part(ids).last_hidden_state,
            whole.model(ids).last_hidden_state,
        )


def test_quantized_weights_are_not_quantized_again(folder, tmp_path):
    load(folder, quantization_config=INT4).save_pretrained(tmp_path)
    for refused in (INT8, qvl.TorchAoConfig("int8_weight_only")):
        with pytest.raises(UnsupportedError, match="quantized already"):
            load(tmp_path, quantization_config=refused)
    exact = load(tmp_path, quantization_config=QuantizationConfig("int4", exact=True))
    assert all(module.exact for module in exact.modules() if isinstance(module, QuantizedLinear))
    assert exact.config.quantization_config["exact"]
    assert not torch.equal(logits(exact), logits(load(tmp_path)))


def test_a_checkpoint_that_does_not_fit(folder, tmp_path):
    model = load(folder, quantization_config=INT4)
    layer = model.model.language_model.layers[0].mlp
    layer.up_proj = QuantizedLinear(quantize_int4(torch.randn(48, 40), 32))
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointMismatchError, match=r"layers\.0\.mlp\.up_proj\.qweight \(stored"):
        load(tmp_path)
    layer.up_proj = QuantizedLinear(quantize_int4(torch.randn(48, 32), 32))
    layer.norm = QuantizedLinear(quantize_int4(torch.randn(48, 32), 32))
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointMismatchError, match=r"quantized .*mlp\.norm, no linear layer"):
        load(tmp_path)


def test_what_is_trained_in_front_of_a_layer(folder):
    model = load(folder, quantization_config=QuantizationConfig("int8", exact=True))
    model(random_ids(1, 5)).logits.sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient.isfinite().all()
    assert gradient.any()
    inexact = load(folder, quantization_config=INT8)
    with pytest.raises(UnsupportedError, match="exact=True"):
        inexact(random_ids(1, 5)).logits.sum().backward()


def test_the_layer_itself():
    weight = torch.randn(21, 40)
    packed = quantize_int4(weight, 32)
    layer = QuantizedLinear(packed, nn.Parameter(torch.ones(21)))
    assert (layer.in_features, layer.out_features) == (40, 21)
    assert set(layer.state_dict()) == {"qweight", "scales", "zeros", "bias"}
    assert "int4, groups of 32" in repr(layer)
    with pytest.raises(UnsupportedError, match="not trained"):
        layer.requires_grad_()
    assert not layer.requires_grad_(False).bias.requires_grad
    with pytest.raises(AttributeError, match=r"dequantize\(\) gives it"):
        layer.weight  # noqa: B018
    order = torch.randperm(40, dtype=torch.int32)
    sorted_layer = QuantizedLinear(packed, order=order, exact=True)
    x = torch.randn(3, 40)
    torch.testing.assert_close(sorted_layer(x), x @ sorted_layer.dequantize().T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sorted_layer.dequantize()[:, order], layer.dequantize())
    layer.scales = layer.scales * 2
    torch.testing.assert_close(layer.dequantize(), 2 * sorted_layer.dequantize()[:, order])


def test_a_head_without_a_weight_is_not_resized(folder):
    model = load(folder, quantization_config=QuantizationConfig("int8", head=True))
    with pytest.raises(UnsupportedError, match="quantized head"):
        model.resize_token_embeddings(300)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (("int3",), {}, ConfigError, "'int3'; expected one of int8, int4"),
        (("int4", 16), {}, ConfigError, "group_size is 16; int4 has groups of 32, 64, 128"),
        (("int8", 64), {}, ConfigError, "int8 has groups of 32"),
        (("int8",), {"modules_in_int8": ["q_proj"]}, ConfigError, "all modules have 8 bits"),
        (("int8",), {"modules_to_not_convert": "q_proj"}, InputTypeError, "list of parts of module names"),
    ],
)
def test_settings_that_are_not_offered(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        QuantizationConfig(*arguments, **keywords)


def test_settings_round_trip(folder):
    config = QuantizationConfig("int4", 128, vision=True, modules_in_int8=("lm_head",), exact=True)
    values = json.loads(json.dumps(config.to_dict()))
    assert stored_quantization(values) == config
    assert packed_names(load(folder, quantization_config=values))
    with pytest.raises(ConfigError, match="weights at least; got group, quant_method, weights"):
        stored_quantization({"quant_method": "qvl", "weights": "int8", "group": 32})
    with pytest.raises(InputError, match="belong to"):
        Qwen2_5_VLForConditionalGeneration.from_config(load(folder).config, quantization_config=INT8)


def test_no_layer_is_left(folder):
    config = QuantizationConfig("int8", modules_to_not_convert=["model"])
    with pytest.raises(ConfigError, match="no layer of Qwen2_5_VLForConditionalGeneration"):
        load(folder, quantization_config=config)


def test_a_model_for_gpus_counts_packed_weights(folder, tmp_path):
    """Where a device has room is decided by bytes, and packed weights have some."""
    from qvl.weights.placement import held_tensors

    load(folder, quantization_config=QuantizationConfig("int8", head=True)).save_pretrained(tmp_path)
    model = load(tmp_path)
    held = dict(held_tensors(model))
    assert sum(tensor.nbytes for tensor in held.values()) == model.get_memory_footprint()
    assert "lm_head.qweight" in held
