"""A whole model quantized in place, with or without prompts to calibrate on, and what each layer lost by it.

Legend: T rows, N outputs, K inputs of a layer.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qvl.ops.quantized import PackedWeight, dequantize
from qvl.weights.quantization.calibrate import Prompt, sampled, walk
from qvl.weights.quantization.compensation import carried, compensated
from qvl.weights.quantization.config import QuantizationConfig
from qvl.weights.quantization.install import SHRINK, PackedQuantizer, rounded
from qvl.weights.quantization.linear import Scheme

SENSITIVE = 2.0  # a layer that loses so many times what the middle one does is kept higher

Progress = Callable[[int, int], None]  # layers that are done, and all


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer. ``error``: the root mean square of what changed in its outputs for real inputs
    (without prompts: in its weight), over that of the outputs (weight)."""

    name: str
    scheme: Scheme
    error: float


def quantize_model(
    model: Any, config: QuantizationConfig, prompts: Sequence[Prompt] = (), progress: Progress | None = None
) -> list[LayerReport]:
    """Quantize ``model`` (a whole one, with its head) in place, as ``config`` says.

    ``prompts``: keyword arguments of its forward. With them every layer is rounded so that its outputs for
    these prompts change least (GPTQ); without, to nearest. No more than one layer is at full width in float32
    at a time. Raises ConfigError if no layer is to be quantized, NonFiniteError for weights or inputs that
    are not finite.
    """
    quantizer = PackedQuantizer(model, config)
    schemes = quantizer.schemes()
    reports: dict[str, LayerReport] = {}

    def put(name: str, packed: PackedWeight, rows_TK: Tensor | None) -> None:
        error = relative_error(model.get_submodule(name), packed, rows_TK)
        reports[name] = LayerReport(name, schemes[name], error)
        quantizer.put(name, packed)
        if progress is not None:
            progress(len(reports), len(schemes))

    if prompts:
        for seen in walk(model, prompts, list(schemes)):
            for entry in seen:
                assert entry.moments_KK is not None  # a walk asks for them
                carry_KK = carried(entry.moments_KK)
                for name in entry.names:
                    weight = model.get_submodule(name).weight.detach()
                    put(name, compensated(weight, carry_KK, schemes[name], SHRINK), entry.rows_TK)
    for name in [name for name in schemes if name not in reports]:  # what no prompt reached
        put(name, rounded(model.get_submodule(name), schemes[name], SHRINK), None)
    quantizer.finish()
    model.config.quantization_config = config.to_dict()
    return [reports[name] for name in schemes]


def sensitive_layers(
    model: Any, config: QuantizationConfig, prompts: Sequence[Prompt] = (), progress: Progress | None = None
) -> dict[str, float]:
    """The layers that lose most when rounded to nearest as ``config`` says, `SENSITIVE` times the median or
    more, and how many times. The model stays as it is."""
    schemes = {name: s for name, s in PackedQuantizer(model, config).schemes().items() if s.bits == 4}
    rows = {name: entry.rows_TK for entry in sampled(model, prompts, list(schemes)) for name in entry.names}
    errors = {}
    for done, (name, scheme) in enumerate(schemes.items(), start=1):
        layer = model.get_submodule(name)
        errors[name] = relative_error(layer, rounded(layer, scheme, SHRINK), rows.get(name))
        if progress is not None:
            progress(done, len(schemes))
    middle = statistics.median(errors.values()) if errors else 0.0
    return {name: error / middle for name, error in errors.items() if middle and error >= SENSITIVE * middle}


def relative_error(layer: nn.Linear, packed: PackedWeight, rows_TK: Tensor | None) -> float:
    """See ``LayerReport``."""
    changed = whole = 0.0
    with torch.no_grad():
        for weight_NK, near_NK in _pieces(layer.weight, dequantize(packed)):
            difference_NK = near_NK - weight_NK
            if rows_TK is not None:
                difference_NK = rows_TK.float() @ difference_NK.T
                weight_NK = rows_TK.float() @ weight_NK.T
            changed += float(difference_NK.square().sum())
            whole += float(weight_NK.square().sum())
    return (changed / whole) ** 0.5 if whole else 0.0


def _pieces(weight_NK: Tensor, near_NK: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for weight, near in zip(weight_NK.split(8192), near_NK.split(8192), strict=True):
        yield weight.float(), near
