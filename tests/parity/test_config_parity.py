"""Configs against transformers': the same file means the same there and here, in both directions."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import pytest
import torch

from qvl.config import AutoConfig, Qwen2_5_VLConfig, Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from support.tiny import ROPE_SCALINGS, tiny_settings

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "configs").glob("*.json"))
# fmt: off
TEXT = [
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "use_cache", "tie_word_embeddings", "rope_theta", "use_sliding_window", "sliding_window",
    "max_window_layers", "layer_types", "attention_dropout", "rope_scaling", "bos_token_id", "eos_token_id",
    "pad_token_id", "output_attentions", "output_hidden_states", "return_dict", "use_return_dict",
]
VISION = [
    "depth", "hidden_size", "hidden_act", "intermediate_size", "num_heads", "in_channels", "patch_size",
    "spatial_merge_size", "temporal_patch_size", "tokens_per_second", "window_size", "out_hidden_size",
    "fullatt_block_indexes", "initializer_range",
]
OUTER = [
    "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "model_type",
    "dtype",
]
# fmt: on


def assert_same_meaning(ours, theirs):
    for name in TEXT:
        assert getattr(ours.text_config, name) == getattr(theirs.text_config, name), name
        assert getattr(ours, name) == getattr(theirs, name), f"{name} read from the outer config"
    for name in VISION:
        assert getattr(ours.vision_config, name) == getattr(theirs.vision_config, name), name
    for name in OUTER:
        assert getattr(ours, name) == getattr(theirs, name), name


def variants():
    window = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    mixed = {**window, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    changes = {"plain": {}, "tied": {"tie_word_embeddings": True}, "window": window, "mixed": mixed}
    changes |= {f"rope {name}": {"rope_scaling": rope} for name, rope in ROPE_SCALINGS.items()}
    changes["old spelling"] = {"rope_scaling": {"type": "mrope"}, "num_key_value_heads": None}
    return {name: tiny_settings(text=text, dtype="bfloat16") for name, text in changes.items()}


SETTINGS = variants()


def flat(settings):
    """The released layout of the same settings."""
    values = {**settings, **settings["text_config"]}
    return {key: value for key, value in values.items() if key not in ("text_config", "rope_type")}


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def copied(values):
    return json.loads(json.dumps(values))


@pytest.mark.parametrize("layout", [copied, flat], ids=["nested", "flat"])
@pytest.mark.parametrize("name", SETTINGS)
def test_files_mean_the_same_both_ways(name, layout, tmp_path):
    values = {"model_type": "qwen2_5_vl", **layout(SETTINGS[name])}
    ours, theirs = Qwen2_5_VLConfig(**copied(values)), transformers.Qwen2_5_VLConfig(**copied(values))
    assert_same_meaning(ours, theirs)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        read = transformers.AutoConfig.from_pretrained(tmp_path / folder)
        assert_same_meaning(Qwen2_5_VLConfig.from_pretrained(tmp_path / folder), read)
        assert_same_meaning(ours, read)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_released_files(path, tmp_path):
    theirs = transformers.Qwen2_5_VLConfig.from_pretrained(path)
    ours = AutoConfig.from_pretrained(path)
    assert_same_meaning(ours, theirs)
    assert ours.architectures == theirs.architectures
    assert ours.vision_config.in_chans == theirs.vision_config.in_chans == 3
    assert ours.vision_token_id == theirs.vision_token_id
    ours.save_pretrained(tmp_path)
    assert_same_meaning(ours, transformers.Qwen2_5_VLConfig.from_pretrained(tmp_path))


def test_defaults():
    assert_same_meaning(Qwen2_5_VLConfig(), transformers.Qwen2_5_VLConfig())
    text, vision = Qwen2_5_VLTextConfig(), Qwen2_5_VLVisionConfig()
    their_text = transformers.models.qwen2_5_vl.configuration_qwen2_5_vl.Qwen2_5_VLTextConfig()
    assert all(getattr(text, name) == getattr(their_text, name) for name in TEXT)
    assert vision.model_type == "qwen2_5_vl"
    assert text.model_type == their_text.model_type


@pytest.mark.parametrize(
    "name, value",
    [("hidden_size", 48), ("rope_theta", 5.0), ("use_cache", False), ("image_token_id", 1), ("new_key", "x")],
)
def test_setting_on_the_outer_config(name, value):
    configs = [cls(**copied(SETTINGS["plain"])) for cls in (Qwen2_5_VLConfig, transformers.Qwen2_5_VLConfig)]
    for config in configs:
        setattr(config, name, value)
    ours, theirs = configs
    assert getattr(ours, name) == getattr(theirs, name) == value
    assert hasattr(ours.text_config, name) == hasattr(theirs.text_config, name)


def test_text_config_of_a_whole_checkpoint(tmp_path):
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig as Theirs

    Qwen2_5_VLConfig(**SETTINGS["window"]).save_pretrained(tmp_path)
    ours, theirs = Qwen2_5_VLTextConfig.from_pretrained(tmp_path), Theirs.from_pretrained(tmp_path)
    assert all(getattr(ours, name) == getattr(theirs, name) for name in TEXT)
    assert ours.dtype == torch.bfloat16, "the checkpoint's, which transformers leaves out here"
