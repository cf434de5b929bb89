"""LoRA on any part of the model, by PEFT, and adapters in PEFT's own format on the disk.

PEFT puts its layers into the loaded model, whose own names stay: the same network trains, generates and is
saved. peft is imported only here, inside functions, as it brings transformers along.
"""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from qvl import hub
from qvl.config import Qwen2_5_VLConfig
from qvl.config.base import read_json
from qvl.errors import (
    CheckpointError,
    CheckpointMismatchError,
    InputError,
    UnsupportedError,
    missing_dependency,
)
from qvl.processing.processor import Qwen2_5_VLProcessor
from qvl.train.parts import PartSettings, check_rates, part_of, tied
from qvl.weights.adapters import ADAPTER_WEIGHTS, PREFIX, Adapter, Change
from qvl.weights.aligned import save_aligned
from qvl.weights.quantization.linear import QuantizedLinear
from qvl.weights.quantized_files import is_quantized

NAME = "default"  # of the one adapter that a model has while it is trained

_SNAPSHOT = re.compile(r"/models--([^/]+)/snapshots/([0-9a-f]{40})/?$")  # a folder of the hub's cache

# The layers of each part, for PEFT to match whole names of modules with. They fit both layouts of names, so
# that other versions of transformers find the same layers. The patch convolution is not adapted: no layer.
TARGETS = MappingProxyType(
    {
        "tower": r"(?:.*\.)?blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.(?:gate_proj|up_proj|down_proj))",
        "merger": r"(?:.*\.)?merger\.mlp\.(?:0|2)",
        "layers": r"(?:.*\.)?layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate_proj|up_proj|down_proj))",
        "embeddings": r"(?:.*\.)?embed_tokens",
        "head": r"(?:.*\.)?lm_head",
    }
)


@dataclass(frozen=True)
class LoraSettings:
    """``r``: rank. ``alpha``: the product is scaled by alpha / r, with ``rslora`` by alpha / sqrt(r).

    ``dropout``: on the inputs of adapters. ``dora``: directions and magnitudes apart (arXiv 2402.09353).
    ``modules_to_save``: ends of names of modules that are trained and saved whole ("merger", "lm_head").
    ``adapter``: a folder or id of one to go on with; it says all of these but ``dropout`` itself.

    Raises InputError for values that make no sense.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    modules_to_save: tuple[str, ...] = ()
    adapter: str | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise InputError(f"the rank r must be 1 or more, not {self.r!r}")
        if not self.alpha > 0:
            raise InputError(f"alpha must be more than 0, not {self.alpha!r}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be at least 0 and below 1, not {self.dropout!r}")
        given = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        if self.adapter is not None and set(given) - {"adapter", "dropout"}:
            raise InputError(
                f"{', '.join(n for n in given if n not in ('adapter', 'dropout'))} cannot be set with "
                "adapter: one that is gone on with keeps its own settings"
            )


def attach(model: Any, settings: LoraSettings, parts: PartSettings | None = None, *, seed: int = 0) -> None:
    """Put adapters into ``model`` (a loaded Qwen2_5_VLForConditionalGeneration), in place; all else freezes.

    ``parts``: where; the decoder's layers by default, those of the adapter where one is gone on with.
    ``seed``: of their random beginning. Adapters are float32 whatever the weights are. Weights in 8 or 4 bits
    of `QuantizationConfig` stay as they are and multiply exactly from now on, so that gradients pass.

    Raises MissingDependencyError without peft, InputError for parts or modules that are not there,
    UnsupportedError for quantized weights that gradients or adapters cannot pass.
    """
    peft = _peft()
    parts = parts or PartSettings()
    if getattr(model, "peft_config", None):
        raise InputError("the model has adapters already; load it again to begin with others")
    _base_of(model)  # what could not be saved is told before it is trained
    start = None if settings.adapter is None else _opened(settings.adapter)
    if start is not None and parts.train is not None:
        raise InputError("an adapter that is gone on with keeps its parts; leave train out")
    values = _new(model, settings, parts) if start is None else _again(start, settings)
    _check_quantized(model, values)
    config = peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=settings.dropout, **values)
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        from peft.tuners.lora import Linear

        config._register_custom_module({QuantizedLinear: Linear})
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model, NAME)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if start is not None:
        _fill(model, start)
    check_rates(model, parts)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise missing_dependency("peft", "train", "training with LoRA") from error
    return peft


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT looks at every package that it could work with, and those complain about each other."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _new(model: Any, settings: LoraSettings, parts: PartSettings) -> dict[str, Any]:
    """PEFT's settings of a new adapter."""
    adapted = parts.adapted()
    apart = {"embeddings", "head"} & adapted | {
        part for name in settings.modules_to_save for part in _parts_of(model, name) & {"embeddings", "head"}
    }
    if apart and tied(model):
        raise InputError(
            "the head is tied to the embeddings, and an adapter on one of them would part the two; train "
            "other parts, or all of the embeddings without LoRA"
        )
    return {
        "r": settings.r,
        "lora_alpha": int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha,
        "use_rslora": settings.rslora,
        "use_dora": settings.dora,
        "modules_to_save": list(settings.modules_to_save) or None,
        "target_modules": "|".join(TARGETS[part] for part in TARGETS if part in adapted),
    }


