"""A ``TorchAoConfig`` applied to a module, layer by layer, from outside.

The network's files know nothing of this: a layer stays an ``nn.Linear`` whose weight is a torchao tensor.
Layers are converted one at a time, so that a loader can do it as each weight comes in, and the whole model
never lies in memory at full width.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol

from torch import nn

from qvl.errors import ConfigError, UnsupportedError
from qvl.weights.quantize import TorchAoConfig
from qvl.weights.tensors import groups_of, repeated_names

LISTED = 4  # names in a message before "and N more"


class LayerQuantizer(Protocol):
    """What a loader needs to quantize weights as they come in.

    ``layers``: names of the weights to convert. ``bits``: weight name -> bits per value that it will have.
    """

    @property
    def layers(self) -> Mapping[str, Any]: ...

    @property
    def bits(self) -> Mapping[str, int]: ...

    def convert(self, weight_name: str) -> None:
        """Quantize that weight, which is there now, in place."""

    def finish(self) -> None:
        """Called once, when everything is there."""


class Quantizer:
    """What of ``module``, which may still be on the meta device, is to be quantized, and what has been.

    ``layers``: weight name -> layer. Call `convert` for each as its weight is there, then `finish` once.
    """

    def __init__(self, module: nn.Module, config: TorchAoConfig) -> None:
        self.module: Any = module
        self.config = config
        self.layers = dict(_quantizable(module, config))
        self._tied = [group for group in groups_of(module) if len(group.names) > 1]
        self._done = 0
        self._skipped: dict[str, list[str]] = {}

    @property
    def bits(self) -> dict[str, int]:
        """Weight name -> bits per value that it will have (more where its shape does not allow it)."""
        return dict.fromkeys(self.layers, 8 if self.config.group_size is None else 4)

    def convert(self, weight_name: str) -> None:
        """Quantize that layer's weight in place, or note why it has to stay. UnsupportedError if torchao
        refuses."""
        from torchao.quantization import quantize_

        layer, name = self.layers[weight_name], weight_name.removesuffix(".weight")
        reason = self.config.obstacle(layer.weight)
        if reason is not None:
            self._skipped.setdefault(reason, []).append(name)
            return
        try:
            quantize_(layer, self.config.recipe(layer.weight.device), filter_fn=lambda *_: True)
        except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
            raise UnsupportedError(
                f"torchao cannot quantize {name} ({tuple(layer.weight.shape)}, {layer.weight.dtype}, on "
                f"{layer.weight.device}): {error}"
            ) from error
        self._done += 1
        give_back_freed_memory()

    def finish(self) -> None:
        """Tie again what was tied (or part it) and warn of layers that keep their weights; ConfigError if
        all do."""
        for group in self._tied:
            if self.config.untie_embedding_weights:
                self._part_head()
            else:  # a tied head follows its embedding
                group.assign(self.module, self.module.get_parameter(group.names[0]), trainable=False)
        if not self._done:
            raise ConfigError(f"no layer can be quantized: {_listing(self._skipped) or 'all are left out'}")
        if self._skipped:
            warnings.warn(f"layers that keep their weights: {_listing(self._skipped)}", stacklevel=3)

    def _part_head(self) -> None:
        """The head gets the full-width weight for its own, quantized if heads are."""
        head = self.module.lm_head
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        self.module.config.tie_word_embeddings = False
        if _asked_for("lm_head", head, self.config):
            self.layers["lm_head.weight"] = head
            self.convert("lm_head.weight")


def give_back_freed_memory() -> None:
    """What converting a layer took besides its outcome leaves gaps in the heap that the next layer does not
    fit into: without this they would add up to the size of the model. Only glibc has the call."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def quantize_module(module: nn.Module, config: TorchAoConfig) -> None:
    """Quantize the linear layers of ``module`` in place, one after the other.

    A layer whose shape does not allow it keeps its weights, and a warning lists those. Raises ConfigError if
    that is so for every layer, UnsupportedError if torchao refuses one.
    """
    quantizer = Quantizer(module, config)
    for name in list(quantizer.layers):
        quantizer.convert(name)
    quantizer.finish()


def _quantizable(module: nn.Module, config: TorchAoConfig) -> Iterator[tuple[str, Any]]:
    """The layers that the config asks for, by the names of their weights; a tied head is not one of them."""
    if config.include_input_output_embeddings and config.group_size is not None:
        raise ConfigError("int4_weight_only has no embeddings; leave include_input_output_embeddings off")
    repeated = repeated_names(module)
    for name, layer in module.named_modules():
        if f"{name}.weight" not in repeated and _asked_for(name, layer, config):
            yield f"{name}.weight", layer


def _asked_for(name: str, layer: nn.Module, config: TorchAoConfig) -> bool:
    if config.include_input_output_embeddings and (isinstance(layer, nn.Embedding) or name == "lm_head"):
        return True
    return isinstance(layer, nn.Linear) and not config.leaves_alone(name)


def _listing(skipped: Mapping[str, list[str]]) -> str:
    parts = []
    for reason, names in skipped.items():
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        parts.append(f"{reason} ({', '.join(names[:LISTED])}{more})")
    return "; ".join(parts)
