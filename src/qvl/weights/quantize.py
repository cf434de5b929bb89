"""Fewer bits per weight through torchao: what ``TorchAoConfig`` offers and which of it serves where.

Knows settings; ``quantizer`` applies them to a module, ``quantized_files`` stores the outcome. What torchao
offers differs by processor; the choice is made here, by where the weight lies. torchao is imported only when
quantization is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from qvl.errors import ConfigError, InputTypeError, UnsupportedError, missing_dependency

# The types that have a name, and the keywords that each takes.
_NAMED = MappingProxyType(
    {
        "int4_weight_only": ("group_size",),
        "int8_weight_only": (),
        "int8_dynamic_activation_int8_weight": (),
    }
)
_GROUP_SIZES = (32, 64, 128, 256)
_CPU_ROWS = 16  # torch's int4 product on a CPU works on blocks of this many output features


class TorchAoConfig:
    """How a model's weights are quantized.

    ``quant_type``: "int4_weight_only" (with ``group_size``, 128 unless given: input features that share a
    scale), "int8_weight_only", "int8_dynamic_activation_int8_weight", or a torchao config object.
    ``modules_to_not_convert``: parts of module names to leave alone; the output head unless given.
    ``include_input_output_embeddings``: quantize the token embeddings and the head too.
    ``untie_embedding_weights``: give a head that is tied to the embeddings a weight of its own first.

    Raises ConfigError for a type, keyword or group size that is not offered.
    """

    quant_method = "torchao"

    def __init__(
        self,
        quant_type: Any,
        modules_to_not_convert: list[str] | None = None,
        include_input_output_embeddings: bool = False,
        untie_embedding_weights: bool = False,
        **kwargs: Any,
    ) -> None:
        self.quant_type = quant_type
        self.modules_to_not_convert = modules_to_not_convert
        self.include_input_output_embeddings = include_input_output_embeddings
        self.untie_embedding_weights = untie_embedding_weights
        kwargs.pop("quant_method", None)
        self.quant_type_kwargs = dict(kwargs.pop("quant_type_kwargs", kwargs) or {})
        if isinstance(quant_type, str):
            self._check_named_type()
        elif not type(quant_type).__module__.startswith("torchao."):
            raise InputTypeError(
                f"quant_type is a name or a torchao config object, got {type(quant_type).__name__}"
            )
        elif self.quant_type_kwargs:
            raise ConfigError("a torchao config object has its settings inside; give no further keywords")

    def _check_named_type(self) -> None:
        if self.quant_type not in _NAMED:
            raise ConfigError(f"quant_type is {self.quant_type!r}; expected one of {', '.join(_NAMED)}")
        unknown = sorted(self.quant_type_kwargs.keys() - set(_NAMED[self.quant_type]))
        if unknown:
            takes = ", ".join(_NAMED[self.quant_type]) or "no keywords"
            raise ConfigError(f"{self.quant_type} does not know {', '.join(unknown)}; it takes {takes}")
        if self.quant_type_kwargs.get("group_size", 128) not in _GROUP_SIZES:
            raise ConfigError(
                f"group_size is {self.quant_type_kwargs['group_size']!r}; "
                f"expected one of {', '.join(map(str, _GROUP_SIZES))}"
            )

    @property
    def group_size(self) -> int | None:
        """Input features per scale of "int4_weight_only"; None for the other types (one per row)."""
        return (
            self.quant_type_kwargs.get("group_size", 128) if self.quant_type == "int4_weight_only" else None
        )

    def require(self) -> None:
        """Raise MissingDependencyError, with the install command, if torchao is absent."""
        try:
            import torchao  # noqa: F401
        except ImportError as error:
            raise missing_dependency("torchao", "quant", "quantization") from error

    def quantizer(self, module: Any) -> Any:
        """What converts the layers of ``module`` one by one; see `qvl.weights.quantizer`."""
        from qvl.weights.quantizer import Quantizer

        return Quantizer(module, self)

    def recipe(self, device: torch.device) -> Any:
        """The torchao config object for weights on ``device``."""
        if not isinstance(self.quant_type, str):
            return self.quant_type
        from torchao import quantization

        if self.quant_type == "int8_weight_only":
            return quantization.Int8WeightOnlyConfig(set_inductor_config=False)
        if self.quant_type == "int8_dynamic_activation_int8_weight":
            return quantization.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
        return self._int4_recipe(device)

    def _int4_recipe(self, device: torch.device) -> Any:
        from torchao import __version__, quantization

        if device.type != "cpu":
            return quantization.Int4WeightOnlyConfig(
                group_size=self.group_size, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
            )
        if self.group_size == 256:
            raise ConfigError("group_size 256 is not offered on a CPU; use 128, 64 or 32")
        try:
            from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
        except ImportError as error:
            raise UnsupportedError(
                f"torchao {__version__} has no int4 for a CPU; torchao 0.18 has: pip install -U torchao"
            ) from error
        return PrototypeInt4WeightOnlyConfig(group_size=self.group_size, set_inductor_config=False)

    def obstacle(self, weight: Tensor) -> str | None:
        """Why ``weight`` (out, in) has to stay as it is, or None."""
        if self.group_size is None:
            return None
        rows, columns = weight.shape
        if columns % self.group_size:
            return f"group_size {self.group_size} does not divide in_features {columns}"
        if weight.device.type == "cpu" and rows % _CPU_ROWS:
            return f"out_features {rows} is not a multiple of {_CPU_ROWS}, as int4 on a CPU needs"
        return None

    def leaves_alone(self, name: str) -> bool:
        """Whether the module ``name`` is one of ``modules_to_not_convert``."""
        kept = ["lm_head"] if self.modules_to_not_convert is None else self.modules_to_not_convert
        return any(key == name or f"{key}." in f"{name}." for key in kept)

    def to_dict(self) -> dict[str, Any]:
        """What config.json keeps under ``quantization_config``; :meth:`from_dict` reads it back."""
        quant_type = self.quant_type
        if not isinstance(quant_type, str):
            from torchao.core.config import config_to_dict

            quant_type = {"default": config_to_dict(quant_type)}
        return {
            "quant_method": self.quant_method,
            "quant_type": quant_type,
            "quant_type_kwargs": self.quant_type_kwargs,
            "modules_to_not_convert": self.modules_to_not_convert,
            "include_input_output_embeddings": self.include_input_output_embeddings,
            "untie_embedding_weights": self.untie_embedding_weights,
        }

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> TorchAoConfig:
        """Raises UnsupportedError if ``config_dict`` is of no method that is read."""
        method = config_dict.get("quant_method", cls.quant_method if "quant_type" in config_dict else None)
        if method != cls.quant_method or "quant_type" not in config_dict:
            raise UnsupportedError(
                f"quantization settings with method {method!r} and keys {', '.join(sorted(config_dict))} are "
                "not offered; those of qvl, awq, gptq and torchao, with a quant_type, are"
            )
        quant_type = config_dict["quant_type"]
        if isinstance(quant_type, Mapping):
            from torchao.core.config import config_from_dict

            quant_type = config_from_dict(dict(quant_type["default"]))
        return cls(
            quant_type,
            modules_to_not_convert=config_dict.get("modules_to_not_convert"),
            include_input_output_embeddings=config_dict.get("include_input_output_embeddings", False),
            untie_embedding_weights=config_dict.get("untie_embedding_weights", False),
            quant_type_kwargs=config_dict.get("quant_type_kwargs"),
        )
