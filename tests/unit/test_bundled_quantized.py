"""Trained weights in 8 and 4 bits: the small model inside qvl answers what it answers at full width.

Its test set is a part of the questions of ``python -m examples.tiny.exam``.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from qvl import AutoProcessor, QuantizationConfig, Qwen2_5_VLForConditionalGeneration
from qvl.cli.quality import answered, compared, scored
from qvl.weights.quantization.whole import quantize_model, sensitive_layers

pytest.importorskip("sklearn", reason="scikit-learn ships the handwritten digits")
pytest.importorskip("skimage", reason="scikit-image ships photographs for backgrounds")

from examples.tiny.exam import examine, questions
from examples.tiny.lessons import SHARES, draw

SHARE = 0.15
CALIBRATION = 60  # lessons as in training


def load(**options):
    return Qwen2_5_VLForConditionalGeneration.from_pretrained("qvl/tiny", dtype=torch.float32, **options)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained("qvl/tiny")


@pytest.fixture(scope="module")
def rows():
    try:
        return list(questions(SHARE))
    except ImportError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def readings(processor, rows):
    stills = [task for task in SHARES if task not in ("motion", "order", "when", "unknown")]
    lessons = [draw(stills[i % len(stills)], random.Random(f"calibration {i}")) for i in range(CALIBRATION)]
    return answered(load(), processor, [lesson.messages[:-1] for lesson in lessons], lambda done, total: None)


def said(model, processor, rows):
    """Every answer, and the share that is right."""
    report = examine(model, processor, rows)
    return [prediction.answer for prediction in report.predictions], report.total.score


@pytest.fixture(scope="module")
def at_full_width(processor, rows):
    return said(load(), processor, rows)


def same(one, other):
    """The share of answers that are the same."""
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def test_8_bits(processor, rows, at_full_width):
    """Rounded to nearest, as ``quantization_config=`` does it; activations as they are."""
    answers, right = said(load(quantization_config=QuantizationConfig("int8", exact=True)), processor, rows)
    assert same(answers, at_full_width[0]) >= 0.97
    assert right >= at_full_width[1] - 0.01


def test_8_bits_with_rounded_activations(processor, rows, at_full_width, readings):
    """As ``qvl quantize --calibrate`` writes it: activations have 8 bits too."""
    model = load()
    quantize_model(model, QuantizationConfig("int8"), [reading.inputs for reading in readings])
    answers, right = said(model, processor, rows)
    assert same(answers, at_full_width[0]) >= 0.96
    assert right >= at_full_width[1] - 0.01


@pytest.mark.parametrize("calibrated", [False, True], ids=["to nearest", "calibrated"])
def test_4_bits(processor, rows, at_full_width, readings, calibrated):
    """With the layers that suffer most in 8 bits, as ``qvl quantize`` leaves them."""
    model, config = load(), QuantizationConfig("int4")
    inputs = [reading.inputs for reading in readings] if calibrated else []
    sensitive = sensitive_layers(model, config, inputs)
    quantize_model(model, replace(config, modules_in_int8=tuple(sensitive)), inputs)
    _, right = said(model, processor, rows)
    assert right >= at_full_width[1] - 0.03


def test_quality_is_measured(processor, readings):
    """The figures that ``--check`` prints tell 8 bits from 4, and 4 from weights that are broken."""
    plain = load()
    before = scored(plain, readings)
    alike = compared(before, before)
    assert (alike.perplexity_ratio, alike.agreement) == (1, 1)
    found = {}
    for name, config in {"int8": QuantizationConfig("int8"), "int4": QuantizationConfig("int4", 128)}.items():
        found[name] = compared(before, scored(load(quantization_config=config), readings))
    generated = sum(reading.inputs["input_ids"].shape[1] - reading.length for reading in readings)
    assert found["int8"].choices == alike.choices == generated
    assert alike.tokens > 2 * generated, "the text of the questions counts in the perplexity"
    assert abs(found["int8"].perplexity_ratio - 1) < 0.01
    assert found["int8"].agreement > 0.98
    assert abs(found["int4"].perplexity_ratio - 1) < 0.2
    with torch.no_grad():
        for layer in plain.model.language_model.layers:
            layer.mlp.down_proj.weight.neg_()
    broken = compared(before, scored(plain, readings))
    assert broken.perplexity_ratio > 1.2
    assert broken.agreement < found["int4"].agreement
