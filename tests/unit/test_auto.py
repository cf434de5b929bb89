"""The Auto classes: which class reads which checkpoint, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

import qvl
from qvl.errors import CheckpointError, ConfigError, InputTypeError
from support.checkpoint import write_checkpoint

MODELS = {
    "AutoModel": qvl.Qwen2_5_VLModel,
    "AutoModelForImageTextToText": qvl.Qwen2_5_VLForConditionalGeneration,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def text_folder(folder, tmp_path_factory):
    """The decoder saved alone."""
    text_folder = tmp_path_factory.mktemp("text")
    qvl.Qwen2_5_VLTextModel.from_pretrained(folder).save_pretrained(text_folder)
    return text_folder


@pytest.fixture
def llama(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    return tmp_path


@pytest.mark.parametrize("name", MODELS)
def test_models(folder, name):
    auto = getattr(qvl, name)
    model = auto.from_pretrained(folder, dtype="bfloat16", device_map="auto", attn_implementation="eager")
    assert type(model) is MODELS[name] and not model.training
    assert (model.dtype, model.config._attn_implementation) == (torch.bfloat16, "eager")
    config = qvl.AutoConfig.from_pretrained(folder)
    assert type(auto.from_pretrained(folder, config=config)) is MODELS[name]
    fresh = auto.from_config(config, dtype=torch.float16)
    assert type(fresh) is MODELS[name] and fresh.dtype == torch.float16


def test_the_decoder_alone(folder, text_folder):
    model = qvl.AutoModel.from_pretrained(text_folder)
    assert type(model) is qvl.Qwen2_5_VLTextModel
    expected = qvl.Qwen2_5_VLTextModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    config = qvl.AutoConfig.from_pretrained(text_folder)
    assert type(config) is qvl.Qwen2_5_VLTextConfig
    assert type(qvl.AutoModel.from_config(config)) is qvl.Qwen2_5_VLTextModel
    with pytest.raises(ConfigError, match="qwen2_5_vl_text"):
        qvl.AutoModelForImageTextToText.from_pretrained(text_folder)
    with pytest.raises(ConfigError, match="needs a config of type qwen2_5_vl, got Qwen2_5_VLTextConfig"):
        qvl.AutoModelForImageTextToText.from_config(config)


def test_processor_and_tokenizer(folder):
    assert type(qvl.AutoProcessor.from_pretrained(folder)) is qvl.Qwen2_5_VLProcessor
    assert type(qvl.AutoTokenizer.from_pretrained(folder)) is qvl.Qwen2TokenizerFast
    limits = qvl.AutoProcessor.from_pretrained(folder, min_pixels=4 * 784, max_pixels=16 * 784)
    assert (limits.image_processor.min_pixels, limits.image_processor.max_pixels) == (4 * 784, 16 * 784)


@pytest.mark.parametrize("name", ["AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor"])
def test_another_model_type(llama, name):
    with pytest.raises(ConfigError, match="'llama'; expected 'qwen2_5_vl'"):
        getattr(qvl, name).from_pretrained(llama)


def test_another_tokenizer(llama):
    with pytest.raises(ConfigError, match="LlamaTokenizer"):
        qvl.AutoTokenizer.from_pretrained(llama)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_no_config(folder, name):
    with pytest.raises(ConfigError, match="got dict"):
        getattr(qvl, name).from_config({})
    with pytest.raises(InputTypeError, match="got dict"):
        getattr(qvl, name).from_pretrained(folder, config={})
    with pytest.raises(CheckpointError, match=f"{name}.from_pretrained"):
        getattr(qvl, name)()
