"""Checks of ``rope_scaling``: a wrong key there does not fail later, it quietly bends every position.

The six types and their keys are those of the documentation page. Every one is combined with the multimodal
sections (``mrope_section``: how many rotary frequencies turn with time, height and width). What cannot be
computed raises; what can, but looks unintended, warns, as transformers 4.57 does.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from qvl.config.base import is_number
from qvl.errors import ConfigError, ConfigKeyError


@dataclass(frozen=True)
class RopeKeys:
    """The keys one rope type needs, and those it takes without a warning, as transformers does."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


_ORIGINAL = "original_max_position_embeddings"
_KEYS: Mapping[str, RopeKeys] = MappingProxyType(
    {
        "default": RopeKeys(),
        "linear": RopeKeys(("factor",)),
        "dynamic": RopeKeys(("factor",), (_ORIGINAL,)),
        "yarn": RopeKeys(
            ("factor",),
            ("attention_factor", "beta_fast", "beta_slow", _ORIGINAL, "mscale", "mscale_all_dim", "truncate"),
        ),
        "longrope": RopeKeys(("short_factor", "long_factor"), ("attention_factor", "factor", _ORIGINAL)),
        "llama3": RopeKeys(("factor", _ORIGINAL, "low_freq_factor", "high_freq_factor")),
    }
)
ROPE_TYPES = tuple(_KEYS)

# Keys that multiply, divide or sit in a logarithm: zero and below cannot be computed with.
_POSITIVE = ("factor", _ORIGINAL, "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor")
_NUMBERS = (*_POSITIVE, "attention_factor", "mscale", "mscale_all_dim")


def normalize_rope_scaling(
    rope_scaling: Any,
    *,
    head_dim: int,
    max_position_embeddings: int,
    original_max_position_embeddings: int | None = None,
) -> dict[str, Any] | None:
    """A checked copy of ``rope_scaling`` in which ``rope_type`` is one of ROPE_TYPES.

    ``type`` is the older spelling of ``rope_type`` and wins where both are given; ``mrope`` means ``default``
    (the sections are part of every type). ``original_max_position_embeddings`` is the text config's key of
    that name, which ``longrope`` may use in place of ``factor``.

    Raises ConfigError, or ConfigKeyError for a key that is missing.
    """
    if rope_scaling is None:
        return None
    if not isinstance(rope_scaling, Mapping):
        raise ConfigError(f"rope_scaling must be a dict or None, got {type(rope_scaling).__name__}")
    scaling = _with_rope_type(dict(rope_scaling))
    rope_type = scaling["rope_type"]
    _check_sections(scaling, head_dim)
    _check_keys(scaling, rope_type)
    for key in _NUMBERS:
        _check_number(scaling, key, positive=key in _POSITIVE)
    if not isinstance(scaling.get("truncate", True), bool):
        raise ConfigError(f"rope_scaling['truncate'] is {scaling['truncate']!r}; expected true or false")
    if rope_type == "longrope":
        _check_longrope(scaling, head_dim, original_max_position_embeddings, max_position_embeddings)
    if rope_type == "dynamic" and head_dim <= 2:
        raise ConfigError(f"rope_scaling type 'dynamic' needs a head_dim above 2, got {head_dim}")
    _warn_about_odd_values(scaling, max_position_embeddings)
    return scaling


def _with_rope_type(scaling: dict[str, Any]) -> dict[str, Any]:
    if "type" not in scaling and "rope_type" not in scaling:
        raise ConfigKeyError(f"rope_scaling lacks 'rope_type': it must be one of {', '.join(ROPE_TYPES)}")
    rope_type = scaling.get("type", scaling.get("rope_type"))
    rope_type = "default" if rope_type == "mrope" else rope_type
    if not isinstance(rope_type, str) or rope_type not in _KEYS:
        raise ConfigError(
            f"rope_scaling['rope_type'] is {rope_type!r}; expected one of {', '.join(ROPE_TYPES)}"
        )
    named = scaling.get("rope_type", rope_type)
    if named not in (rope_type, "mrope"):
        warnings.warn(
            f"rope_scaling names type {scaling['type']!r} and rope_type {named!r}: {rope_type!r} is used",
            stacklevel=2,
        )
    scaling["rope_type"] = rope_type
    if "type" in scaling:
        scaling["type"] = rope_type
    return scaling


