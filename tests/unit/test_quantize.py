"""torchao quantization on a CPU: what is converted, what is left, what is refused, saving and loading."""

from __future__ import annotations

import builtins
import json

import pytest
import torch
from torch import nn

from qvl.config import Qwen2_5_VLConfig
from qvl.errors import ConfigError, InputTypeError, MissingDependencyError, UnsupportedError
from qvl.modeling import Qwen2_5_VLForConditionalGeneration
from qvl.weights.quantize import TorchAoConfig
from qvl.weights.quantized_files import is_quantized
from qvl.weights.quantizer import quantize_module
from support.tiny import random_ids, tiny_settings

torchao = pytest.importorskip("torchao")

WIDTHS = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 192}
NAMED = {
    "int4_weight_only": (TorchAoConfig("int4_weight_only", group_size=32), 0.5),
    "int8_weight_only": (TorchAoConfig("int8_weight_only"), 0.1),
    "int8_dynamic_activation_int8_weight": (TorchAoConfig("int8_dynamic_activation_int8_weight"), 0.1),
    "object": (TorchAoConfig(torchao.quantization.Int8WeightOnlyConfig()), 0.1),
}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = tiny_settings(
            text={**WIDTHS, "tie_word_embeddings": request.param}
            | {"rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2]}},
            vision={"hidden_size": 64, "num_heads": 4, "intermediate_size": 44, "out_hidden_size": 64},
        )
        Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**settings)).save_pretrained(folder)
    return folder


def load(folder, **options):
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, **options)


@torch.no_grad()
def logits(model):
    return model(random_ids(1, 12)).logits.float()


def quantized_names(model):
    return {name for name, parameter in model.named_parameters() if is_quantized(parameter)}


def linear_names(model):
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.filterwarnings("ignore:layers that keep")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMED)
def test_quantized_models_answer_nearly_the_same(folder, name, dtype):
    config, tolerance = NAMED[name]
    exact = logits(load(folder))
    model = load(folder, dtype=dtype, quantization_config=config)
    assert (logits(model) - exact).norm() / exact.norm() < tolerance
    assert model.config.dtype == getattr(torch, dtype)
    expected = linear_names(model) - {"lm_head.weight"}
    if name == "int4_weight_only":  # the tower's inner width of 44 fits neither groups of 32 nor blocks of 16
        expected -= {n for n in expected if "visual" in n and "mlp" in n and "merger" not in n}
    assert quantized_names(model) == expected
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head is embedding) == model.config.tie_word_embeddings


@pytest.mark.filterwarnings("ignore:layers that keep")
def test_as_on_the_page(tmp_path):
    """``TorchAoConfig("int4_weight_only", group_size=128)`` with widths that 128 divides."""
    wide = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2}
    rope = {"rope_scaling": {"rope_type": "default", "mrope_section": [4, 6, 6]}}
    settings = tiny_settings(text={**wide, **rope})
    Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**settings)).save_pretrained(tmp_path)
    model = load(
        tmp_path,
        dtype=torch.bfloat16,
        device_map="cpu" if torch.cuda.is_available() else "auto",
        quantization_config=TorchAoConfig("int4_weight_only", group_size=128),
    )
    layer = model.model.language_model.layers[1]
    assert is_quantized(layer.self_attn.q_proj.weight)
    assert is_quantized(layer.mlp.down_proj.weight)
    assert torch.isfinite(logits(model)).all()


def test_layers_that_do_not_fit_are_listed(folder):
    with pytest.warns(
        UserWarning, match=r"group_size 32 does not divide in_features 44 \(model\.visual"
    ) as caught:
        load(folder, quantization_config=NAMED["int4_weight_only"][0])
    assert "out_features 44 is not a multiple of 16" in str(caught[0].message)


def test_no_layer_fits(folder):
    with pytest.raises(ConfigError, match="no layer can be quantized: group_size 128 does not divide"):
        load(folder, quantization_config=TorchAoConfig("int4_weight_only", ["merger", "lm_head"]))


def test_modules_to_not_convert(folder):
    config = TorchAoConfig("int8_weight_only", modules_to_not_convert=["model.visual", "layers.1"])
    model = load(folder, quantization_config=config)
    names = quantized_names(model)
    assert not any("visual" in name or "layers.1." in name for name in names)
    assert "model.language_model.layers.0.mlp.up_proj.weight" in names
    assert ("lm_head.weight" in names) == (not model.config.tie_word_embeddings), (
        "a tied head stays one tensor"
    )


