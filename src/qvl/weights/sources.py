"""Where the tensors of a checkpoint come from: its files as they are, or put together as they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qvl.errors import UnsupportedError
from qvl.weights.adapters import AdaptedSource, Adapter
from qvl.weights.files import Checkpoint, Source
from qvl.weights.formats.awq import AwqConfig
from qvl.weights.formats.gptq import GptqConfig
from qvl.weights.quantization.config import Quantization, QuantizationConfig, Stored, stored_quantization
from qvl.weights.quantization.install import described, install, packed_layers
from qvl.weights.quantize import TorchAoConfig
from qvl.weights.quantized_files import QuantizedCheckpoint


def open_weights(folder: Path, config: Any) -> tuple[Source, Stored | None]:
    """The stored tensors of ``folder``, and how ``config`` says they are quantized; None: they are not."""
    values = getattr(config, "quantization_config", None)
    if values is None:
        return Checkpoint(folder), None
    stored = stored_quantization(values)
    stored.require()
    checkpoint = Checkpoint(folder)
    if isinstance(stored, TorchAoConfig):
        return QuantizedCheckpoint.restore(checkpoint), stored
    if isinstance(stored, AwqConfig | GptqConfig):
        return stored.open(checkpoint), stored
    return checkpoint, stored


def adapted(base: Source, adapter: Path, stored: Stored | None, config: Any) -> AdaptedSource:
    """``base`` with the adapter of a folder added; ``config`` is made that of the changed model."""
    if stored is not None:
        raise UnsupportedError(
            f"the weights of {base.folder} are quantized, and an adapter cannot be added to those: pass "
            "base= with the model at full width, and quantization_config= (--weights) to quantize the sum"
        )
    source = AdaptedSource(
        base, Adapter.open(adapter), tied=bool(getattr(config, "tie_word_embeddings", False))
    )
    source.fit(config)
    return source


def refuse_changes(source: Source, stored: Stored, asked: Quantization | None, dtype: Any) -> None:
    """Quantized weights are what they are: neither quantized again nor, torchao's, cast.

    A ``QuantizationConfig`` with the same weights may be ``asked`` for: it says how to multiply with them.
    """
    if isinstance(asked, QuantizationConfig) and asked.weights == weights_of(source):
        asked = None
    if asked is not None:
        raise UnsupportedError(f"{source.folder} is quantized already; load it without quantization_config")
    if isinstance(stored, TorchAoConfig) and dtype not in ("auto", source.float_dtype()):
        raise UnsupportedError(
            f"the quantized weights of {source.folder} work in {source.float_dtype()}; "
            "load them with dtype='auto'"
        )


def weights_of(source: Source) -> str | None:
    """ "int4" or "int8", whichever most packed layers have; None if there are none."""
    bits = [scheme.bits for scheme in packed_layers(source).values()]
    return f"int{max(set(bits), key=bits.count)}" if bits else None


def install_stored(module: Any, source: Source, stored: Stored, asked: Quantization | None) -> None:
    """Layers for what ``source`` holds packed, and a config of ``module`` that says so."""
    if isinstance(stored, TorchAoConfig):
        return
    exact = getattr(stored if asked is None else asked, "exact", False)
    schemes = packed_layers(source)
    install(module, schemes, prefix=getattr(module, "checkpoint_prefix", ""), exact=exact)
    module.config.quantization_config = described(schemes, stored, exact=exact)