def _check_sections(scaling: dict[str, Any], head_dim: int) -> None:
    half = head_dim // 2
    expected = f"three counts (time, height, width) that sum to head_dim / 2 = {half}"
    if "mrope_section" not in scaling:
        raise ConfigKeyError(f"rope_scaling lacks 'mrope_section': give {expected}")
    sections = scaling["mrope_section"]
    whole = isinstance(sections, list | tuple) and all(type(n) is int and n >= 0 for n in sections)
    if not whole or len(sections) != 3 or sum(sections) != half:
        raise ConfigError(f"rope_scaling['mrope_section'] is {sections!r}; expected {expected}")
    scaling["mrope_section"] = list(sections)


def _check_keys(scaling: dict[str, Any], rope_type: str) -> None:
    keys = _KEYS[rope_type]
    missing = [key for key in keys.required if scaling.get(key) is None]
    if missing:
        raise ConfigKeyError(f"rope_scaling of type {rope_type!r} lacks {', '.join(map(repr, missing))}")
    unread = scaling.keys() - {"type", "rope_type", "mrope_section", *keys.required, *keys.optional}
    if unread:
        warnings.warn(
            f"rope_scaling of type {rope_type!r} does not read {', '.join(sorted(unread))}", stacklevel=2
        )


def _check_number(scaling: dict[str, Any], key: str, *, positive: bool) -> None:
    value = scaling.get(key)
    if value is None:
        return
    if not is_number(value) or value < 0 or (positive and value == 0):
        raise ConfigError(
            f"rope_scaling[{key!r}] is {value!r}; expected a number {'above' if positive else 'not below'} 0"
        )


def _check_longrope(
    scaling: dict[str, Any], head_dim: int, original: int | None, max_position_embeddings: int
) -> None:
    for key in ("short_factor", "long_factor"):
        factors = scaling[key]
        fits = isinstance(factors, list | tuple) and len(factors) == head_dim // 2
        if not fits or not all(is_number(factor) and factor > 0 for factor in factors):
            raise ConfigError(
                f"rope_scaling[{key!r}] is {factors!r}; expected a list of head_dim / 2 = {head_dim // 2} "
                "numbers above 0"
            )
    if all(value is None for value in (scaling.get("factor"), scaling.get("attention_factor"), original)):
        raise ConfigKeyError(
            "rope_scaling of type 'longrope' needs 'factor' or 'attention_factor' (or the text config's "
            "original_max_position_embeddings) to know how far attention is scaled"
        )
    if scaling.get("attention_factor") is None and (original or max_position_embeddings) <= 1:
        raise ConfigError(
            "rope_scaling of type 'longrope' takes the logarithm of the original length: it must be above 1"
        )


def _warn_about_odd_values(scaling: dict[str, Any], max_position_embeddings: int) -> None:
    """Values that can be computed with but hardly say what was meant."""
    odd = []
    if (scaling.get("factor") or 1) < 1:
        odd.append(f"factor {scaling['factor']} below 1 shortens the context")
    if (scaling.get("beta_fast") or 32) < (scaling.get("beta_slow") or 1):
        odd.append("beta_fast is below beta_slow")
    if scaling["rope_type"] == "llama3":
        if scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
            odd.append("high_freq_factor is not above low_freq_factor")
        if scaling[_ORIGINAL] >= max_position_embeddings:
            odd.append(f"{_ORIGINAL} is not below max_position_embeddings ({max_position_embeddings})")
    if odd:
        warnings.warn(f"rope_scaling: {'; '.join(odd)}", stacklevel=2)
