"""The Auto classes: pick the class that reads a checkpoint, or say that it is of another kind.

They know which names checkpoints use, nothing of what is inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from qvl import hub
from qvl.config import PretrainedConfig
from qvl.config.base import read_json
from qvl.errors import CheckpointError, ConfigError
from qvl.modeling import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel, Qwen2_5_VLTextModel
from qvl.processing.processor import Qwen2_5_VLProcessor
from qvl.processing.text.files import VOCABULARY_FILES
from qvl.processing.text.tokenizer import Qwen2TokenizerFast

TOKENIZERS = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
MODEL_TYPE = "qwen2_5_vl"


class AutoTokenizer:
    """``from_pretrained`` gives the tokenizer of a Qwen2 or Qwen2.5-VL checkpoint."""

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | Path, *inputs: Any, **kwargs: Any
    ) -> Qwen2TokenizerFast:
        """See Qwen2TokenizerFast.from_pretrained; ConfigError for a tokenizer of another class."""
        folder = _folder(pretrained_model_name_or_path, kwargs, VOCABULARY_FILES)
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
    """The two ways to a model; a config of a type that is not among ``model_classes`` is refused."""

    model_classes: ClassVar[Mapping[str, Any]]  # model type -> class

    def __init__(self, *_: Any, **__: Any) -> None:
        raise CheckpointError(
            f"{type(self).__name__} is not made directly; use {type(self).__name__}.from_pretrained(...) or "
            ".from_config(config)"
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """See PreTrainedModel.from_pretrained; ConfigError for a checkpoint of another model type."""
        config = kwargs.get("config")
        if isinstance(config, PretrainedConfig):
            found = config.model_type
        else:
            folder = _folder(pretrained_model_name_or_path if config is None else config, kwargs)
            found = _entry(folder / "config.json", "model_type")
        model_class = cls.model_classes.get(found, cls.model_classes[MODEL_TYPE])  # which refuses others
        return model_class.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> Any:
        """A model with random weights."""
        model_class = cls.model_classes.get(getattr(config, "model_type", ""))
        if model_class is None:
            raise ConfigError(
                f"{cls.__name__}.from_config needs a config of type {' or '.join(cls.model_classes)}, "
                f"got {type(config).__name__}"
            )
        return model_class.from_config(config, **kwargs)


class AutoModel(_AutoModel):
    """The model without a head; the text decoder alone where the checkpoint or config is of that alone."""

    model_classes = MappingProxyType({MODEL_TYPE: Qwen2_5_VLModel, "qwen2_5_vl_text": Qwen2_5_VLTextModel})


class AutoModelForImageTextToText(_AutoModel):
    """The model that generates text."""

    model_classes = MappingProxyType({MODEL_TYPE: Qwen2_5_VLForConditionalGeneration})


def _folder(name_or_path: str | Path, kwargs: dict[str, Any], files: Sequence[str] = ()) -> Path:
    return hub.holding(name_or_path, files, **hub.pop_options(dict(kwargs)))


def _entry(path: Path, name: str) -> Any:
    return read_json(path).get(name) if path.is_file() else None
