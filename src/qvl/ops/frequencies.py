"""Inverse frequencies of rotary embedding, for each way of stretching them to longer texts.

Formulas, in float32 and in the order of operations of transformers' modeling_rope_utils, to agree to the bit:
default: RoFormer, arXiv 2104.09864; linear: arXiv 2306.15595; dynamic: NTK-aware scaling, its base growing
with the length; yarn: arXiv 2309.00071; longrope: arXiv 2402.13753; llama3: the Llama 3.1 release.

Knows no positions and no axes: ``rope.py`` turns these into angles.

Legend: F frequencies = half the head dim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qvl.errors import ConfigError, UnknownNameError

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


@dataclass(frozen=True)
class RopeSettings:
    """What the rotary embedding of a text decoder is computed from.

    ``sections``: frequencies that turn with time, height and width; they add up to ``head_dim`` / 2.
    ``scaling``: the config's ``rope_scaling``. ``original_max_position_embeddings``: the one beside it in the
    config, which longrope reads (yarn and llama3 read the one inside ``scaling``).
    """

    head_dim: int
    theta: float
    sections: tuple[int, int, int]
    max_position_embeddings: int
    original_max_position_embeddings: int | None = None
    scaling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rope_type(self) -> str:
        """One of ROPE_TYPES; "mrope" is the older name of "default" with sections."""
        name = self.scaling.get("type") or self.scaling.get("rope_type") or "default"
        return "default" if name == "mrope" else name

    def number(self, key: str) -> float:
        """A required number of ``scaling``."""
        value = self.scaling.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(
                f"rope_scaling of type {self.rope_type!r} needs the number {key!r}, got {value!r}."
            )
        return value

    @property
    def longrope_origin(self) -> int:
        """The length above which longrope takes its long factors."""
        return self.original_max_position_embeddings or self.max_position_embeddings


def inverse_frequencies(settings: RopeSettings, extent: int = 0) -> Tensor:
    """The (F,) float32 inverse frequencies, on the CPU.

    ``extent``: largest position + 1; matters to dynamic and longrope only. Raises ConfigError for missing or
    unusable values and UnknownNameError for an unknown type.
    """
    match settings.rope_type:
        case "default":
            return 1.0 / _periods(settings)
        case "linear":
            return 1.0 / _periods(settings) / settings.number("factor")
        case "dynamic":
            return _dynamic(settings, extent)
        case "yarn":
            return _yarn(settings)
        case "longrope":
            return _longrope(settings, extent)
        case "llama3":
            return _llama3(settings)
        case other:
            raise UnknownNameError(
                f"rope_type {other!r} is not offered; choose one of {', '.join(ROPE_TYPES)}."
            )


def attention_factor(settings: RopeSettings) -> float:
    """What cosines and sines are multiplied by: 1 but for yarn and longrope."""
    if settings.rope_type not in ("yarn", "longrope"):
        return 1.0
    given = settings.scaling.get("attention_factor")
    if given is not None:
        return given
    if settings.rope_type == "yarn":
        factor = settings.number("factor")
        mscale, mscale_all_dim = settings.scaling.get("mscale"), settings.scaling.get("mscale_all_dim")
        if mscale and mscale_all_dim:
            return _temperature(factor, mscale) / _temperature(factor, mscale_all_dim)
        return _temperature(factor)
    if settings.original_max_position_embeddings:
        factor = settings.max_position_embeddings / settings.original_max_position_embeddings
    else:
        factor = settings.number("factor")
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(settings.longrope_origin))


def _exponents(settings: RopeSettings) -> Tensor:
    steps = torch.arange(0, settings.head_dim, 2, dtype=torch.float32, device="cpu")
    return steps / settings.head_dim


def _periods(settings: RopeSettings) -> Tensor:
    return settings.theta ** _exponents(settings)


def _dynamic(settings: RopeSettings, extent: int) -> Tensor:
    limit, factor, dim = settings.max_position_embeddings, settings.number("factor"), settings.head_dim
    if extent <= limit:
        return 1.0 / _periods(settings)
    length = torch.tensor(extent, device="cpu")  # float32 arithmetic from here on, as in transformers
    base = settings.theta * ((factor * length / limit) - (factor - 1)) ** (dim / (dim - 2))
    return 1.0 / base ** _exponents(settings)


def _yarn(settings: RopeSettings) -> Tensor:
    factor, dim = settings.number("factor"), settings.head_dim
    origin = settings.scaling.get("original_max_position_embeddings") or settings.max_position_embeddings

    def dimension(rotations: float) -> float:
        """The dimension whose wave turns that many times within the original length."""
        return dim * math.log(origin / (rotations * 2 * math.pi)) / (2 * math.log(settings.theta))

    low = dimension(settings.scaling.get("beta_fast") or 32)
    high = dimension(settings.scaling.get("beta_slow") or 1)
    if settings.scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high  # a ramp needs some width
    steps = torch.arange(dim // 2, dtype=torch.float32, device="cpu")
    kept = 1 - ((steps - low) / (high - low)).clamp(0, 1)  # 1: fast waves, left as they are
    periods = _periods(settings)
    return 1.0 / (factor * periods) * (1 - kept) + 1.0 / periods * kept


def _temperature(scale: float, mscale: float = 1.0) -> float:
    return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0


def _longrope(settings: RopeSettings, extent: int) -> Tensor:
    key = "long_factor" if extent > settings.longrope_origin else "short_factor"
    factors = settings.scaling.get(key)
    half = settings.head_dim // 2
    if not isinstance(factors, (list, tuple)) or len(factors) != half:
        raise ConfigError(
            f"rope_scaling of type 'longrope' needs {key!r}: a list of {half} numbers (half the head dim)."
        )
    return 1.0 / (torch.tensor(factors, dtype=torch.float32, device="cpu") * _periods(settings))


def _llama3(settings: RopeSettings) -> Tensor:
    factor = settings.number("factor")
    low, high = settings.number("low_freq_factor"), settings.number("high_freq_factor")
    origin = settings.number("original_max_position_embeddings")
    frequencies = 1.0 / _periods(settings)
    wavelengths = 2 * math.pi / frequencies
    share = (origin / wavelengths - low) / (high - low)
    blended = (1 - share) * frequencies / factor + share * frequencies
    slowed = torch.where(wavelengths > origin / low, frequencies / factor, blended)
    return torch.where(wavelengths < origin / high, frequencies, slowed)
