"""The Auto classes: pick the class that reads a checkpoint, or say that it is of another kind.

They know which names checkpoints use, nothing of what is inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qvl import hub
from qvl.errors import ConfigError
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


def _folder(name_or_path: str | Path, kwargs: dict[str, Any]) -> Path:
    return hub.resolve(name_or_path, patterns=hub.SMALL_FILES, **hub.pop_options(dict(kwargs)))


def _entry(path: Path, name: str) -> Any:
    return read_json(path).get(name) if path.is_file() else None
