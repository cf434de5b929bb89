"""Rounding with compensation: the algorithm against itself written out, and the walk through a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qvl import QuantizationConfig, Qwen2_5_VLForConditionalGeneration
from qvl.config import Qwen2_5_VLConfig
from qvl.errors import ConfigError, NonFiniteError
from qvl.ops.quantized import (
    dequantize,
    int4_integers,
    int8_scales,
    integers_of,
    quantize_int4,
    quantize_int8,
    unpack,
)
from qvl.weights.quantization.calibrate import walk
from qvl.weights.quantization.compensation import carried, compensated
from qvl.weights.quantization.linear import QuantizedLinear, Scheme
from qvl.weights.quantization.whole import quantize_model, relative_error, sensitive_layers
from support.tiny import IMAGE, VISION_END, VISION_START, random_ids, random_patches, tiny_settings

SCHEMES = [Scheme(8, 32), Scheme(4, 32), Scheme(4, 64), Scheme(4, 128)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(T, K, seed=1):
    """Rows as layers get them: much of one input is in others too, and some are far larger."""
    x = normal(T, K, seed=seed) + normal(T, max(1, K // 4), seed=seed + 1) @ normal(
        max(1, K // 4), K, seed=seed + 2
    )
    x[:, :: max(1, K // 3)] *= 10
    return x


def nearest(weight, scheme):
    return quantize_int8(weight) if scheme.bits == 8 else quantize_int4(weight, scheme.group)


def written_out(weight, moments, scheme):
    """The algorithm input by input in float64, as its paper states it before any of its tricks: the inverse
    is shrunk by elimination, and every remainder goes to all inputs that follow at once."""
    K = weight.shape[1]
    h = moments.double() + torch.eye(K) * moments.double().diagonal().mean() * 0.01
    inverse, w, integers = torch.linalg.inv(h), weight.double().clone(), []
    for k in range(K):
        if k % scheme.group == 0:
            group = torch.zeros(len(w), scheme.group)
            ahead = w[:, k : k + scheme.group].float()
            group[:, : ahead.shape[1]] = ahead
            scales, zeros = (int8_scales(group), None) if scheme.bits == 8 else int4_integers(group)[1:]
        q = integers_of(w[:, k, None].float(), scales, zeros)[:, 0]
        near = (q if zeros is None else q - zeros.float()).double() * scales.double()
        integers.append(q)
        w -= torch.outer((w[:, k] - near) / inverse[k, k], inverse[k])
        inverse = inverse - torch.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return torch.stack(integers, dim=1)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", [(24, 128), (21, 171), (16, 300)])
def test_the_algorithm(shape, scheme):
    weight, x = normal(*shape), inputs(600, shape[1])
    packed = compensated(weight, carried(x.T @ x), scheme, (1.0,))
    expected = written_out(weight, x.T @ x, scheme)
    agree = (unpack(packed)[0] == expected).float().mean()
    assert agree > 0.995  # float32 here, float64 there: a tie now and then, and what it carries on


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_outputs_change_less_than_rounded_to_nearest(scheme):
    weight, x = normal(40, 171), inputs(600, 171)
    packed = compensated(weight, carried(x.T @ x), scheme, (1.0,))
    assert packed.shape == (40, 171)
    fresh = inputs(200, 171)[100:]
    layer = nn.Linear(171, 40, bias=False)
    layer.weight.data = weight
    errors = [relative_error(layer, p, fresh) for p in (packed, nearest(weight, scheme))]
    assert errors[0] < 0.6 * errors[1]


def test_inputs_that_are_always_zero_are_rounded_to_nearest():
    weight, x = normal(16, 64), inputs(200, 64)
    x[:, 32:] = 0
    packed = compensated(weight, carried(x.T @ x), Scheme(8, 32), (1.0,))
    near = quantize_int8(weight)
    assert torch.equal(dequantize(packed)[:, 32:], dequantize(near)[:, 32:])
    assert not torch.equal(dequantize(packed)[:, :32], dequantize(near)[:, :32])
    nothing = compensated(weight, carried(torch.zeros(64, 64)), Scheme(8, 32), (1.0,))
    assert torch.equal(dequantize(nothing), dequantize(near))


def test_fewer_rows_than_inputs_will_do():
    weight, x = normal(16, 256), inputs(8, 256)
    packed = compensated(weight, carried(x.T @ x), Scheme(4, 64), (1.0,))
    assert dequantize(packed).isfinite().all()


def test_inputs_that_are_not_finite():
    moments = torch.eye(64)
    moments[3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="not finite in calibration"):
        carried(moments)


# Through a model


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = tiny_settings(text={"tie_word_embeddings": True})
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**settings)).eval()


def prompt(seed):
    """A question with a picture, or every third one without."""
    text = random_ids(1, 12, seed=seed)
    if seed % 3 == 2:
        return {"input_ids": text}
    picture = torch.tensor([[VISION_START, *[IMAGE] * 4, VISION_END]])
    grid = torch.tensor([[1, 4, 4]])
    patches = random_patches([(1, 4, 4)], seed=seed)
    return {"input_ids": torch.cat([text, picture, text], 1), "pixel_values": patches, "image_grid_thw": grid}


PROMPTS = [prompt(seed) for seed in range(6)]
WHOLE = QuantizationConfig("int4", 32, vision=True, head=True)


@torch.no_grad()
def outputs(model):
    return torch.cat([model(**p).logits[0] for p in PROMPTS])


def linear_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def inputs_of(model, names):
    """What reaches the layers when the model reads the prompts."""
    real = {name: [] for name in names}

    def keep(name):
        return lambda _, x: real[name].append(x[0].flatten(0, -2))

    hooks = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    for given in PROMPTS:
        model(**given)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(found) for name, found in real.items()}


@torch.no_grad()
def test_every_layer_is_seen_with_what_really_reaches_it(model):
    """The moments of a layer are those of its inputs in the model whose earlier blocks are quantized."""
    names, replaced = linear_names(model), []
    for seen in walk(model, PROMPTS, names):
        block = [name for entry in seen for name in entry.names]
        real = inputs_of(model, block)
        for entry in seen:
            for name in entry.names:
                x = real[name]
                torch.testing.assert_close(entry.moments_KK, x.T @ x, rtol=1e-3, atol=1e-3, msg=name)
        for name in block:
            owner, _, leaf = name.rpartition(".")
            layer = model.get_submodule(name)
            setattr(
                model.get_submodule(owner), leaf, QuantizedLinear(quantize_int4(layer.weight, 32), layer.bias)
            )
        replaced += block
    assert replaced == names
    assert not linear_names(model)


def test_layers_that_get_the_same_input_share_what_is_seen(model):
    names = linear_names(model)
    blocks = list(walk(model, PROMPTS, names))
    shared = [[name.rpartition(".")[2] for name in entry.names] for entry in blocks[-2]]
    assert shared == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert [entry.names for entry in blocks[-1]] == [["lm_head"]]
    some = list(walk(model, PROMPTS, ["model.language_model.layers.1.mlp.up_proj"]))
    assert [entry.names for seen in some for entry in seen] == [["model.language_model.layers.1.mlp.up_proj"]]


def test_a_calibrated_model_is_nearer_to_the_original(model, tmp_path):
    model.save_pretrained(tmp_path)
    exact, names = outputs(model), linear_names(model)
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    done = []
    reports = quantize_model(model, WHOLE, PROMPTS, lambda i, n: done.append((i, n)))
    assert [report.name for report in reports] == names
    assert done == [(i + 1, len(names)) for i in range(len(names))]
    assert all(0 < report.error < 0.2 for report in reports)
    assert not model.config.tie_word_embeddings
    assert model.config.quantization_config == WHOLE.to_dict()
    nearest_reports = quantize_model(plain, WHOLE)
    assert all(0.03 < report.error < 0.12 for report in nearest_reports), "errors of the weights"
    changes = [(outputs(m) - exact).norm() / exact.norm() for m in (model, plain)]
    assert changes[0] < 0.9 * changes[1], "random weights have little that could make up for an error"
    model.save_pretrained(tmp_path / "saved")
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert torch.equal(outputs(again), outputs(model))


def test_prompts_without_pictures_leave_the_tower_to_rounding(model):
    reports = quantize_model(model, WHOLE, [{"input_ids": random_ids(1, 9)}])
    assert all(isinstance(model.get_submodule(report.name), QuantizedLinear) for report in reports)
    assert any("visual" in report.name for report in reports)


@pytest.mark.parametrize("prompts", [(), PROMPTS], ids=["without prompts", "with prompts"])
def test_sensitive_layers_are_found(model, prompts):
    config = QuantizationConfig("int4", 32)
    assert not sensitive_layers(model, config)
    name = "model.language_model.layers.1.mlp.down_proj"
    with torch.no_grad():
        weight = model.get_submodule(name).weight
        weight[:, 5] *= 100  # one large value in every group leaves no steps for the others
        model.get_submodule("model.language_model.layers.1.mlp.up_proj").weight[5] = 0
    before = weight.clone()
    found = sensitive_layers(model, config, prompts)
    if prompts:  # what is multiplied by nothing changes nothing that is small: the others are off
        assert name in found and found[name] > 2
    else:
        assert not found, "a large value makes the whole weight large, and the error small beside it"
    assert torch.equal(weight, before)


def test_nothing_to_quantize(model):
    with pytest.raises(ConfigError, match="no layer"):
        quantize_model(model, QuantizationConfig("int8", modules_to_not_convert=["model"]))
