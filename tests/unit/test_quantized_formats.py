"""AWQ and GPTQ checkpoints: read as they are, without rounding, whatever they bring."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qvl import QuantizationConfig, Qwen2_5_VLForConditionalGeneration
from qvl.config import Qwen2_5_VLConfig
from qvl.errors import CheckpointCorruptError, UnsupportedError
from qvl.ops.quantized import PackedWeight
from qvl.weights.files import Checkpoint
from qvl.weights.formats.awq import AwqConfig
from qvl.weights.formats.gptq import GptqConfig
from qvl.weights.quantization.linear import QuantizedLinear, Scheme
from support.packers import as_awq, as_gptq, awq_tensors, gptq_tensors
from support.tiny import random_ids, tiny_settings

GOLDEN = Path(__file__).parents[1] / "golden" / "quantized_golden.json"
CASES = json.loads(GOLDEN.read_text())
N, K = 24, 128


def tensor(stored):
    data = np.frombuffer(base64.b64decode(stored["data"]), stored["dtype"])
    return torch.from_numpy(data.reshape(stored["shape"]).copy())


def opened(folder, config, tensors, layer="layer"):
    save_file({f"{layer}.{leaf}": value for leaf, value in tensors.items()}, folder / "model.safetensors")
    return config.open(Checkpoint(folder))


def weight_of(source, layer="layer"):
    """The weight (N, K) in float32 and the scheme of a layer of ``source``; no scheme: full width."""
    read = {name.rpartition(".")[2]: source.read(name) for name in source.files}
    for name, value in read.items():
        assert tuple(value.shape) == source.shape(f"{layer}.{name}")
        assert value.is_floating_point() == source.is_floating_point(f"{layer}.{name}")
    if "weight" in read:
        return read["weight"], None
    bits = 4 if "zeros" in read else 8
    group = read["qweight"].shape[2] * (8 if bits == 4 else 4)
    order = read.pop("order", None)
    shape = (read["qweight"].shape[0] * 16, read["qweight"].shape[1] * group)
    linear = QuantizedLinear(PackedWeight(bits, group, shape, **read), order=order)
    return linear.dequantize(), linear.scheme


def integers(bits, groups, seed=0):
    """q (N, K), scales and zeros (N, G) as a checkpoint may hold them: every value, 0 and the last too."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 2**bits, (N, K), generator=generator)
    scales = (torch.rand(N, groups, generator=generator) + 0.01).half()
    return q, scales, torch.randint(0, 2**bits, (N, groups), generator=generator)


def expected(q, scales, zeros, group_of_K):
    return (q - zeros[:, group_of_K]).float() * scales.float()[:, group_of_K]


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("awq", Scheme(4, 32)),
        ("gptq 4", Scheme(4, 32)),
        ("gptq 4 act-order", Scheme(4, 32, ordered=True)),
        ("gptq 8 symmetric", Scheme(8, 32)),
        ("gptq 8", None),
    ],
)
def test_as_the_programs_that_write_them_read_them(tmp_path, name, scheme):
    case = CASES[name]
    config = AwqConfig() if case["method"] == "awq" else GptqConfig(case["bits"])
    source = opened(tmp_path, config, {key: tensor(value) for key, value in case["tensors"].items()})
    weight, found = weight_of(source)
    assert found == scheme
    assert torch.equal(weight.half(), tensor(case["weight"]).T)


@pytest.mark.parametrize(
    ("groups", "scheme"),
    [(4, Scheme(4, 32)), (2, Scheme(4, 64)), (1, Scheme(4, 128)), (8, None), (128, None)],
)
@pytest.mark.parametrize("method", ["awq", "gptq", "gptq_v2"])
def test_groups_of_every_size(tmp_path, method, groups, scheme):
    q, scales, zeros = integers(4, groups)
    group_of_K = torch.arange(K) // (K // groups)
    if method == "awq":
        source = opened(tmp_path, AwqConfig(), awq_tensors(q, scales, zeros))
    else:
        version = 2 if method == "gptq_v2" else 1
        tensors = gptq_tensors(q, scales, zeros, group_of_K, bits=4, version=version)
        source = opened(tmp_path, GptqConfig(4, zeros_minus_one=version == 1), tensors)
    weight, found = weight_of(source)
    assert torch.equal(weight[:N], expected(q, scales, zeros, group_of_K))
    assert found == scheme


