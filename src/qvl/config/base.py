"""Reading, writing and overriding settings: what every config does, whatever it describes.

The file is ``config.json``, as transformers 4.57 reads and writes it. Unknown keys become attributes and are
saved back, so nothing that another tool wrote is lost.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from qvl import hub
from qvl.errors import CheckpointCorruptError, CheckpointNotFoundError, ConfigError

CONFIG_FILE = "config.json"

# Settings of every config that say nothing while they have these values: left out of the file.
COMMON_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "architectures": None,
        "dtype": None,
        "output_hidden_states": False,
        "output_attentions": False,
        "return_dict": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
)
_DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


class PretrainedConfig:
    """Settings as attributes.

    ``dtype``: a torch dtype or its name ("bfloat16"); ``torch_dtype`` is its older spelling. Keywords that
    neither this class nor its subclass names become attributes too.
    """

    model_type: ClassVar[str] = ""
    base_config_key: ClassVar[str] = ""

    def __init__(
        self,
        *,
        architectures: list[str] | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        return_dict: bool = True,
        attn_implementation: str | None = None,
        name_or_path: str = "",
        **extras: Any,
    ) -> None:
        self.architectures = architectures
        self.dtype = torch_dtype if dtype is None else dtype
        self.output_hidden_states = output_hidden_states
        self.output_attentions = output_attentions
        self.return_dict = return_dict
        self.name_or_path = str(name_or_path)
        self._attn_implementation = attn_implementation
        for key, value in extras.items():
            # Underscored keys are what the writing program kept for itself (_name_or_path, _commit_hash).
            if key != "model_type" and not key.startswith("_"):
                setattr(self, key, value)

    @property
    def dtype(self) -> Any:
        """The torch dtype of the weights, or None. torch is imported only here, for those who ask."""
        return None if self._dtype is None else getattr(import_module("torch"), self._dtype)

    @dtype.setter
    def dtype(self, value: Any) -> None:
        name = None if value is None else str(value).removeprefix("torch.")
        if name not in (None, *_DTYPES):
            raise ConfigError(f"dtype is {value!r}; expected one of {', '.join(_DTYPES)}")
        self._dtype = name

    torch_dtype = dtype

    @property
    def dtype_name(self) -> str | None:
        """The dtype's name, without importing torch."""
        return self._dtype

    @property
    def use_return_dict(self) -> bool:
        return self.return_dict

    def get_text_config(self, **_: Any) -> PretrainedConfig:
        """The config of the text decoder: ``text_config`` where there is one, else this one."""
        return getattr(self, "text_config", self)

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Set every attribute that ``config_dict`` names."""
        for key, value in config_dict.items():
            setattr(self, key, value)

    def validate(self) -> None:
        """Raise ConfigError if the values cannot describe a model."""

    def to_dict(self) -> dict[str, Any]:
        """Every setting as plain data that ``json`` can write."""
        shown = {key: value for key, value in self.__dict__.items() if not key.startswith("_")}
        shown.pop("name_or_path", None)
        return {"model_type": self.model_type, "dtype": self._dtype, **_plain(shown)}

    def to_diff_dict(self) -> dict[str, Any]:
        """``to_dict()`` without the common settings that have their default value."""
        return _without_defaults(self.to_dict())

    def to_json_string(self, use_diff: bool = True) -> str:
        """JSON text; ``use_diff`` leaves common settings at their default out."""
        return (
            json.dumps(self.to_diff_dict() if use_diff else self.to_dict(), indent=2, sort_keys=True) + "\n"
        )

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        Path(json_file_path).write_text(self.to_json_string(use_diff), encoding="utf-8")

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write ``config.json`` into the folder ``save_directory``, which is made if it is not there."""
        folder = Path(save_directory)
        if folder.is_file():
            raise ConfigError(f"{folder} is a file; a config is saved into a folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / CONFIG_FILE)

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """A config from ``config_dict``; ``kwargs`` that name its attributes win over it.

        With ``return_unused_kwargs=True`` the answer is ``(config, the other kwargs)``. Raises ConfigError if
        ``config_dict`` says that it is of another model type.
        """
        return_unused = kwargs.pop("return_unused_kwargs", False)
        config = cls(**copy.deepcopy(cls._own_part(config_dict)))
        if "attn_implementation" in kwargs:
            config._attn_implementation = kwargs.pop("attn_implementation")
        overrides = {key: kwargs.pop(key) for key in list(kwargs) if hasattr(config, key)}
        if overrides:
            config.update({key: _merged(getattr(config, key), value) for key, value in overrides.items()})
            config.validate()
        return (config, kwargs) if return_unused else config

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Any:
        return cls.from_dict(read_json(Path(json_file)))

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content of ``config.json``, and those of the ``kwargs`` that were not about finding it."""
        options = hub.pop_options(kwargs)
        if Path(pretrained_model_name_or_path).is_file():
            return read_json(Path(pretrained_model_name_or_path)), kwargs
        folder = hub.holding(pretrained_model_name_or_path, patterns=(CONFIG_FILE,), **options)
        return read_json(folder / CONFIG_FILE), kwargs

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """The config of a checkpoint: a folder, a ``config.json``, a bundled name or a repository id.

        ``kwargs``: the arguments of :func:`qvl.hub.resolve` (``revision``, ``cache_dir``, ``token``,
        ``local_files_only``, ``subfolder``), ``return_unused_kwargs``, and attributes to override.
        Raises ConfigError if the checkpoint is of another model type, naming that type.
        """
        values, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        answer = cls.from_dict(values, **kwargs)
        config = answer[0] if isinstance(answer, tuple) else answer
        config.name_or_path = str(pretrained_model_name_or_path)
        return answer

    @classmethod
    def _own_part(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a ``config.json`` that describes this class."""
        return dict(values)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # attributes change, so a config is no key

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; CheckpointNotFoundError or CheckpointCorruptError if there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(
            f"{path.parent} has no {path.name}; is it a checkpoint folder?"
        ) from error
    except ValueError as error:
        raise CheckpointCorruptError(f"{path} is not valid JSON ({error}); fetch the file again") from error
    except OSError as error:
        raise CheckpointCorruptError(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(values, dict):
        raise CheckpointCorruptError(f"{path} holds a JSON {type(values).__name__}, expected an object")
    return values


def check_counts(config: PretrainedConfig, *names: str) -> None:
    """Raise ConfigError unless each named attribute is an integer of 1 or more."""
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or value < 1:
            raise ConfigError(
                f"{config.base_config_key}: {name.lstrip('_')} is {value!r}; expected an integer of 1 or more"
            )


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite int or float; a bool is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_numbers(config: PretrainedConfig, **bounds: tuple[float, float]) -> None:
    """Raise ConfigError unless each named attribute is a number within its (lowest, highest) bounds."""
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if not is_number(value) or not low <= value <= high:
            limits = f"from {low:g}" + ("" if math.isinf(high) else f" to {high:g}")
            raise ConfigError(f"{config.base_config_key}: {name} is {value!r}; expected a number {limits}")


def check_switches(config: PretrainedConfig, *names: str) -> None:
    """Raise ConfigError unless each named attribute is True or False."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, bool):
            raise ConfigError(f"{config.base_config_key}: {name} is {value!r}; expected true or false")


def check_model_type(values: Mapping[str, Any], *expected: str) -> None:
    """Raise ConfigError if ``values`` name a model type that is not ``expected``; none named is fine."""
    found = values.get("model_type", expected[0])
    if found not in expected:
        raise ConfigError(
            f"this is a config of model type {found!r}; expected {' or '.join(map(repr, expected))}"
        )


def _plain(value: Any) -> Any:
    """``value`` as something that ``json`` writes: nested configs, dtypes and tuples included."""
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if type(value).__module__ == "torch":
        return str(value).removeprefix("torch.")
    return value


def _without_defaults(values: dict[str, Any]) -> dict[str, Any]:
    nested = {
        key: _without_defaults(values[key]) for key in ("text_config", "vision_config") if key in values
    }
    own = {
        key: item
        for key, item in values.items()
        if key not in COMMON_DEFAULTS or item != COMMON_DEFAULTS[key]
    }
    return own | nested


def _merged(current: Any, new: Any) -> Any:
    """A dict that overrides a nested config changes only the keys it names."""
    if isinstance(current, PretrainedConfig) and isinstance(new, Mapping):
        return type(current)(**{**current.to_dict(), **new})
    return new
