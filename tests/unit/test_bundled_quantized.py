"""Trained weights in 8 and 4 bits: the small model inside qvl answers what it answers at full width.

Its test set are all held-out scans, as ``python -m examples.digits.evaluate`` shows them.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch

from qvl import AutoProcessor, QuantizationConfig, Qwen2_5_VLForConditionalGeneration
from qvl.cli.quality import answered, compared, scored
from qvl.weights.quantization.whole import quantize_model, sensitive_layers

pytest.importorskip("sklearn")
from examples.digits.data import load_scans
from examples.digits.evaluate import KINDS, answers, cases, conversation

BATCH = 64
CALIBRATION = 48  # pictures of scans that the test set does not have


def load(**options):
    return Qwen2_5_VLForConditionalGeneration.from_pretrained("qvl/digits", dtype=torch.float32, **options)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained("qvl/digits")


@pytest.fixture(scope="module")
def shown():
    _, held_out = load_scans()
    return {digits: list(cases(held_out, digits)) for digits in KINDS}


@pytest.fixture(scope="module")
def readings(processor):
    training, _ = load_scans()
    asked = [conversation(case) for case in islice(cases(training, 3, seed=5), CALIBRATION)]
    return answered(load(), processor, asked, lambda done, total: None)


def said(model, processor, shown):
    return {
        digits: [
            answer
            for start in range(0, len(group), BATCH)
            for answer in answers(model, processor, group[start : start + BATCH])
        ]
        for digits, group in shown.items()
    }


def right(given, shown):
    return {
        digits: sum(a == case.number for a, case in zip(given[digits], group, strict=True))
        for digits, group in shown.items()
    }


@pytest.fixture(scope="module")
def at_full_width(processor, shown):
    return said(load(), processor, shown)


def test_every_answer_is_the_same_in_8_bits(processor, shown, at_full_width):
    """Rounded to nearest, as ``quantization_config=`` does it; activations as they are."""
    model = load(quantization_config=QuantizationConfig("int8", exact=True))
    assert said(model, processor, shown) == at_full_width


def test_every_answer_is_the_same_in_8_bits_with_rounded_activations(
    processor, shown, at_full_width, readings
):
    """As ``qvl quantize --calibrate`` writes it: activations have 8 bits too."""
    model = load()
    quantize_model(model, QuantizationConfig("int8"), [reading.inputs for reading in readings])
    assert said(model, processor, shown) == at_full_width


@pytest.mark.parametrize("calibrated", [False, True], ids=["to nearest", "calibrated"])
def test_at_most_a_point_is_lost_in_4_bits(processor, shown, at_full_width, readings, calibrated):
    model, config = load(), QuantizationConfig("int4")
    inputs = [reading.inputs for reading in readings] if calibrated else []
    sensitive = sensitive_layers(model, config, inputs)
    quantize_model(model, replace(config, modules_in_int8=tuple(sensitive)), inputs)
    before, after = right(at_full_width, shown), right(said(model, processor, shown), shown)
    for digits, group in shown.items():
        assert after[digits] >= before[digits] - 0.01 * len(group)


def test_quality_is_measured(processor, readings):
    """The figures that ``--check`` prints tell 8 bits from 4, and 4 from weights that are broken."""
    plain = load()
    before = scored(plain, readings)
    same = compared(before, before)
    assert (same.perplexity_ratio, same.agreement) == (1, 1)
    found = {}
    for name, config in {"int8": QuantizationConfig("int8"), "int4": QuantizationConfig("int4", 128)}.items():
        found[name] = compared(before, scored(load(quantization_config=config), readings))
    generated = sum(reading.inputs["input_ids"].shape[1] - reading.length for reading in readings)
    assert found["int8"].choices == same.choices == generated
    assert same.tokens > 2 * generated, "the text of the questions counts in the perplexity"
    assert abs(found["int8"].perplexity_ratio - 1) < 0.01
    assert found["int8"].agreement > 0.99
    assert abs(found["int4"].perplexity_ratio - 1) < 0.2
    with torch.no_grad():
        plain.model.language_model.layers[1].mlp.down_proj.weight.neg_()
    broken = compared(before, scored(plain, readings))
    assert broken.perplexity_ratio > 1.2
    assert broken.agreement < found["int4"].agreement