def _parts_of(model: Any, module: str) -> set[str | None]:
    """The parts that modules of that (end of a) name belong to; InputError where there is none."""
    found = {
        part_of(f"{name}.")
        for name, _ in model.named_modules()
        if name == module or name.endswith(f".{module}")
    }
    if not found:
        raise InputError(
            f"modules_to_save names {module!r}, and no module's name ends so; the merger is 'merger', the "
            "head 'lm_head', the embeddings 'embed_tokens'"
        )
    return found


def _check_quantized(model: Any, values: Mapping[str, Any]) -> None:
    """Lets gradients through packed weights, or says why not."""
    if any(map(is_quantized, model.parameters())):
        raise UnsupportedError(
            "adapters are not trained on torchao's weights: load the model with QuantizationConfig('int8') "
            "or ('int4'), or without quantization"
        )
    packed = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    if not packed:
        return
    if values.get("use_dora"):
        raise UnsupportedError("DoRA needs the lengths of full-width weights; leave it out, or quantization")
    if getattr(Qwen2_5_VLConfig.from_pretrained(model.name_or_path), "quantization_config", None):
        raise UnsupportedError(
            f"{model.name_or_path} is stored quantized, so no adapter on it could be merged: load the "
            "checkpoint that it was made from with quantization_config=QuantizationConfig(...)"
        )
    for module in packed:
        module.exact = True


# -- going on with an adapter -----------------------------------------------------------------------------


def _opened(name: str) -> Adapter:
    folder = hub.resolve(name)
    if not (folder / hub.ADAPTER_CONFIG).is_file():
        raise InputError(f"{name} is no adapter: it has no {hub.ADAPTER_CONFIG}")
    return Adapter.open(folder)


def _again(adapter: Adapter, settings: LoraSettings) -> dict[str, Any]:
    """PEFT's settings for exactly the modules, ranks and scales of an adapter, by their names here."""
    folder = adapter.tensors.folder
    saved = read_json(folder / hub.ADAPTER_CONFIG)
    if any(change.rows for change in adapter.changes.values()):
        raise UnsupportedError(
            f"{settings.adapter} trained single rows of the embeddings, which is not done here: merge it "
            "(qvl merge) and begin a new adapter on the outcome"
        )
    pairs = _pairs(adapter)
    ranks = {name: adapter.rank(change) for name, change in pairs.items()}
    alphas = {name: adapter.config.alpha_of(adapter.names(change)) for name, change in pairs.items()}
    rank = max(set(ranks.values()), key=[*ranks.values()].count, default=1)
    return {
        "r": rank,
        "lora_alpha": adapter.config.alpha,
        "rank_pattern": {re.escape(n): r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(n): a for n, a in alphas.items() if a != adapter.config.alpha},
        "use_rslora": adapter.config.rank_scaled,
        "use_dora": any(change.magnitude for change in pairs.values()),
        "modules_to_save": saved.get("modules_to_save"),
        "bias": saved.get("bias", "none"),
        "lora_bias": bool(saved.get("lora_bias")),
        "target_modules": sorted(pairs),
    }


def _fill(model: Any, adapter: Adapter) -> None:
    """The adapter's tensors into the layers that PEFT made for them."""
    from peft import set_peft_model_state_dict

    tensors: dict[str, Tensor] = {}
    for name, change in adapter.changes.items():
        for stored, wanted in _places(name, change, adapted=adapter.names(change)[1] in _pairs(adapter)):
            tensors[wanted] = adapter.tensors.read(stored, dtype=torch.float32).clone()
    outcome: Any = set_peft_model_state_dict(model, tensors, NAME)
    if outcome.unexpected_keys:
        raise CheckpointMismatchError(
            f"the adapter in {adapter.tensors.folder} has tensors that this model has no place for, first "
            f"{outcome.unexpected_keys[0]}: was it trained on another one?"
        )


