"""The three configs: defaults, layouts, forwarding, what is refused, and files."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch

from qvl.config import AutoConfig, Qwen2_5_VLConfig, Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from qvl.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    ConfigError,
    ConfigKeyError,
    UnknownNameError,
)

ROPE = {"type": "mrope", "mrope_section": [2, 3, 3]}
FLAT = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "bos_token_id": 7,
    "eos_token_id": 8,
    "rope_scaling": ROPE,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vision_token_id": 151654,
    "vision_config": {"depth": 2, "hidden_size": 32, "num_heads": 4, "in_chans": 3, "spatial_patch_size": 14},
}
NESTED = {
    "model_type": "qwen2_5_vl",
    "dtype": "bfloat16",
    "text_config": {k: v for k, v in FLAT.items() if k not in ("vision_config", "model_type", "torch_dtype")},
    "vision_config": FLAT["vision_config"],
}


def test_defaults_are_those_of_the_page():
    config = Qwen2_5_VLConfig()
    text, vision = config.text_config, config.vision_config
    assert (text.vocab_size, text.hidden_size, text.intermediate_size) == (152064, 8192, 29568)
    assert (text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads) == (80, 64, 8)
    assert (text.hidden_act, text.max_position_embeddings, text.initializer_range) == ("silu", 32768, 0.02)
    assert (text.rms_norm_eps, text.use_cache, text.tie_word_embeddings) == (1e-5, True, False)
    assert (text.rope_theta, text.rope_scaling, text.attention_dropout) == (1e6, None, 0.0)
    assert (text.use_sliding_window, text.sliding_window, text.max_window_layers) == (False, None, 80)
    assert text.layer_types == ["full_attention"] * 80
    assert text.head_dim == 128
    assert text.mrope_section == [16, 24, 24]
    assert (vision.depth, vision.hidden_size, vision.intermediate_size) == (32, 3584, 3420)
    assert (vision.num_heads, vision.in_channels, vision.patch_size) == (16, 3, 14)
    assert (vision.spatial_merge_size, vision.temporal_patch_size, vision.tokens_per_second) == (2, 2, 4)
    assert (vision.window_size, vision.out_hidden_size) == (112, 3584)
    assert vision.fullatt_block_indexes == [7, 15, 23, 31]
    assert (config.image_token_id, config.video_token_id) == (151655, 151656)
    assert (config.vision_start_token_id, config.vision_end_token_id) == (151652, 151653)
    assert (config.dtype, config.use_return_dict, config.output_attentions) == (None, True, False)


def test_two_configs_share_no_lists():
    Qwen2_5_VLVisionConfig().fullatt_block_indexes.append(0)
    assert Qwen2_5_VLVisionConfig().fullatt_block_indexes == [7, 15, 23, 31]


@pytest.mark.parametrize("layout", [FLAT, NESTED], ids=["flat", "nested"])
def test_both_layouts_say_the_same(layout):
    before = copy.deepcopy(layout)
    config = Qwen2_5_VLConfig(**layout)
    assert layout == before, "what the caller handed over is left alone"
    assert (config.hidden_size, config.text_config.hidden_size) == (64, 64)
    assert config.text_config.tie_word_embeddings is config.tie_word_embeddings is True
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (7, 8, None)
    assert config.rope_scaling == {"type": "default", "rope_type": "default", "mrope_section": [2, 3, 3]}
    assert (config.dtype, config.torch_dtype, config.dtype_name) == (
        torch.bfloat16,
        torch.bfloat16,
        "bfloat16",
    )
    assert (config.vision_config.depth, config.vision_config.in_chans) == (2, 3)


def test_the_outer_level_serves_where_the_inner_is_silent():
    """transformers 5 keeps these outside of text_config; where both speak, the inner one counts."""
    text = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2_5_VLConfig(text_config=text, tie_word_embeddings=True, eos_token_id=3)
    assert (config.tie_word_embeddings, config.eos_token_id) == (True, 3)
    config = Qwen2_5_VLConfig(text_config={**text, "tie_word_embeddings": False}, tie_word_embeddings=True)
    assert config.tie_word_embeddings is False


def test_rope_parameters_of_transformers_5():
    rope = {"rope_theta": 5e5, "rope_type": "default", "mrope_section": [16, 24, 24]}
    config = Qwen2_5_VLTextConfig(rope_parameters=rope)
    assert config.rope_theta == 5e5
    assert config.rope_scaling == {"rope_type": "default", "mrope_section": [16, 24, 24]}


def test_text_settings_are_read_and_set_through_the_outer_config():
    config = Qwen2_5_VLConfig(**FLAT)
    config.hidden_size = 128
    config.use_cache = False
    assert (config.text_config.hidden_size, config.text_config.use_cache) == (128, False)
    config.text_config.vocab_size = 5
    assert config.vocab_size == 5
    config.image_token_id = 9
    assert not hasattr(config.text_config, "image_token_id")
    assert config.model_type == "qwen2_5_vl"
    config.output_hidden_states = True
    assert config.text_config.output_hidden_states is True
    with pytest.raises(AttributeError, match="no setting 'nonsense'"):
        config.nonsense  # noqa: B018


def test_unknown_keys_are_kept_and_saved_back():
    config = Qwen2_5_VLConfig.from_dict({**FLAT, "my_key": {"a": [1]}})
    assert (config.my_key, config.vision_token_id) == ({"a": [1]}, 151654)
    saved = json.loads(config.to_json_string())
    assert (saved["my_key"], saved["vision_token_id"]) == ({"a": [1]}, 151654)
    assert saved["vision_config"]["spatial_patch_size"] == 14


def test_sub_configs_as_objects():
    text = Qwen2_5_VLTextConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=Qwen2_5_VLVisionConfig(depth=3))
    assert config.text_config is text
    assert config.vision_config.depth == 3
    with pytest.raises(ConfigError, match="expected a config or a dict, got int"):
        Qwen2_5_VLConfig(text_config=3)


def test_layer_types_follow_the_window_and_the_depth():
    config = Qwen2_5_VLConfig(**FLAT, use_sliding_window=True, sliding_window=16, max_window_layers=3)
    assert config.layer_types == ["full_attention"] * 3 + ["sliding_attention"]
    assert config.sliding_window == 16
    config.num_hidden_layers = 5
    assert config.layer_types == ["full_attention"] * 3 + ["sliding_attention"] * 2
    chosen = ["sliding_attention", "full_attention"] * 2
    given = Qwen2_5_VLConfig(**FLAT, use_sliding_window=True, sliding_window=16, layer_types=chosen)
    assert given.layer_types == chosen
    assert Qwen2_5_VLConfig.from_dict(given.to_dict()).layer_types == chosen


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layer_types": ["full_attention"]}, "1 entries for num_hidden_layers 4"),
        ({"layer_types": ["full"] * 4}, "holds 'full'"),
        ({"layer_types": ["sliding_attention"] * 4}, "use_sliding_window is off"),
        ({"use_sliding_window": True, "sliding_window": 0}, "sliding_window is 0"),
        ({"hidden_size": 62}, "hidden_size 62 is not a multiple of num_attention_heads 4"),
        ({"hidden_size": 60}, "head_dim 15 must be even"),
        ({"hidden_size": 0}, "hidden_size is 0; expected an integer of 1 or more"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers is '4'"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"torch_dtype": "int3"}, "dtype is 'int3'"),
        ({"vision_config": {"hidden_size": 34, "num_heads": 4}}, "multiple of 4 x num_heads"),
        ({"vision_config": {"window_size": 14}}, "smaller than one merged token"),
        ({"vision_config": {"depth": -1}}, "vision_config: depth is -1"),
        ({"vision_config": {"tokens_per_second": -1}}, "tokens_per_second is -1"),
        ({"vision_config": {"tokens_per_second": "2"}}, "tokens_per_second is '2'; expected a number from 0"),
        ({"vision_config": {"initializer_range": -1}}, "vision_config: initializer_range is -1"),
        ({"vision_config": {"fullatt_block_indexes": None}}, "fullatt_block_indexes is None"),
        ({"vision_config": {"fullatt_block_indexes": [1.5]}}, "expected a list of integers"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"rope_theta": 1}, "rope_theta is 1; expected a number above 1"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06; expected a number from 0"),
        ({"attention_dropout": 1.5}, "attention_dropout is 1.5; expected a number from 0 to 1"),
        ({"initializer_range": "x"}, "initializer_range is 'x'"),
        ({"max_window_layers": -1}, "max_window_layers is -1"),
        ({"use_cache": "yes"}, "use_cache is 'yes'; expected true or false"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'"),
        ({"use_sliding_window": 1}, "use_sliding_window is 1"),
        ({"head_dim": 0}, "head_dim is 0; expected an integer of 1 or more"),
        ({"pad_token_id": 100}, "pad_token_id is 100; .* 0 to 99"),
        ({"image_token_id": "<|image_pad|>"}, "image_token_id is '<|image_pad|>'".replace("|", r"\|")),
        ({"image_token_id": 5, "video_token_id": 5}, "are both 5"),
    ],
)
def test_impossible_values_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Qwen2_5_VLConfig(**{**FLAT, **changes})


@pytest.mark.parametrize("layout", [FLAT, NESTED], ids=["flat", "nested"])
def test_round_trips(layout, tmp_path):
    config = Qwen2_5_VLConfig(**layout)
    assert Qwen2_5_VLConfig.from_dict(config.to_dict()) == config
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    config.save_pretrained(tmp_path / "made" / "here")
    loaded = Qwen2_5_VLConfig.from_pretrained(tmp_path / "made" / "here")
    assert loaded.to_dict() == config.to_dict()
    assert loaded.name_or_path.endswith("here")
    assert AutoConfig.from_pretrained(tmp_path / "made" / "here") == loaded
    assert Qwen2_5_VLConfig.from_pretrained(tmp_path / "made" / "here" / "config.json").hidden_size == 64


def test_a_released_config_gives_its_parts(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FLAT))
    text = Qwen2_5_VLTextConfig.from_pretrained(tmp_path)
    assert (text.hidden_size, text.dtype, hasattr(text, "vision_config")) == (64, torch.bfloat16, False)
    assert Qwen2_5_VLVisionConfig.from_pretrained(tmp_path).hidden_size == 32
    (tmp_path / "config.json").write_text(json.dumps(NESTED))
    assert Qwen2_5_VLTextConfig.from_pretrained(tmp_path) == text
    text.save_pretrained(tmp_path / "text")
    assert isinstance(AutoConfig.from_pretrained(tmp_path / "text"), Qwen2_5_VLTextConfig)


def test_overrides_and_unused_arguments(tmp_path):
    Qwen2_5_VLConfig(**FLAT).save_pretrained(tmp_path)
    config, unused = Qwen2_5_VLConfig.from_pretrained(
        tmp_path,
        num_hidden_layers=2,
        vision_config={"depth": 1},
        dtype="float16",
        attn_implementation="eager",
        local_files_only=True,
        foo=1,
        return_unused_kwargs=True,
    )
    assert (config.num_hidden_layers, len(config.layer_types)) == (2, 2)
    assert (config.vision_config.depth, config.vision_config.hidden_size) == (1, 32)
    assert (config.dtype, config._attn_implementation, unused) == (torch.float16, "eager", {"foo": 1})
    with pytest.raises(ConfigError, match="num_key_value_heads 3"):
        Qwen2_5_VLConfig.from_pretrained(tmp_path, num_key_value_heads=3)


def test_another_model_type_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    for cls in (AutoConfig, Qwen2_5_VLConfig, Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig):
        with pytest.raises(ConfigError, match="'qwen2_vl'; expected 'qwen2_5_vl"):
            cls.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigKeyError, match="does not name a model_type"):
        AutoConfig.from_pretrained(tmp_path)


def test_broken_files(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r"has no config\.json"):
        Qwen2_5_VLConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(CheckpointCorruptError, match="not valid JSON"):
        Qwen2_5_VLConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointCorruptError, match="holds a JSON list"):
        Qwen2_5_VLConfig.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        Qwen2_5_VLConfig().save_pretrained(tmp_path / "config.json")


def test_auto_config_by_type():
    assert isinstance(AutoConfig.for_model("qwen2_5_vl"), Qwen2_5_VLConfig)
    assert AutoConfig.for_model("qwen2_5_vl_text", hidden_size=128).hidden_size == 128
    with pytest.raises(UnknownNameError, match="'llama'"):
        AutoConfig.for_model("llama")


def test_reading_a_config_imports_no_torch(tmp_path):
    import subprocess
    import sys

    Qwen2_5_VLConfig(**FLAT).save_pretrained(tmp_path)
    code = (
        "import sys; from qvl.config import AutoConfig; c = AutoConfig.from_pretrained(sys.argv[1]);"
        "c.to_dict();"
        "print(c.dtype_name, sorted({'torch', 'numpy', 'huggingface_hub'} & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "bfloat16 []"
