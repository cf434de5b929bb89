"""The options of ``qvl train``: one row for each setting of a run, its data, the parts that learn and LoRA.

A file of settings (``--config``) has the same names; the command line wins over it. A test holds the table
against the dataclasses, whose modules are too heavy to be read before a command is chosen.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

from qvl.cli.setting_options import SettingOption, with_options
from qvl.errors import InputError
from qvl.train.data.settings import DataSettings
from qvl.train.settings import TrainSettings

RUN, SPEED, DATA, LEARNING = "The run", "Memory and speed", "Data", "What learns"
LORA, OUTCOME = "LoRA", "Checkpoints and reports"


class Schedule(str, Enum):
    """How the learning rate falls."""

    cosine = "cosine"
    linear = "linear"
    trapezoid = "trapezoid"
    constant = "constant"


class ComputeDtype(str, Enum):
    """Number formats to compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class SaveDtype(str, Enum):
    """Number formats to store weights in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Learn(str, Enum):
    """Which tokens count."""

    answers = "answers"
    last = "last"
    all = "all"


class Boxes(str, Enum):
    """What the numbers of boxes count."""

    original = "original"
    resized = "resized"
    thousandths = "thousandths"


class ObjectsAs(str, Enum):
    """How objects of ms-swift are written."""

    tokens = "tokens"
    numbers = "numbers"


class TooLong(str, Enum):
    """What becomes of rows that are too long."""

    error = "error"
    drop = "drop"
    shrink = "shrink"


_Row = SettingOption
OPTIONS = (
    _Row("epochs", "--epochs", "How often all rows are gone through.", RUN, float, 0.0),
    _Row("steps", "--steps", "Steps of the optimizer, instead of epochs.", RUN, unset="after --epochs"),
    _Row("batch", "--batch", "Rows of one step, of all processes together.", RUN),
    _Row("learning_rate", "--learning-rate", "Highest learning rate.", RUN, float, 0.0),
    _Row("schedule", "--schedule", "How the learning rate falls.", RUN, Schedule),
    _Row("warm_up", "--warm-up", "Steps in which the learning rate rises.", RUN, least=0),
    _Row("floor", "--floor", "Share of the learning rate that is left in the end.", RUN, float, 0.0, 1.0),
    _Row("weight_decay", "--weight-decay", "Of matrices; norms and biases have none.", RUN, float, 0.0),
    _Row("betas", "--betas", "Two numbers of AdamW, as in 0.9,0.95.", RUN, str),
    _Row("clip", "--clip", "Norm that gradients are cut to; 0: not at all.", RUN, float, 0.0),
    _Row(
        "average",
        "--average",
        "Decay of an average of the weights, which is saved; 0: none.",
        RUN,
        float,
        0.0,
    ),
    _Row("shuffle", "--shuffle/--no-shuffle", "Another order of the rows in every epoch.", RUN, bool),
    _Row("seed", "--seed", "Decides order, dropout and the beginning of adapters.", RUN, least=0),
    _Row("pass_tokens", "--pass-tokens", "Tokens that go through the model at once: sets the memory.", SPEED),
    _Row("dtype", "--dtype", "Number format to compute in.", SPEED, ComputeDtype),
    _Row(
        "gradient_checkpointing",
        "--gradient-checkpointing/--no-gradient-checkpointing",
        "Compute activations twice instead of keeping them.",
        SPEED,
        bool,
    ),
    _Row("workers", "--workers", "Processes that prepare rows.", SPEED, least=0),
    _Row("media_root", "--media-root", "Where paths of media start.", DATA, Path, unset="each file's folder"),
    _Row("weight", "--weight", "How often a file is gone through, in the order of the files.", DATA, "list"),
    _Row("boxes", "--boxes", "What numbers of boxes in the data count.", DATA, Boxes),
    _Row("objects_as", "--objects-as", "How the objects of ms-swift are written.", DATA, ObjectsAs),
    _Row("max_tokens", "--max-tokens", "Longest row.", DATA, unset="what the model was made for"),
    _Row("too_long", "--too-long", "What becomes of longer rows.", DATA, TooLong),
    _Row("min_pixels", "--min-pixels", "Enlarge pictures to at least this many pixels.", DATA),
    _Row("max_pixels", "--max-pixels", "Shrink pictures to at most this many pixels.", DATA),
    _Row("fps", "--fps", "Frames per second taken from a video.", DATA, float, 0.0),
    _Row("skip_bad", "--skip-bad/--no-skip-bad", "Train without the rows that are bad.", DATA, bool),
    _Row("learn", "--learn", "Learn all answers, the last one, or all text.", LEARNING, Learn),
    _Row(
        "train",
        "--train",
        "Part that learns: tower, merger, layers, embeddings, head, or decoder for the last three. May be "
        "given several times.",
        LEARNING,
        "list",
        unset="all; with --lora the decoder's layers",
    ),
    _Row("rate", "--rate", "Learning rate of one part, as in tower=1e-6.", LEARNING, "list"),
    _Row("lora", "--lora/--no-lora", "Train adapters beside weights that stay as they are.", LORA, bool),
    _Row("r", "--lora-r", "Rank.", LORA),
    _Row("alpha", "--lora-alpha", "Adapters are scaled by this over the rank.", LORA, float, 0.0),
    _Row("dropout", "--lora-dropout", "On the inputs of adapters.", LORA, float, 0.0, 1.0),
    _Row("rslora", "--rslora/--no-rslora", "Scale by the root of the rank.", LORA, bool),
    _Row("dora", "--dora/--no-dora", "Directions and magnitudes apart.", LORA, bool),
    _Row("modules_to_save", "--modules-to-save", "Module that learns whole.", LORA, "list"),
    _Row("adapter", "--adapter", "Adapter to go on with.", LORA, str),
    _Row("save_every", "--save-every", "Steps between checkpoints.", OUTCOME),
    _Row("keep", "--keep", "Checkpoints that stay; 0: all.", OUTCOME, least=0),
    _Row(
        "save_dtype", "--save-dtype", "Number format of saved weights.", OUTCOME, SaveDtype, unset="as loaded"
    ),
    _Row("evaluate_every", "--evaluate-every", "Steps between evaluations; 0: at the end.", OUTCOME, least=0),
    _Row("log_every", "--log-every", "Steps between lines where there is no terminal.", OUTCOME),
)
# Defaults of what stands in modules that import torch, and of what no dataclass has.
ELSEWHERE: Mapping[str, Any] = {
    "r": 16,
    "alpha": 32.0,
    "dropout": 0.0,
    "rslora": False,
    "dora": False,
    "modules_to_save": (),
    "adapter": None,
    "train": None,
    "rate": None,
    "learn": "answers",
    "lora": False,
    "skip_bad": False,
    "weight": None,
    "min_pixels": None,
    "max_pixels": None,
    "fps": None,
}
OF_LORA = ("r", "alpha", "dropout", "rslora", "dora", "modules_to_save", "adapter")
_DEFAULTS = {
    **{field.name: field.default for kind in (TrainSettings, DataSettings) for field in fields(kind)},
    "betas": "0.9,0.95",
    **ELSEWHERE,
}


def with_train_options(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with all options of the table; see `with_options`."""
    return with_options(command, OPTIONS, _DEFAULTS)


