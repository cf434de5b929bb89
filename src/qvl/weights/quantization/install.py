"""Quantized layers into a module: ready ones for a checkpoint to fill, or one by one as weights come in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from qvl.errors import CheckpointMismatchError, ConfigError
from qvl.ops.quantized import PackedWeight, quantize_int4, quantize_int8
from qvl.weights.files import Source
from qvl.weights.names import HEAD, VISION, to_internal
from qvl.weights.quantization.config import QuantizationConfig
from qvl.weights.quantization.linear import QuantizedLinear, Scheme
from qvl.weights.quantizer import give_back_freed_memory
from qvl.weights.tensors import repeated_names

# Fractions of a group's range that int4 can try. While a model loads it tries none, to be done sooner.
SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)


def packed_layers(source: Source) -> dict[str, Scheme]:
    """Layer -> scheme of every layer that is stored packed, by the tensors that are there: qweight of five
    dimensions, zeros only with 4 bits, and order."""
    found = {}
    for name in source.files:
        layer, _, leaf = name.rpartition(".")
        if leaf != "qweight" or len(source.shape(name)) != 5:
            continue
        bits = 4 if f"{layer}.zeros" in source.files else 8
        group = source.shape(name)[2] * (8 if bits == 4 else 4)
        internal = to_internal(f"{layer}.")
        found[str(internal).removesuffix(".")] = Scheme(bits, group, f"{layer}.order" in source.files)
    return found


def install(module: Any, schemes: Mapping[str, Scheme], *, prefix: str, exact: bool) -> None:
    """Empty quantized layers in the places that ``schemes`` (whole names) says; ``prefix``: that of module.

    Other parts of the model are passed over. Raises CheckpointMismatchError for a place that is no linear
    layer.
    """
    for whole, scheme in schemes.items():
        if not whole.startswith(prefix):
            continue
        name = whole.removeprefix(prefix)
        layer = _found(module, name)
        if not isinstance(layer, nn.Linear):
            raise CheckpointMismatchError(
                f"the checkpoint holds a quantized {whole}, no linear layer of {type(module).__name__}"
            )
        replace(module, name, QuantizedLinear.empty(layer, scheme, exact=exact))


def described(schemes: Mapping[str, Scheme], stored: Any, *, exact: bool) -> dict[str, Any] | None:
    """What config.json is to say of a model with these layers; None if there are none. ``stored``: what it
    said."""
    if not schemes:
        return None
    bits = [scheme.bits for scheme in schemes.values()]
    most = max(set(bits), key=bits.count)
    eight = [name for name, scheme in schemes.items() if scheme.bits > most]
    return QuantizationConfig(
        f"int{most}",
        next(scheme.group for scheme in schemes.values() if scheme.bits == most),
        vision=any(name.startswith(VISION) for name in schemes),
        head=HEAD.removesuffix(".") in schemes,
        modules_to_not_convert=stored.modules_to_not_convert,
        modules_in_int8=tuple(eight),
        exact=exact,
    ).to_dict()


def _found(module: nn.Module, name: str) -> Any:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` where ``name`` is."""
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, layer)


def quantizable(module: nn.Module, config: QuantizationConfig, prefix: str) -> Iterator[tuple[str, Scheme]]:
    """The layers that ``config`` asks for, by their names in ``module``; a tied head is not one of them."""
    tied = repeated_names(module)
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and f"{name}.weight" not in tied:
            scheme = config.scheme_of(prefix + name)
            if scheme is not None:
                yield name, scheme


def rounded(layer: nn.Linear, scheme: Scheme, shrink: tuple[float, ...] = (1.0,)) -> PackedWeight:
    """The layer's weight, rounded to nearest. shrink: see ``quantize_int4``."""
    weight = layer.weight.detach()
    return quantize_int8(weight) if scheme.bits == 8 else quantize_int4(weight, scheme.group, shrink=shrink)


class PackedQuantizer:
    """A ``QuantizationConfig`` applied to ``module`` layer by layer, from outside.

    ``layers``: weight name -> scheme. Call `convert` for each as its weight is there, then `finish` once.
    """

    def __init__(self, module: Any, config: QuantizationConfig) -> None:
        self.module, self.config = module, config
        prefix = getattr(module, "checkpoint_prefix", "")
        self.layers = {f"{name}.weight": scheme for name, scheme in quantizable(module, config, prefix)}
        head = HEAD.removesuffix(".")
        self._tied_head = f"{head}.weight" in repeated_names(module)
        self._head_scheme = config.scheme_of(head) if self._tied_head else None  # done at the end
        if not self.layers and self._head_scheme is None:
            raise ConfigError(
                f"no layer of {type(module).__name__} is to be quantized: the text decoder's linear layers "
                "are, with vision=True those of the tower, but not what modules_to_not_convert names"
            )

    @property
    def bits(self) -> dict[str, int]:
        """Weight name -> bits per value that it will have, scales aside."""
        return {name: scheme.bits for name, scheme in self.layers.items()}

    def schemes(self) -> dict[str, Scheme]:
        """Layer -> scheme of all that is asked for, the head too if it is tied."""
        found = {name.removesuffix(".weight"): scheme for name, scheme in self.layers.items()}
        return found if self._head_scheme is None else {**found, HEAD.removesuffix("."): self._head_scheme}

    def convert(self, weight_name: str) -> None:
        """Quantize that layer's weight in place."""
        name = weight_name.removesuffix(".weight")
        self.put(name, rounded(self.module.get_submodule(name), self.layers[weight_name]))

    def put(self, name: str, packed: PackedWeight) -> None:
        """A quantized layer in the place of the linear layer ``name``."""
        bias = self.module.get_submodule(name).bias
        replace(self.module, name, QuantizedLinear(packed, bias, exact=self.config.exact))
        if name == HEAD.removesuffix("."):
            self.module.config.tie_word_embeddings = False
        give_back_freed_memory()

    def finish(self) -> None:
        """A head that is tied to its embedding is tied again, or parted from it if heads are asked for."""
        if self._head_scheme is not None and self.module.config.tie_word_embeddings:
            self.module.tie_weights()
            head = HEAD.removesuffix(".")
            self.put(head, rounded(self.module.get_submodule(head), self._head_scheme))
        elif self._tied_head and self._head_scheme is None:
            self.module.tie_weights()
