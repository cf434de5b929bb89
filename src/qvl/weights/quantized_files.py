"""Quantized tensors in safetensors files, in torchao's own format: plain tensors, and a header about them.

Knows how they are taken apart and put together; knows no modules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qvl.errors import UnsupportedError
from qvl.weights.files import Checkpoint


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

    def is_floating_point(self, name: str) -> bool:
        return self.files[name].is_floating_point()

    def read(
        self,
        name: str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        passing: bool = False,
    ) -> Tensor:
        """See ``Checkpoint.read``; what is quantized keeps its dtype, and nothing is passing."""
        tensor = self.files[name]
        if is_quantized(tensor):
            return tensor.to(device)
        return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