def test_embeddings_and_head(folder):
    config = TorchAoConfig("int8_weight_only", include_input_output_embeddings=True)
    exact, model = logits(load(folder)), load(folder, quantization_config=config)
    assert is_quantized(model.get_input_embeddings().weight)
    assert is_quantized(model.lm_head.weight)
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings
    assert (logits(model) - exact).norm() / exact.norm() < 0.1
    with pytest.raises(ConfigError, match="has no embeddings"):
        quantize_module(model, TorchAoConfig("int4_weight_only", None, True, group_size=32))


@pytest.mark.parametrize("name", ["int8_weight_only", "int8_dynamic_activation_int8_weight", "object"])
@pytest.mark.parametrize("shard", ["5GB", "30KB"])
def test_int8_is_saved_and_loaded(folder, tmp_path, name, shard):
    model = load(folder, quantization_config=NAMED[name][0], dtype="bfloat16")
    model.save_pretrained(tmp_path, max_shard_size=shard)
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert stored["quant_method"] == "torchao"
    again = load(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert quantized_names(again) == quantized_names(model)
    assert again.config.dtype == torch.bfloat16
    for refused in ({"quantization_config": NAMED[name][0]}, {"dtype": "float32"}):
        with pytest.raises(UnsupportedError, match="quantized"):
            load(tmp_path, **refused)


@pytest.mark.filterwarnings("ignore:layers that keep")
def test_int4_on_a_cpu_cannot_be_saved_and_says_so(folder, tmp_path):
    model = load(folder, quantization_config=NAMED["int4_weight_only"][0])
    with pytest.raises(UnsupportedError, match="save the model before quantizing it"):
        model.save_pretrained(tmp_path / "new")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_checkpoints_quantized_otherwise(folder, tmp_path):
    model = load(folder)
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    model.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="method 'bitsandbytes'"):
        load(tmp_path)
    model.config.quantization_config = TorchAoConfig("int8_weight_only").to_dict()
    model.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="no torchao header"):
        load(tmp_path)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"load_in_4bit": True}, "method None and keys load_in_4bit"),
        ({"quant_method": "torchao"}, "with a quant_type"),
        ({"quant_method": "gptq", "bits": 4}, "not quantized by gptq while they are loaded"),
    ],
)
def test_settings_of_other_methods(folder, values, message):
    with pytest.raises(UnsupportedError, match=message):
        load(folder, quantization_config=values)


def test_a_quantization_config_that_is_none(folder):
    with pytest.raises(InputTypeError, match="TorchAoConfig or its dict, got str"):
        load(folder, quantization_config="int8_weight_only")
    model = load(folder, quantization_config=TorchAoConfig("int8_weight_only").to_dict())
    assert quantized_names(model)


@pytest.mark.parametrize("ends", [False, True])
def test_a_tied_head_can_be_parted_from_its_embedding(folder, tmp_path, ends):
    config = TorchAoConfig("int8_weight_only", ["visual"], ends, untie_embedding_weights=True)
    exact, model = logits(load(folder)), load(folder, quantization_config=config)
    assert not model.config.tie_word_embeddings
    assert is_quantized(model.lm_head.weight)
    assert is_quantized(model.get_input_embeddings().weight) == ends
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert (logits(model) - exact).norm() / exact.norm() < 0.1
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))


@pytest.mark.parametrize(
    "arguments, keywords, message",
    [
        (("int3",), {}, "'int3'; expected one of int4_weight_only"),
        (("int4_weight_only",), {"group_size": 100}, "group_size is 100; expected one of 32"),
        (("int4_weight_only",), {"groups": 1}, "does not know groups; it takes group_size"),
        (("int8_weight_only",), {"group_size": 32}, "it takes no keywords"),
        ((torchao.quantization.Int8WeightOnlyConfig(),), {"group_size": 32}, "settings inside"),
    ],
)
def test_settings_that_are_not_offered(arguments, keywords, message):
    with pytest.raises(ConfigError, match=message):
        TorchAoConfig(*arguments, **keywords)


def test_settings_of_the_wrong_kind():
    with pytest.raises(InputTypeError, match="got int"):
        TorchAoConfig(4)
    with pytest.raises(ConfigError, match="256 is not offered on a CPU"):
        quantize_module(nn.Sequential(nn.Linear(256, 16)), TorchAoConfig("int4_weight_only", group_size=256))


@pytest.mark.parametrize("name", NAMED)
def test_settings_round_trip(name):
    config = NAMED[name][0]
    values = json.loads(json.dumps(config.to_dict()))
    assert TorchAoConfig.from_dict(values).to_dict() == config.to_dict()
    assert TorchAoConfig("int4_weight_only").group_size == 128


def test_without_torchao(folder, monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.split(".")[0] == "torchao":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingDependencyError, match=r'pip install "qvl\[quant\]"'):
        load(folder, quantization_config=TorchAoConfig("int8_weight_only"))
