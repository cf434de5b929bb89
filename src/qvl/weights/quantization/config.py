"""What is quantized and how far: ``QuantizationConfig``, and whose settings a config.json holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from qvl.errors import ConfigError, InputTypeError, UnsupportedError
from qvl.ops.quantized import INT4_GROUPS
from qvl.weights.formats.awq import AwqConfig
from qvl.weights.formats.gptq import GptqConfig
from qvl.weights.names import HEAD, TEXT, VISION
from qvl.weights.quantization.linear import Scheme
from qvl.weights.quantize import TorchAoConfig

WEIGHTS = ("int8", "int4")
INT8_GROUP, INT4_GROUP = 32, 64  # unless told otherwise


@dataclass(frozen=True)
class QuantizationConfig:
    """Weights in 8 or 4 bits, for processors: the text decoder's linear layers, and more if told so.

    ``weights``: "int8" (groups of 32 inputs share a scale) or "int4". ``group_size``: of int4: 32, 64 (the
    default) or 128. ``vision``: the vision tower too. ``head``: the output head too; one that is tied to the
    embeddings gets weights of its own. ``modules_to_not_convert``: parts of module names to leave alone.
    ``modules_in_int8``: parts of module names that have 8 bits where the others have 4. ``exact``: multiply
    with activations as they are; otherwise they are rounded to 8 bits as they come, in groups of 32, which is
    faster.

    For `from_pretrained(..., quantization_config=...)`; `qvl quantize` writes it into config.json. Raises
    ConfigError for settings that are not offered.
    """

    weights: str
    group_size: int | None = None
    vision: bool = False
    head: bool = False
    modules_to_not_convert: tuple[str, ...] = ()
    modules_in_int8: tuple[str, ...] = ()
    exact: bool = False
    quant_method: str = field(default="qvl", init=False)

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise ConfigError(f"weights is {self.weights!r}; expected one of {', '.join(WEIGHTS)}")
        offered = INT4_GROUPS if self.weights == "int4" else (INT8_GROUP,)
        if self.group_size is None:
            object.__setattr__(self, "group_size", INT4_GROUP if self.weights == "int4" else INT8_GROUP)
        elif self.group_size not in offered:
            raise ConfigError(
                f"group_size is {self.group_size!r}; {self.weights} has groups of "
                f"{', '.join(map(str, offered))}"
            )
        if self.modules_in_int8 and self.weights == "int8":
            raise ConfigError("modules_in_int8 says what int4 spares; with int8 all modules have 8 bits")
        for name in ("modules_to_not_convert", "modules_in_int8"):
            parts = getattr(self, name) or ()
            if isinstance(parts, str) or not all(isinstance(part, str) for part in parts):
                raise InputTypeError(f"{name} is a list of parts of module names, got {parts!r}")
            object.__setattr__(self, name, tuple(parts))

    def scheme_of(self, name: str) -> Scheme | None:
        """How the linear layer ``name`` (its whole name, "model.language_model...") is to be held; None: as
        it is."""
        asked = name.startswith(TEXT) or (self.vision and name.startswith(VISION))
        asked = asked or (self.head and f"{name}." == HEAD)
        if not asked or names_part(name, self.modules_to_not_convert):
            return None
        if self.weights == "int8" or names_part(name, self.modules_in_int8):
            return Scheme(8, INT8_GROUP)
        assert self.group_size is not None  # set at the start
        return Scheme(4, self.group_size)

    def require(self) -> None:
        """Nothing has to be installed."""

    def quantizer(self, module: Any) -> Any:
        """What converts the layers of ``module`` one by one; see `qvl.weights.quantization.install`."""
        from qvl.weights.quantization.install import PackedQuantizer

        return PackedQuantizer(module, self)

    def to_dict(self) -> dict[str, Any]:
        """What config.json keeps under ``quantization_config``; :meth:`from_dict` reads it back."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantizationConfig:
        """Raises ConfigError for settings that it does not have."""
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown or "weights" not in values:
            raise ConfigError(
                f"quantization settings of qvl have the keys {', '.join(sorted(known))}, weights at least; "
                f"got {', '.join(sorted(values))}"
            )
        return cls(**{key: value for key, value in values.items() if key != "quant_method"})


Quantization = QuantizationConfig | TorchAoConfig
Stored = QuantizationConfig | TorchAoConfig | AwqConfig | GptqConfig


def names_part(name: str, parts: Iterable[str]) -> bool:
    """Whether one of ``parts`` is the module ``name``, or whole steps of it."""
    return any(part == name or f"{part}." in f"{name}." for part in parts)


def read_quantization(given: Any) -> Quantization:
    """From what ``from_pretrained(quantization_config=...)`` takes."""
    if isinstance(given, Mapping):
        given = stored_quantization(given)
    if isinstance(given, AwqConfig | GptqConfig):
        raise UnsupportedError(
            f"weights are not quantized by {given.quant_method} while they are loaded; load a checkpoint "
            "that is, or take QuantizationConfig or TorchAoConfig"
        )
    if not isinstance(given, QuantizationConfig | TorchAoConfig):
        raise InputTypeError(
            "quantization_config is a QuantizationConfig, a TorchAoConfig or its dict, "
            f"got {type(given).__name__}"
        )
    return given


def stored_quantization(values: Mapping[str, Any]) -> Stored:
    """The settings under ``quantization_config`` in a config.json, by their ``quant_method``.

    Raises UnsupportedError for a method that is not read, ConfigError for settings that make no sense.
    """
    method = values.get("quant_method")
    if method == "qvl":
        return QuantizationConfig.from_dict(values)
    if method == "awq":
        return AwqConfig.from_dict(values)
    if method == "gptq":
        return GptqConfig.from_dict(values)
    return TorchAoConfig.from_dict(values)
