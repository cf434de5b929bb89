"""The Auto classes: pick the class that reads a checkpoint, or say that it is of another kind.

They know which names checkpoints use, nothing of what is inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from qvl import hub
from qvl.config import Qwen2_5_VLConfig
from qvl.errors import ConfigError, InputTypeError
from qvl.modeling import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel
from qvl.processing.processor import Qwen2_5_VLProcessor
from qvl.processing.tokenizer import Qwen2TokenizerFast
from qvl.processing.tokenizer_files import read_json

TOKENIZERS = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
MODEL_TYPE = "qwen2_5_vl"


class AutoTokenizer:
    """``from_pretrained`` gives the tokenizer of a Qwen2 or Qwen2.5-VL checkpoint."""

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | Path, *inputs: Any, **kwargs: Any
    ) -> Qwen2TokenizerFast:
        """See Qwen2TokenizerFast.from_pretrained; ConfigError for a tokenizer of another class."""
        folder = _folder(pretrained_model_name_or_path, kwargs)
        found = _entry(folder / "tokenizer_config.json", "tokenizer_class")
        if found is not None and found not in TOKENIZERS:
            raise ConfigError(
                f"{pretrained_model_name_or_path} has a tokenizer of class {found!r}; "
                f"expected {TOKENIZERS[0]!r}"
            )
        return Qwen2TokenizerFast.from_pretrained(pretrained_model_name_or_path, *inputs, **kwargs)


class AutoProcessor:
    """``from_pretrained`` gives the processor of a Qwen2.5-VL checkpoint."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Qwen2_5_VLProcessor:
        """See Qwen2_5_VLProcessor.from_pretrained; ConfigError for a checkpoint of another model type."""
        folder = _folder(pretrained_model_name_or_path, kwargs)
        found = _entry(folder / "config.json", "model_type")
        if found is not None and found != MODEL_TYPE:
            raise ConfigError(
                f"{pretrained_model_name_or_path} is of model type {found!r}; expected {MODEL_TYPE!r}"
            )
        return Qwen2_5_VLProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)


class _AutoModel:
    """The two ways to a model; the config's own class refuses other model types."""

    model_class: ClassVar[Any]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """See PreTrainedModel.from_pretrained; ConfigError for a checkpoint of another model type."""
        return cls.model_class.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_config(cls, config: Qwen2_5_VLConfig, **kwargs: Any) -> Any:
        """A model with random weights."""
        if not isinstance(config, Qwen2_5_VLConfig):
            raise InputTypeError(
                f"{cls.__name__}.from_config needs a Qwen2_5_VLConfig, got {type(config).__name__}"
            )
        return cls.model_class.from_config(config, **kwargs)


class AutoModel(_AutoModel):
    """The model without a head."""

    model_class = Qwen2_5_VLModel


class AutoModelForImageTextToText(_AutoModel):
    """The model that generates text."""

    model_class = Qwen2_5_VLForConditionalGeneration


def _folder(name_or_path: str | Path, kwargs: dict[str, Any]) -> Path:
    return hub.resolve(name_or_path, patterns=hub.SMALL_FILES, **hub.pop_options(dict(kwargs)))


def _entry(path: Path, name: str) -> Any:
    return read_json(path).get(name) if path.is_file() else None
