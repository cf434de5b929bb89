"""What rope_scaling may hold, type by type."""

from __future__ import annotations

import math
import warnings

import pytest

from qvl.config import Qwen2_5_VLTextConfig
from qvl.config.rope_scaling import ROPE_TYPES, normalize_rope_scaling
from qvl.errors import ConfigError, ConfigKeyError

SECTIONS = {"mrope_section": [2, 1, 1]}
GOOD = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0, "original_max_position_embeddings": 64},
    "yarn": {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.0, "truncate": False},
    "longrope": {"short_factor": [1.0, 1.0, 1, 1], "long_factor": [1.0, 2.0, 3.0, 4.0], "factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}


def checked(values, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return normalize_rope_scaling(values, **{"head_dim": 8, "max_position_embeddings": 256, **settings})


def scaling(rope_type, **changes):
    values = {"rope_type": rope_type, **SECTIONS, **GOOD[rope_type], **changes}
    return {key: value for key, value in values.items() if value is not ...}


def test_every_type_is_covered():
    assert set(GOOD) == set(ROPE_TYPES)


@pytest.mark.parametrize("rope_type", ROPE_TYPES)
def test_complete_settings_pass_without_a_word(rope_type):
    values = scaling(rope_type)
    assert checked(values) == values
    assert checked(checked(values)) == values


def test_none_means_none():
    assert checked(None) is None


def test_spellings():
    assert checked({"type": "mrope", **SECTIONS})["rope_type"] == "default"
    assert checked({"rope_type": "mrope", **SECTIONS})["rope_type"] == "default"
    both = checked({"type": "mrope", "rope_type": "default", **SECTIONS})
    assert (both["type"], both["rope_type"]) == ("default", "default")
    with pytest.warns(UserWarning, match="'default' is used"):
        normalize_rope_scaling(
            {"type": "mrope", "rope_type": "yarn", **SECTIONS}, head_dim=8, max_position_embeddings=9
        )


def test_the_callers_dict_is_left_alone():
    given = {"type": "mrope", "mrope_section": [2, 1, 1]}
    checked(given)["mrope_section"].append(3)
    assert given == {"type": "mrope", "mrope_section": [2, 1, 1]}


@pytest.mark.parametrize(
    "rope_type, key",
    [
        (rope_type, key)
        for rope_type in ROPE_TYPES
        for key in GOOD[rope_type]
        if key in ("factor", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor")
        or (rope_type, key) == ("llama3", "original_max_position_embeddings")
    ],
)
@pytest.mark.parametrize("absent", [..., None])
def test_a_required_key_that_is_missing(rope_type, key, absent):
    with pytest.raises(ConfigKeyError, match=key) as caught:
        checked(scaling(rope_type, **{key: absent}))
    assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize("value", ["2", True, [2.0], math.inf, math.nan, 0, -1.0])
@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "yarn", "longrope", "llama3"])
def test_a_factor_that_cannot_be_computed_with(rope_type, value):
    with pytest.raises(ConfigError, match=r"rope_scaling\['factor'\] is .* expected a number above 0"):
        checked(scaling(rope_type, factor=value))


@pytest.mark.parametrize(
    "rope_type, key",
    [
        ("yarn", "beta_fast"),
        ("yarn", "beta_slow"),
        ("yarn", "attention_factor"),
        ("llama3", "low_freq_factor"),
    ],
)
def test_other_numbers(rope_type, key):
    with pytest.raises(ConfigError, match=key):
        checked(scaling(rope_type, **{key: -1.0}))


@pytest.mark.parametrize("sections", [[2, 1], [1, 1, 1], [2, 2, 1], [4.0, 0, 0], "211", [5, -1, 0], None])
def test_sections_must_fill_half_the_head(sections):
    with pytest.raises(ConfigError, match="sum to head_dim / 2 = 4"):
        checked(scaling("default", mrope_section=sections))


def test_sections_must_be_there():
    with pytest.raises(ConfigKeyError, match="lacks 'mrope_section'"):
        checked({"rope_type": "default"})


@pytest.mark.parametrize("factors", [[1.0, 1.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, "x"], 3.0])
@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
def test_longrope_factors(key, factors):
    with pytest.raises(ConfigError, match=rf"{key}.*list of head_dim / 2 = 4"):
        checked(scaling("longrope", **{key: factors}))


def test_longrope_needs_some_way_to_scale_attention():
    with pytest.raises(ConfigKeyError, match="'factor' or 'attention_factor'"):
        checked(scaling("longrope", factor=...))
    checked(scaling("longrope", factor=..., attention_factor=1.2))
    checked(scaling("longrope", factor=...), original_max_position_embeddings=32)


def test_longrope_needs_a_length_whose_logarithm_is_not_zero():
    with pytest.raises(ConfigError, match="must be above 1"):
        checked(scaling("longrope"), original_max_position_embeddings=1)
    with pytest.raises(ConfigError, match="must be above 1"):
        checked(scaling("longrope"), max_position_embeddings=1)
    assert checked(scaling("longrope", attention_factor=1.0), max_position_embeddings=1)


@pytest.mark.parametrize("key", ["mscale", "mscale_all_dim", "original_max_position_embeddings", "truncate"])
def test_what_else_yarn_reads(key):
    with pytest.raises(ConfigError, match=key):
        checked(scaling("yarn", **{key: "x"}))


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope", "llama3"])
def test_the_original_length(rope_type):
    for value in (0, -1, "64"):
        with pytest.raises(ConfigError, match="original_max_position_embeddings"):
            checked(scaling(rope_type, original_max_position_embeddings=value))


def test_unknown_types_and_shapes():
    with pytest.raises(ConfigError, match="is \\['yarn'\\]; expected one of"):
        checked({"rope_type": ["yarn"], **SECTIONS})
    with pytest.raises(ConfigError, match="'ntk'; expected one of default, linear"):
        checked({"rope_type": "ntk", **SECTIONS})
    with pytest.raises(ConfigKeyError, match="lacks 'rope_type'"):
        checked(SECTIONS)
    with pytest.raises(ConfigError, match="must be a dict or None, got list"):
        checked([1])
    with pytest.raises(ConfigError, match="head_dim above 2"):
        checked({"rope_type": "dynamic", "factor": 2.0, "mrope_section": [1, 0, 0]}, head_dim=2)


@pytest.mark.parametrize(
    "values, message",
    [
        (scaling("linear", factor=0.5), "factor 0.5 below 1"),
        (scaling("yarn", beta_fast=0.5), "beta_fast is below beta_slow"),
        (scaling("llama3", high_freq_factor=1.0), "high_freq_factor is not above"),
        (scaling("llama3", original_max_position_embeddings=256), "is not below max_position_embeddings"),
        (scaling("default", factor=2.0), "does not read factor"),
    ],
)
def test_odd_but_computable_values_only_warn(values, message):
    with pytest.warns(UserWarning, match=message):
        normalize_rope_scaling(values, head_dim=8, max_position_embeddings=256)


def test_the_text_config_checks_it():
    with pytest.raises(ConfigError, match="head_dim / 2 = 64"):
        Qwen2_5_VLTextConfig(rope_scaling={"rope_type": "default", "mrope_section": [1, 1, 1]})
    with pytest.raises(ConfigError, match="head_dim / 2 = 32"):
        Qwen2_5_VLTextConfig(
            head_dim=64, rope_scaling={"rope_type": "default", "mrope_section": [16, 24, 24]}
        )
    longrope = {**scaling("longrope", factor=...), "mrope_section": [16, 24, 24]}
    longrope |= {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
    assert Qwen2_5_VLTextConfig(rope_scaling=longrope, original_max_position_embeddings=4096)
