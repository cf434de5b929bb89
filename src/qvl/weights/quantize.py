"""Fewer bits per weight through torchao: chosen by ``TorchAoConfig``, applied to a loaded module from
outside.

The network's files know nothing of this: a layer stays an ``nn.Linear`` whose weight is a torchao tensor.
What torchao offers differs by processor; the choice is made here, by where the weight lies. torchao is
imported only when quantization is asked for.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from qvl.errors import ConfigError, InputTypeError, UnsupportedError, missing_dependency
from qvl.weights.files import Checkpoint
from qvl.weights.tensors import groups_of, repeated_names

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
_LISTED = 4


class TorchAoConfig:
    """How a model's weights are quantized.

    ``quant_type``: "int4_weight_only" (with ``group_size``, 128 unless given: input features that share a
    scale), "int8_weight_only", "int8_dynamic_activation_int8_weight", or a torchao config object.
    ``modules_to_not_convert``: parts of module names to leave alone; the output head unless given.
    ``include_input_output_embeddings``: quantize the token embeddings and the head too.

    Raises ConfigError for a type, keyword or group size that is not offered.
    """

    quant_method = "torchao"

    def __init__(
        self,
        quant_type: Any,
        modules_to_not_convert: list[str] | None = None,
        include_input_output_embeddings: bool = False,
        **quant_type_kwargs: Any,
    ) -> None:
        self.quant_type = quant_type
        self.modules_to_not_convert = modules_to_not_convert
        self.include_input_output_embeddings = include_input_output_embeddings
        self.quant_type_kwargs = quant_type_kwargs.pop("quant_type_kwargs", quant_type_kwargs)
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
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TorchAoConfig:
        """Raises UnsupportedError if ``values`` are of another method than torchao."""
        method = values.get("quant_method", cls.quant_method)
        if method != cls.quant_method:
            raise UnsupportedError(f"weights quantized with {method!r} cannot be read; torchao's can")
        quant_type = values["quant_type"]
        if isinstance(quant_type, Mapping):
            from torchao.core.config import config_from_dict

            quant_type = config_from_dict(dict(quant_type["default"]))
        return cls(
            quant_type,
            modules_to_not_convert=values.get("modules_to_not_convert"),
            include_input_output_embeddings=values.get("include_input_output_embeddings", False),
            quant_type_kwargs=dict(values.get("quant_type_kwargs") or {}),
        )


def quantize_module(module: nn.Module, config: TorchAoConfig) -> None:
    """Quantize the linear layers of ``module`` in place, one after the other.

    A layer whose shape does not allow it keeps its weights, and a warning lists those. Raises ConfigError if
    that is so for every layer, UnsupportedError if torchao refuses one.
    """
    from torchao.quantization import quantize_

    done = 0
    skipped: dict[str, list[str]] = {}
    tied = [group for group in groups_of(module) if len(group.names) > 1]
    for name, layer in list(_quantizable(module, config)):
        reason = config.obstacle(layer.weight)
        if reason is not None:
            skipped.setdefault(reason, []).append(name)
            continue
        try:
            quantize_(layer, config.recipe(layer.weight.device), filter_fn=lambda *_: True)
        except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
            raise UnsupportedError(
                f"torchao cannot quantize {name} ({tuple(layer.weight.shape)}, {layer.weight.dtype}, on "
                f"{layer.weight.device}): {error}"
            ) from error
        done += 1
    if not done:
        raise ConfigError(f"no layer can be quantized: {_listing(skipped) or 'all are left out'}")
    if skipped:
        warnings.warn(f"layers that keep their weights: {_listing(skipped)}", stacklevel=2)
    for group in tied:  # a tied head follows its embedding
        group.assign(module, module.get_parameter(group.names[0]), trainable=False)


def _quantizable(module: nn.Module, config: TorchAoConfig) -> Iterator[tuple[str, Any]]:
    """Named layers that the config asks for."""
    ends, repeated = config.include_input_output_embeddings, repeated_names(module)
    if ends and config.group_size is not None:
        raise ConfigError("int4_weight_only has no embeddings; leave include_input_output_embeddings off")
    for name, layer in module.named_modules():
        if f"{name}.weight" in repeated:
            continue
        asked_for = ends and (isinstance(layer, nn.Embedding) or name == "lm_head")
        if asked_for or (isinstance(layer, nn.Linear) and not config.leaves_alone(name)):
            yield name, layer


def _listing(skipped: Mapping[str, list[str]]) -> str:
    parts = []
    for reason, names in skipped.items():
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        parts.append(f"{reason} ({', '.join(names[:_LISTED])}{more})")
    return "; ".join(parts)


def is_quantized(tensor: Tensor) -> bool:
    """Whether this is a tensor of torchao's."""
    return type(tensor).__module__.startswith("torchao.")


def flatten_quantized(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Quantized tensors as plain ones, and the header that puts them together again (torchao's own format).

    Raises UnsupportedError for a kind of tensor that this format does not hold.
    """
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    try:
        return flatten_tensor_state_dict(dict(tensors))
    except ValueError as error:
        kinds = sorted({type(tensor).__name__ for tensor in tensors.values() if is_quantized(tensor)})
        raise UnsupportedError(
            f"torchao cannot write {', '.join(kinds)} to safetensors: save the model before "
            "quantizing it, and pass quantization_config= when loading"
        ) from error


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """A checkpoint with torchao's tensors put together: looks like a ``Checkpoint`` to the loader."""

    folder: Any
    files: Mapping[str, Tensor]
    dtype: torch.dtype | None

    @classmethod
    def restore(cls, checkpoint: Checkpoint) -> QuantizedCheckpoint:
        """Raises UnsupportedError if the files were not written in torchao's safetensors format."""
        from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

        if "tensor_names" not in checkpoint.metadata:
            raise UnsupportedError(
                f"{checkpoint.folder} says it is quantized, but not how: no torchao header"
            )
        plain = {name: checkpoint.read(name) for name in checkpoint.files}
        names = set(json.loads(checkpoint.metadata["tensor_names"]))
        header = {
            key: value for key, value in checkpoint.metadata.items() if key in names or key == "tensor_names"
        }
        tensors, _ = unflatten_tensor_state_dict(plain, header)
        dtype = next((t.dtype for t in tensors.values() if is_quantized(t)), None)
        return cls(checkpoint.folder, tensors, dtype)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.files[name].shape)

    def float_dtype(self) -> torch.dtype | None:
        return self.dtype

    def read(
        self, name: str, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        tensor = self.files[name]
        if is_quantized(tensor):
            return tensor.to(device)
        return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
