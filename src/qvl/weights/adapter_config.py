"""``adapter_config.json`` of a LoRA adapter: the settings that decide how its tensors change the base.

What is more than a sum with the base's weights (other methods, routing, soft prompts) is refused here, before
a tensor is read. Knows no tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qvl.config.base import read_json
from qvl.errors import CheckpointCorruptError, UnsupportedError
from qvl.hub import ADAPTER_CONFIG

T = TypeVar("T")

_MERGE_ELSEWHERE = (
    "merge it with the program that made it (PEFT: merge_and_unload(), save_pretrained()) and load that model"
)
# Settings that make an adapter more than a sum with the weights.
_OTHER_METHODS = (
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "velora_config",
    "monteclora_config",
    "kasa_config",
    "target_parameters",
)
# Ways to begin that also change the base, so that the adapter does not fit the base as it is stored.
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


@dataclass(frozen=True)
class AdapterConfig:
    """The settings; see PEFT's ``LoraConfig``, whose names the file has.

    ``alpha_pattern``: regular expression for the end of a module's name -> its alpha. ``rank_scaled``: alpha
    is divided by the root of the rank (arXiv 2312.03732). ``token_indices``: the same kind of pattern -> the
    rows of an embedding that were trained. ``tied``: what changes the embeddings changes a tied head too.
    """

    alpha: float
    rank_scaled: bool = False
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    token_indices: Mapping[str, Sequence[int]] = field(default_factory=dict)
    tied: bool = False

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """From a folder's file.

        Raises UnsupportedError for an adapter that is no plain LoRA or DoRA, and CheckpointCorruptError.
        """
        values = read_json(folder / ADAPTER_CONFIG)
        _refuse_other_kinds(folder, values)
        rows = values.get("trainable_token_indices") or {}
        try:
            return cls(
                alpha=float(values["lora_alpha"]),
                rank_scaled=bool(values.get("use_rslora")),
                alpha_pattern={k: float(v) for k, v in (values.get("alpha_pattern") or {}).items()},
                token_indices=dict(rows) if isinstance(rows, Mapping) else {"embed_tokens": list(rows)},
                tied=bool(values.get("ensure_weight_tying")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointCorruptError(
                f"{folder / ADAPTER_CONFIG} lacks lora_alpha, or has a setting of another type than PEFT "
                f"writes ({error!r})"
            ) from error

    def alpha_of(self, names: Sequence[str]) -> float:
        """The alpha of a module. ``names``: all that it goes by, the one it was trained under first."""
        return _by_pattern(self.alpha_pattern, names, self.alpha)

    def scaling(self, names: Sequence[str], rank: int) -> float:
        """The factor on a module's product of two matrices of that rank."""
        return self.alpha_of(names) / (math.sqrt(rank) if self.rank_scaled else rank)

    def rows_of(self, names: Sequence[str]) -> Sequence[int] | None:
        """Which rows of a module were trained."""
        return _by_pattern(self.token_indices, names, None)


def _by_pattern(patterns: Mapping[str, T], names: Sequence[str], default: T) -> T:
    """What belongs to the first pattern that fits the end of a name, as PEFT looks it up."""
    for name in names:
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
    return default


def _refuse_other_kinds(folder: Path, values: Mapping[str, Any]) -> None:
    kind = values.get("peft_type")
    if str(kind).upper() != "LORA":
        raise UnsupportedError(
            f"{folder} is an adapter of type {kind}, and LORA is the only one read here: {_MERGE_ELSEWHERE}"
        )
    for name in _OTHER_METHODS:
        if values.get(name):
            raise UnsupportedError(
                f"the adapter in {folder} was made with {name}, which is not read here: {_MERGE_ELSEWHERE}"
            )
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGE_BASE):
        raise UnsupportedError(
            f"the adapter in {folder} began with {start!r}, which changed its base's weights too; save it "
            "again with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...), which "
            "makes a plain LoRA of it"
        )