def from_file(path: Path) -> dict[str, Any]:
    """The settings of a TOML or JSON file, by the names of the options or of the fields behind them.

    Raises InputError for a file that cannot be read and for names and values that no option has.
    """
    names = {option.names.split("/")[0].removeprefix("--").replace("-", "_"): option for option in OPTIONS}
    names |= {option.field: option for option in OPTIONS}
    found = {}
    for name, value in _read(path).items():
        option = names.get(name.replace("-", "_"))
        if option is None:
            raise InputError(f"{path} sets {name!r}, which is no option of qvl train (see qvl train --help)")
        found[option.field] = _fitting(option, value, path)
    return found


def _read(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path} cannot be read: {error}") from error
    if path.suffix.lower() != ".json" and sys.version_info < (3, 11):
        raise InputError(f"--config {path}: reading TOML needs Python 3.11 or later; write it as JSON")
    try:
        if path.suffix.lower() == ".json":
            value = json.loads(text)
        else:
            import tomllib

            value = tomllib.loads(text)
    except ValueError as error:
        raise InputError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"--config {path} must hold names and values")
    return value


def _fitting(option: SettingOption, value: Any, path: Path) -> Any:
    """The value as the command line would have given it."""
    kind = option.kind
    if option.field == "betas" and isinstance(value, list):
        return ",".join(map(str, value))
    if option.field == "rate" and isinstance(value, Mapping):
        return [f"{part}={rate}" for part, rate in value.items()]
    if kind == "list" and isinstance(value, list):
        return [str(item) for item in value]
    if isinstance(kind, type) and issubclass(kind, Enum):
        fits = value in {member.value for member in kind}
    else:
        types: dict[Any, tuple[type, ...]] = {float: (int, float), Path: (str,), str: (str,), int: (int,)}
        fits = isinstance(value, types.get(kind, (kind,) if isinstance(kind, type) else ()))
        fits = fits and isinstance(value, bool) == (kind is bool)
    if not fits:
        raise InputError(f"{path} sets {option.field} to {value!r}, which {option.names} does not take")
    return value


