"""Every parameter that the documentation page names is a parameter here, with the same default."""

from __future__ import annotations

import inspect

import pytest
import transformers
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as theirs

import qvl

pytestmark = pytest.mark.oracle

FORWARDS = ["Qwen2_5_VLTextModel", "Qwen2_5_VLModel", "Qwen2_5_VLForConditionalGeneration"]
CONFIGS = ["Qwen2_5_VLConfig", "Qwen2_5_VLTextConfig"]


def parameters(function):
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    signature = inspect.signature(function).parameters
    return {name: p.default for name, p in signature.items() if p.kind not in kinds}


def assert_offers(ours, expected):
    have = parameters(ours)
    assert set(parameters(expected)) <= set(have)
    assert {name: have[name] for name in parameters(expected)} == parameters(expected)


@pytest.mark.parametrize("name", FORWARDS)
def test_forward(name):
    assert_offers(getattr(qvl, name).forward, getattr(theirs, name).forward)
    names = list(parameters(getattr(theirs, name).forward))
    assert list(parameters(getattr(qvl, name).forward))[: len(names)] == names  # positional calls too
    kinds = {p.kind for p in inspect.signature(getattr(qvl, name).forward).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD in kinds


@pytest.mark.parametrize("name", CONFIGS)
def test_config(name):
    assert_offers(getattr(qvl, name).__init__, getattr(transformers, name).__init__)


def test_processor():
    assert_offers(qvl.Qwen2_5_VLProcessor.__init__, transformers.Qwen2_5_VLProcessor.__init__)
    assert_offers(
        qvl.Qwen2_5_VLProcessor.post_process_image_text_to_text,
        transformers.Qwen2_5_VLProcessor.post_process_image_text_to_text,
    )