def test_a_group_as_wide_as_the_layer(tmp_path):
    """group_size -1, wider than what the packed form has: the scales are repeated."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(0, 16, (N, 384), generator=generator)
    scales, zeros = (torch.rand(N, 1, generator=generator) + 0.1).half(), torch.full((N, 1), 8)
    whole = torch.zeros(384, dtype=torch.long)
    tensors = gptq_tensors(q, scales, zeros, whole, bits=4, version=1)
    del tensors["g_idx"]
    weight, found = weight_of(opened(tmp_path, GptqConfig(4), tensors))
    assert found == Scheme(4, 128)
    assert torch.equal(weight[:N], expected(q, scales, zeros, whole))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("regular", [True, False])
def test_act_order(tmp_path, bits, regular):
    q, scales, zeros = integers(bits, 4)
    if bits == 8:
        zeros[:] = 128
    group_of_K = torch.randperm(K, generator=torch.Generator().manual_seed(0)) // 32
    if not regular:  # one group has an input more than the others
        group_of_K[group_of_K.tolist().index(0)] = 1
    source = opened(
        tmp_path, GptqConfig(bits), gptq_tensors(q, scales, zeros, group_of_K, bits=bits, version=1)
    )
    weight, found = weight_of(source)
    assert found == (Scheme(bits, 32, ordered=True) if regular else None)
    assert torch.equal(weight[:N], expected(q, scales, zeros, group_of_K))


def test_a_layer_with_other_bits_than_the_rest(tmp_path):
    q, scales, zeros = integers(8, 4)
    zeros[:] = 128
    tensors = gptq_tensors(q, scales, zeros, torch.arange(K) // 32, bits=8, version=1)
    weight, found = weight_of(opened(tmp_path, GptqConfig(4), tensors))
    assert found == Scheme(8, 32)
    assert torch.equal(weight[:N], expected(q, scales, zeros, torch.arange(K) // 32))


def test_scales_that_are_no_float16(tmp_path):
    q, scales, zeros = integers(4, 4)
    group_of_K = torch.arange(K) // 32
    tensors = gptq_tensors(q, scales, zeros, group_of_K, bits=4, version=1)
    tensors["scales"] = tensors["scales"].float() * 1.0001
    weight, found = weight_of(opened(tmp_path, GptqConfig(4), tensors))
    assert found is None
    assert torch.equal(weight, expected(q, tensors["scales"].T, zeros, group_of_K))


# Whole models


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = tiny_settings(text={"hidden_size": 32, "intermediate_size": 64})
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**settings)).eval()


def write(folder, model, weights, convert, settings):
    """``model`` with its layers quantized and stored by ``convert``, and what such a config.json says."""
    model.save_pretrained(folder / "plain")
    config = QuantizationConfig(
        weights, 32 if weights == "int4" else None, modules_to_not_convert=["layers.1", "o_proj"]
    )
    packed = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder / "plain", quantization_config=config, dtype="float16"
    )
    tensors = dict(packed.state_dict())
    for name, layer in packed.named_modules():
        if isinstance(layer, QuantizedLinear):
            for leaf in ("qweight", "scales", "zeros"):
                tensors.pop(f"{name}.{leaf}", None)
            tensors |= {f"{name}.{leaf}": value for leaf, value in convert(layer.packed).items()}
    model.save_pretrained(folder, state_dict=tensors)
    values = json.loads((folder / "config.json").read_text())
    values |= {"quantization_config": {**settings, "modules_to_not_convert": ["visual"]}, "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(values))
    return packed


@pytest.mark.parametrize(
    ("weights", "convert", "settings"),
    [
        ("int4", as_awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
        ("int4", as_gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}),
        ("int8", as_gptq, {"quant_method": "gptq", "bits": 8, "sym": True}),
        (
            "int4",
            lambda packed: as_gptq(packed, version=2),
            {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
        ),
    ],
    ids=["awq", "gptq", "gptq 8", "gptq_v2"],
)
def test_a_model_is_read_and_saved_again(tmp_path, model, weights, convert, settings):
    packed = write(tmp_path, model, weights, convert, settings)
    read = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert read.dtype == torch.float16
    schemes = {n: m.scheme for n, m in read.named_modules() if isinstance(m, QuantizedLinear)}
    assert schemes == {n: m.scheme for n, m in packed.named_modules() if isinstance(m, QuantizedLinear)}
    assert isinstance(read.model.language_model.layers[0].self_attn.o_proj, nn.Linear)
    ids = random_ids(1, 9)
    with torch.no_grad():
        logits = read(ids).logits
        assert torch.equal(logits, packed(ids).logits)
        read.save_pretrained(tmp_path / "again")
        again = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "again")
        assert torch.equal(logits, again(ids).logits)
        wide = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, dtype="float32")
        assert wide(ids).logits.dtype == torch.float32
    stored = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert (stored["quant_method"], stored["weights"]) == ("qvl", weights)
    assert stored["modules_to_not_convert"] == ["visual"]


def test_a_model_whose_layers_all_stay_wide(tmp_path, model):
    def asymmetric(packed):
        tensors = as_gptq(packed)
        tensors["qzeros"] = tensors["qzeros"] + 1
        return tensors

    write(tmp_path, model, "int8", asymmetric, {"quant_method": "gptq", "bits": 8, "sym": False})
    read = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert not any(isinstance(module, QuantizedLinear) for module in read.modules())
    assert read.config.quantization_config is None
    read.save_pretrained(tmp_path / "again")
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert torch.equal(read(random_ids(1, 9)).logits, again(random_ids(1, 9)).logits)


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (AwqConfig, {"bits": 8}, "AWQ weights with 8 bits"),
        (AwqConfig, {"w_bit": 4, "version": "GEMV"}, "version 'gemv'"),
        (AwqConfig, {"bits": 4, "zero_point": False}, "zero_point False"),
        (GptqConfig, {"bits": 3}, "GPTQ weights with 3 bits"),
        (GptqConfig, {"bits": 4, "checkpoint_format": "marlin"}, "format 'marlin'"),
    ],
)
def test_settings_that_are_not_read(config, values, message):
    with pytest.raises(UnsupportedError, match=message):
        config.from_dict(values)


def test_tensors_that_are_missing_or_do_not_fit(tmp_path):
    q, scales, zeros = integers(4, 4)
    awq = awq_tensors(q, scales, zeros)
    gptq = gptq_tensors(q, scales, zeros, torch.arange(K) // 32, bits=4, version=1)
    for config, tensors, message in [
        (AwqConfig(), {"weight": scales}, "none of its layers has a qweight"),
        (AwqConfig(), {"qweight": awq["qweight"]}, "no qzeros, scales of layer"),
        (AwqConfig(), {**awq, "scales": scales}, r"scales of \(24, 4\)"),
        (GptqConfig(4), {"qweight": gptq["qweight"]}, "no qzeros, scales of layer"),
        (GptqConfig(4), {**gptq, "g_idx": gptq["g_idx"] + 1}, "g_idx of layer names groups"),
        (GptqConfig(4), {**gptq, "scales": gptq["scales"][:, :8]}, "do not fit each other"),
    ]:
        with pytest.raises(CheckpointCorruptError, match=message):
            opened(tmp_path, config, {name: value.contiguous() for name, value in tensors.items()})