def train_settings(given: Mapping[str, Any]) -> TrainSettings:
    """The settings of the run. Raises InputError for values that make no sense."""
    own = _of(TrainSettings, given)
    if "betas" in own:
        own["betas"] = _betas(own["betas"])
    return TrainSettings(**own)


def data_settings(given: Mapping[str, Any]) -> DataSettings:
    """What the rows mean. Raises InputError for a folder that is none."""
    own = _of(DataSettings, given)
    if "media_root" in own:
        if not Path(own["media_root"]).is_dir():
            raise InputError(f"--media-root {own['media_root']} is no folder")
        own["media_root"] = str(own["media_root"])
    return DataSettings(**own)


def weights_of(given: Mapping[str, Any], files: int) -> list[float]:
    """One weight for each file."""
    weights = [_number("--weight", text) for text in given.get("weight", ())]
    if weights and len(weights) != files:
        raise InputError(f"there must be one --weight for each file: {files}, not {len(weights)}")
    return weights or [1.0] * files


def rates_of(given: Mapping[str, Any]) -> dict[str, float]:
    """Learning rates by part."""
    found = {}
    for text in given.get("rate", ()):
        part, equals, rate = text.partition("=")
        if not equals:
            raise InputError(f"--rate {text}: write a part and its learning rate, as in tower=1e-6")
        found[part] = _number(f"--rate {part}", rate)
    return found


def lora_values(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments of LoraSettings, or None for full training. Raises InputError for LoRA's options without."""
    values = {name: given[name] for name in OF_LORA if name in given}
    if not given.get("lora"):
        if values:
            shown = next(option.names for option in OPTIONS if option.field == next(iter(values)))
            raise InputError(f"{shown.split('/')[0]} is about adapters; give --lora too, or leave it out")
        return None
    if "modules_to_save" in values:
        values["modules_to_save"] = tuple(values["modules_to_save"])
    return values


def _of(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in given.items() if name in names}


def _betas(text: str) -> tuple[float, float]:
    numbers: Sequence[float] = [_number("--betas", part) for part in text.split(",")]
    if len(numbers) != 2 or not all(0 <= number < 1 for number in numbers):
        raise InputError(f"--betas takes two numbers from 0 to below 1, as in 0.9,0.95, not {text!r}")
    return numbers[0], numbers[1]


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{name} must be a number, not {text!r}") from None
