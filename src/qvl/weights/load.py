"""From files to a module: every parameter filled, every stored tensor accounted for, nothing copied twice.

The module is built on the meta device, so it costs no memory until tensors are assigned; tensors of the right
dtype are assigned straight from the mapped file. Rotary tables are computed on demand by the network, so no
buffer has to be restored.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qvl.errors import CheckpointMismatchError, InputError, UnsupportedError
from qvl.weights.files import Checkpoint, Source
from qvl.weights.names import to_internal
from qvl.weights.placement import DeviceMap, Placement
from qvl.weights.progress import SlowProgress
from qvl.weights.quantization.config import Quantization, read_quantization
from qvl.weights.quantized_files import is_quantized
from qvl.weights.quantizer import LayerQuantizer
from qvl.weights.skeleton import skeleton
from qvl.weights.sources import adapted, install_stored, open_weights, refuse_changes
from qvl.weights.tensors import Group, groups_of

LISTED = 20  # names in an error message before "and N more"


@dataclass(frozen=True)
class LoadingOptions:
    """The arguments of ``from_pretrained`` that say how, not what, to load.

    ``dtype``: "auto" (what the config says, else what the file has) or a torch dtype.
    """

    dtype: torch.dtype | str = "auto"
    device_map: DeviceMap = None
    attn_implementation: str | None = None
    quantization_config: Quantization | None = None

    @classmethod
    def read(cls, kwargs: dict[str, Any]) -> LoadingOptions:
        """Take these options out of ``kwargs``.

        ``torch_dtype`` is the older name of ``dtype``. ``low_cpu_mem_usage`` and ``use_safetensors`` describe
        what is always done here.
        """
        kwargs.pop("low_cpu_mem_usage", None)
        if kwargs.pop("use_safetensors", None) is False:
            raise UnsupportedError(
                "pickled weights are never opened here; use_safetensors=False cannot be served"
            )
        older = kwargs.pop("torch_dtype", None)
        dtype = kwargs.pop("dtype", None) or older or "auto"
        quantization = kwargs.pop("quantization_config", None)
        return cls(
            dtype=as_dtype(dtype),
            device_map=kwargs.pop("device_map", None),
            attn_implementation=kwargs.pop("attn_implementation", None),
            quantization_config=None if quantization is None else read_quantization(quantization),
        )


def as_dtype(dtype: torch.dtype | str) -> torch.dtype | str:
    """A name such as "bfloat16" as the torch dtype; "auto" and a dtype as they are."""
    if isinstance(dtype, str) and dtype == "auto":
        return dtype
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    raise InputError(f'dtype is {dtype!r}; expected "auto" or a floating-point dtype such as "bfloat16"')


def load_model(
    model_class: type[nn.Module],
    config: Any,
    folder: Path,
    options: LoadingOptions,
    adapter: Path | None = None,
) -> Any:
    """A ``model_class(config)`` with the weights of ``folder``, placed, cast and quantized by ``options``.

    ``config`` is copied; the copy says which dtype, attention and quantization the model really has.
    ``adapter``: a folder with a LoRA adapter, which is added to the weights as they come, before they are
    quantized. Raises UnsupportedError for one on weights that are quantized already.
    """
    placement = Placement.read(options.device_map)
    placement.require()
    if options.quantization_config is not None:
        options.quantization_config.require()
    config = copy.deepcopy(config)
    config._attn_implementation = options.attn_implementation or config._attn_implementation
    source, stored = open_weights(folder, config)
    if stored is not None:
        refuse_changes(source, stored, options.quantization_config, options.dtype)
    if adapter is not None:
        source = adapted(source, adapter, stored, config)
    config.dtype = _dtype_of(options, config, source)
    module = skeleton(model_class, config)
    if stored is not None:
        install_stored(module, source, stored, options.quantization_config)
    quantization = None if stored is not None else options.quantization_config
    quantizer = None if quantization is None else quantization.quantizer(module)
    placement = placement.fitted(module, config.dtype, {} if quantizer is None else quantizer.bits)
    prefix = getattr(model_class, "checkpoint_prefix", "")
    fill(module, source, prefix=prefix, dtype=config.dtype, placement=placement, quantizer=quantizer)
    if quantization is not None:
        config.quantization_config = quantization.to_dict()
    placement.dispatch(module)
    return module


def _dtype_of(options: LoadingOptions, config: Any, source: Source) -> Any:
    if isinstance(options.dtype, torch.dtype):
        return options.dtype
    return config.dtype or source.float_dtype()


def load_checkpoint(
    module: nn.Module,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device_map: DeviceMap = None,
) -> None:
    """Fill ``module``, which may be on the meta device, from the checkpoint in ``folder``.

    ``dtype``: of floating-point tensors; None leaves each as it is stored. Raises CheckpointNotFoundError,
    CheckpointCorruptError, or CheckpointMismatchError with the names of tensors that do not fit.
    """
    prefix = getattr(module, "checkpoint_prefix", "")
    placement = Placement.read(device_map).fitted(module, dtype or torch.float32, {})
    fill(module, Checkpoint(Path(folder)), prefix=prefix, dtype=dtype, placement=placement)


def fill(
    module: nn.Module,
    source: Source,
    *,
    prefix: str = "",
    dtype: torch.dtype | None = None,
    placement: Placement,
    quantizer: LayerQuantizer | None = None,
) -> None:
    """Assign every tensor of ``module`` from ``source``; ``prefix``: where in a whole model it stands.

    Weights that ``quantizer`` wants are converted as they come, so only one at a time has its full width.
    """
    plan = match(module, source, prefix)
    total = sum(group.tensor.numel() for group, _ in plan) * (dtype or torch.float32).itemsize
    with SlowProgress("Loading weights", total) as progress:
        for group, stored in plan:
            name = group.names[0]
            convert = quantizer is not None and name in quantizer.layers
            wanted = dtype if isinstance(group.tensor, nn.Parameter) else None  # scales keep their dtype
            tensor = source.read(stored, dtype=wanted, device=placement.device_of(name), passing=convert)
            trainable = group.tensor.requires_grad and not is_quantized(tensor)
            group.assign(module, tensor, trainable=trainable)
            progress.advance(tensor.nbytes)
            if quantizer is not None and convert:
                del tensor
                quantizer.convert(name)
    if quantizer is not None:
        quantizer.finish()


def match(module: nn.Module, source: Source, prefix: str) -> list[tuple[Group, str]]:
    """Which stored tensor fills which of the module's; CheckpointMismatchError unless that works out exactly.

    A tied tensor may be stored under any of its names, or several: the first counts. Tensors outside of
    ``prefix`` belong to other parts of the model and are passed over.
    """
    stored, unexpected = _by_internal_name(source)
    plan, missing, wrong = [], [], []
    for group in groups_of(module):
        found = next((prefix + name for name in group.names if prefix + name in stored), None)
        if found is None:
            missing.append(prefix + group.names[0])
        elif source.shape(stored[found]) != tuple(group.tensor.shape):
            wrong.append(
                f"{found} (stored {source.shape(stored[found])}, needed {tuple(group.tensor.shape)})"
            )
        elif group.tensor.is_floating_point() and not source.is_floating_point(stored[found]):
            wrong.append(f"{found} (stored as integers, needed floating-point)")
        else:
            plan.append((group, stored[found]))
    known = {prefix + name for name in module.state_dict()}
    unexpected += [stored[name] for name in stored if name.startswith(prefix) and name not in known]
    if missing or wrong or unexpected:
        raise CheckpointMismatchError(
            f"the checkpoint {source.folder} does not fit {type(module).__name__}: "
            + "; ".join(
                _listed(missing, "missing")
                + _listed(unexpected, "unexpected")
                + _listed(wrong, "of another shape or kind")
            )
        )
    return plan


def _by_internal_name(source: Source) -> tuple[dict[str, str], list[str]]:
    """Internal name -> stored name, and the stored names that say the same as an earlier one."""
    stored: dict[str, str] = {}
    repeated = []
    for name in source.files:
        internal = to_internal(name)
        if internal is not None and stored.setdefault(internal, name) != name:
            repeated.append(name)
    return stored, repeated


def _listed(names: list[str], what: str) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return [f"{len(names)} {what}: {', '.join(names[:LISTED])}{more}"]
