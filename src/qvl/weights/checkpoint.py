"""A module as a checkpoint folder: config.json and weights in the released layout, which every tool reads."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qvl.errors import CheckpointError, UnsupportedError
from qvl.weights.files import parse_size, write_tensors
from qvl.weights.names import to_released
from qvl.weights.quantized_files import flatten_quantized, is_quantized
from qvl.weights.tensors import repeated_names


def save_checkpoint(
    module: Any,
    folder: str | os.PathLike[str],
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write ``module`` (its ``config`` and tensors) into ``folder``.

    ``state_dict``: other tensors to write, by the module's own names. ``max_shard_size``: bytes or "5GB";
    more than that goes into several files with an index. Tied tensors are written once. Raises
    UnsupportedError for quantized weights that safetensors cannot hold, before anything is written, and
    CheckpointError for a folder that cannot be made or written.
    """
    parse_size(max_shard_size)
    given = module.state_dict() if state_dict is None else state_dict
    tensors, header = stored_tensors(module, given)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"a checkpoint is saved into a folder, and {folder} is none: {error}"
        ) from error
    write_tensors(folder, tensors, max_shard_size=max_shard_size, **header)
    config = copy.deepcopy(module.config)
    config.architectures = [type(module).__name__]
    config.dtype = next((value.dtype for value in given.values() if value.is_floating_point()), None)
    config.save_pretrained(folder)


def refuse_other_formats(
    *, save_function: Any, push_to_hub: bool, safe_serialization: bool, variant: str | None
) -> None:
    """UnsupportedError for a way of saving that is not this one: safetensors in a local folder."""
    if not safe_serialization or save_function is not None:
        raise UnsupportedError("weights are saved as safetensors alone; leave safe_serialization on")
    if push_to_hub:
        raise UnsupportedError(
            "nothing is uploaded here; save to a folder, then: hf upload OWNER/NAME FOLDER"
        )
    if variant is not None:
        raise UnsupportedError(f"files have no variants here; save {variant!r} to a folder of its own")


def stored_tensors(
    module: nn.Module, state_dict: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What goes into the files (released name -> tensor), and what into their header besides."""
    prefix = getattr(module, "checkpoint_prefix", "")
    repeated = repeated_names(module)
    tensors = {
        to_released(prefix + name): tensor.detach()
        for name, tensor in state_dict.items()
        if name not in repeated
    }
    if any(is_quantized(tensor) for tensor in tensors.values()):
        return flatten_quantized(tensors)
    return tensors, {}