def _pairs(adapter: Adapter) -> dict[str, Change]:
    """Module, by its name here -> the change that is a product of two matrices."""
    return {adapter.names(c)[1]: c for c in adapter.changes.values() if c.down is not None}


def _places(name: str, change: Change, *, adapted: bool) -> list[tuple[str, str]]:
    """(stored name, name that PEFT takes it under) of what is trained in a change of the tensor ``name``.

    ``adapted``: PEFT's layer stands around the module.
    """
    module, _, leaf = name.rpartition(".")
    kind = "lora_embedding_{}" if change.turned else "lora_{}.weight"
    own = f"{module}.base_layer.{leaf}" if adapted and leaf == "bias" else name
    found = (
        (change.replaced if leaf == "bias" else change.whole, own),
        (change.down, f"{module}.{kind.format('A')}"),
        (change.up, f"{module}.{kind.format('B')}"),
        (change.magnitude, f"{module}.lora_magnitude_vector"),
        (change.added, f"{module}.lora_B.bias"),
    )
    return [(stored, place) for stored, place in found if stored is not None]


# -- saving -----------------------------------------------------------------------------------------------


def save_adapter(model: Any, folder: Path) -> None:
    """Write the model's adapter into ``folder``, which is made if missing, as PEFT would.

    Each file is written beside the old one, brought to the disk and renamed, the settings last: an
    interrupted save leaves what was there. Raises InputError for a model without adapters or one that came
    from an adapter's folder, CheckpointError where nothing can be written.
    """
    config = getattr(model, "peft_config", {}).get(NAME)
    if config is None:
        raise InputError("the model has no adapter to save; see qvl.train.lora.attach")
    tensors = {
        PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in adapter_tensors(model).items()
    }
    values = config.to_dict() | {"inference_mode": True} | _base_of(model)
    text = json.dumps(values, indent=2, sort_keys=True, default=_plain) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replaced(folder / ADAPTER_WEIGHTS, lambda path: save_aligned(tensors, path, {"format": "pt"}))
        _replaced(folder / hub.ADAPTER_CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"the adapter cannot be written into {folder}: {error}") from error


def adapter_tensors(model: Any) -> dict[str, Tensor]:
    """What an adapter consists of, by PEFT's names without those of its wrappers."""
    from peft import get_peft_model_state_dict

    found: dict[str, Tensor] = get_peft_model_state_dict(
        model, adapter_name=NAME, save_embedding_layers=False
    )
    return found


def _base_of(model: Any) -> dict[str, str]:
    """What the adapter says it belongs to: a bundled name or an id as it is, also where the model came out of
    the hub's cache (then with its revision); another folder by its whole path."""
    name = model.name_or_path
    if not name:
        raise InputError(
            "the model does not say where it came from (name_or_path), which an adapter must name"
        )
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return {"base_model_name_or_path": name}
    if (folder / hub.ADAPTER_CONFIG).is_file():
        raise InputError(
            f"the model was loaded from the adapter {name}: to go on with that one, load its base and pass "
            "adapter=; to train another on top, merge it first (qvl merge)"
        )
    bundled = [key for key, place in hub.BUNDLED.items() if place.resolve() == folder.resolve()]
    cached = _SNAPSHOT.search(folder.as_posix())
    if cached and not bundled:
        return {"base_model_name_or_path": cached[1].replace("--", "/"), "revision": cached[2]}
    return {"base_model_name_or_path": bundled[0] if bundled else str(folder.resolve())}


def _plain(value: Any) -> Any:
    """What JSON has no word for: sets, as PEFT keeps names of modules."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} in an adapter's settings")


def _replaced(path: Path, write: Callable[[Path], Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class AdapterWriter:
    """Writes an adapter with everything that serves: ``--model FOLDER`` takes it at once. See `Trainer`."""

    def __init__(self, processor: Qwen2_5_VLProcessor) -> None:
        self.processor = processor

    def __call__(self, model: nn.Module, folder: Path) -> None:
        save_adapter(model, folder)
        self.processor.save_pretrained(folder)
