"""LoRA adapters, as PEFT and the tools on top of it save them, added to the base's weights as they are read.

Needs no peft: an adapter is a JSON file and some small tensors. Their names are those of the modules that
they were trained on, in any layout of Qwen2.5-VL. Every sum is made in float32 and then cast; the files of
the base, which are mapped, are only read.

Legend: M outputs, K inputs of a layer (V rows, D columns of an embedding), R rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from qvl.errors import CheckpointMismatchError, CheckpointNotFoundError
from qvl.weights.adapter_config import AdapterConfig
from qvl.weights.files import Checkpoint, Source
from qvl.weights.names import HEAD, TEXT, to_internal

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's wrappers around the model
EMBEDDING_WEIGHT, HEAD_WEIGHT = f"{TEXT}embed_tokens.weight", f"{HEAD}weight"

LISTED = 8  # names in an error message before "and N more"

# What PEFT puts behind a module's name -> the field of Change. Names may still hold that of the adapter.
_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "lora_A.weight": "down",
        "lora_B.weight": "up",
        "lora_embedding_A": "down",
        "lora_embedding_B": "up",
        "lora_magnitude_vector": "magnitude",
        "lora_magnitude_vector.weight": "magnitude",
        "token_adapter.trainable_tokens_delta": "rows",
        "trainable_tokens_delta": "rows",
    }
)
_ADDED_TO_BIAS = "lora_B.bias"
_PART = re.compile(rf"(.+?)\.({'|'.join(map(re.escape, (*_FIELDS, _ADDED_TO_BIAS)))})")


@dataclass(frozen=True)
class Change:
    """What happens to one tensor of the base, in this order; stored names of the adapter's tensors.

    ``module``: the name that the tensor's module was trained under. ``whole``: a tensor in the place of the
    base's; ``under``: the one that was there before the sum (PEFT saves it with adapters of embeddings).
    ``down``, ``up``: A (R, K) and B (M, R), of an embedding (``turned``) A (R, V) and B (D, R).
    ``magnitude``: of DoRA (arXiv 2402.09353), one per output (embeddings: per column). ``added``: bias of B.
    ``rows``: new rows of an embedding.
    """

    module: str
    whole: str | None = None
    under: str | None = None
    down: str | None = None
    up: str | None = None
    turned: bool = False
    magnitude: str | None = None
    added: str | None = None
    rows: str | None = None

    @property
    def replaced(self) -> str | None:
        return self.whole or self.under


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter's settings, its tensors, and what they do: internal name of a tensor -> change."""

    config: AdapterConfig
    tensors: Checkpoint
    changes: Mapping[str, Change]

    @classmethod
    def open(cls, folder: Path) -> Adapter:
        """Raises what `AdapterConfig.read` raises, CheckpointNotFoundError without safetensors,
        CheckpointCorruptError, and CheckpointMismatchError for one half of a pair.
        """
        config = AdapterConfig.read(folder)
        path = folder / ADAPTER_WEIGHTS
        if not path.is_file():
            raise CheckpointNotFoundError(
                f"{folder} has no {ADAPTER_WEIGHTS} (a pickled adapter_model.bin is never opened here: load "
                "the adapter with PEFT and save it again)"
            )
        tensors = Checkpoint(folder, path)
        changes = _changes(tensors)
        halves = [c.down or c.up or "" for c in changes.values() if (c.down is None) != (c.up is None)]
        if halves:
            raise CheckpointMismatchError(
                f"{path} holds one matrix of a pair without the other: {_listed(halves)}"
            )
        return cls(config, tensors, changes)

    def names(self, change: Change) -> tuple[str, str]:
        """The names of the change's module: as it was trained, and here."""
        return change.module, (to_internal(f"{change.module}.weight") or "").removesuffix(".weight")

    def rank(self, change: Change) -> int:
        return self.tensors.shape(change.down)[0] if change.down else 0

    def shape(self, change: Change) -> tuple[int, ...] | None:
        """(M, K) of the sum's product, a convolution's kernel flattened into K; None without one."""
        if change.down is None or change.up is None:
            return None
        (_, *inputs), outputs = self.tensors.shape(change.down), self.tensors.shape(change.up)[0]
        size = 1
        for axis in inputs:
            size *= axis
        return (size, outputs) if change.turned else (outputs, size)

    def apply(self, change: Change, base: Tensor | None, device: torch.device | str) -> Tensor:
        """The changed tensor in float32. ``base``: in float32, left as it is; None where it is replaced."""

        def read(name: str) -> Tensor:
            return self.tensors.read(name, dtype=torch.float32, device=device)

        value = read(change.replaced) if change.replaced is not None else base
        assert value is not None
        if change.down is not None and change.up is not None:
            up_MR, down_RK = read(change.up).flatten(1), read(change.down).flatten(1)
            scaling = self.config.scaling(self.names(change), len(down_RK))
            delta_MK = (up_MR @ down_RK).mul_(scaling)
            value = (delta_MK.T if change.turned else delta_MK).reshape(value.shape).add_(value)
            if change.magnitude is not None:
                value = _with_magnitude(value, read(change.magnitude), columns=change.turned)
        if change.added is not None:
            rank = self.rank(self.changes[_weight_beside(change)])
            value = value + read(change.added) * self.config.scaling(self.names(change), rank)
        if change.rows is not None:
            rows = torch.tensor(self.config.rows_of(self.names(change)), device=device)
            value = value.index_copy(0, rows, read(change.rows))
        return value


def _with_magnitude(value: Tensor, magnitude: Tensor, *, columns: bool) -> Tensor:
    """``value``, which is changed, with every output (``columns``: every column) as long as it should be."""
    flat_MK = value.flatten(1)
    factor = magnitude.flatten() / torch.linalg.vector_norm(flat_MK, dim=0 if columns else 1)
    flat_MK *= factor if columns else factor[:, None]
    return flat_MK.view(value.shape)


def _weight_beside(change: Change) -> str:
    return to_internal(f"{change.module}.weight") or ""


def _changes(tensors: Checkpoint) -> dict[str, Change]:
    """Internal name -> change, of all tensors of an adapter."""
    found: dict[str, Change] = {}
    for stored in tensors.files:
        module, leaf, entry = _parsed(stored)
        name = to_internal(f"{module}.{leaf}")
        if name is not None:
            change = found.get(name, Change(module))
            turned = change.turned or "lora_embedding_" in stored
            values: dict[str, Any] = {entry: stored, "turned": turned}
            found[name] = replace(change, **values)
    return found


def _parsed(stored: str) -> tuple[str, str, str]:
    """Module, the parameter of it that is meant, and the field of `Change` that a stored tensor fills."""
    name = stored.removeprefix(PREFIX).replace(".default.", ".").removesuffix(".default")
    part = _PART.fullmatch(name)
    if part is not None:
        module, kind = part.groups()
        return (module, "bias", "added") if kind == _ADDED_TO_BIAS else (module, "weight", _FIELDS[kind])
    own = name.replace(".modules_to_save.", ".")
    module, _, leaf = own.replace(".base_layer.", ".").rpartition(".")
    return module, leaf, "under" if ".base_layer." in own else "whole"


class AdaptedSource:
    """The tensors of ``base`` with ``adapter`` added: looks like a ``Checkpoint`` to the loader.

    ``tied``: the base's head is its embedding. It stays so where an adapter was trained that way; where only
    one of the two was changed, or they were changed differently, ``parted`` is True and the head has a tensor
    of its own. Raises CheckpointMismatchError for an adapter that does not fit.
    """

    def __init__(self, base: Source, adapter: Adapter, *, tied: bool) -> None:
        self.base, self.adapter = base, adapter
        self.changes = dict(adapter.changes)
        self._stored = {to_internal(name) or name: name for name in reversed([*base.files])}
        self.parted = tied and self._part()
        self.files: dict[str, Any] = dict(base.files)
        self.files |= {HEAD_WEIGHT: self.folder} if self.parted else {}
        self._check()

    def _part(self) -> bool:
        """Whether head and embedding become two; where they stay one, so do their changes."""
        embedding, head = self.changes.get(EMBEDDING_WEIGHT), self.changes.get(HEAD_WEIGHT)
        if embedding is None and head is None:
            return False
        if self.adapter.config.tied or self._alike(embedding, head):
            self.changes.pop(HEAD_WEIGHT, None)
            self.changes[EMBEDDING_WEIGHT] = embedding or head  # type: ignore[assignment]
            return False
        self._stored[HEAD_WEIGHT] = self._stored.get(EMBEDDING_WEIGHT, HEAD_WEIGHT)
        if head is None and embedding is not None and embedding.under is not None:
            self.changes[HEAD_WEIGHT] = Change(HEAD.removesuffix("."), whole=embedding.under)
        return True

    def _alike(self, embedding: Change | None, head: Change | None) -> bool:
        """Whether both were changed in the same way: PEFT trains rows of both, and saves grown ones twice."""
        if head is None:
            return embedding == Change(embedding.module, rows=embedding.rows) if embedding else True
        if embedding is None or embedding.down or head.down or not (embedding.replaced and head.replaced):
            return False
        read = self.adapter.tensors.read
        return torch.equal(read(embedding.replaced), read(head.replaced))

    @property
    def folder(self) -> Path:
        return self.base.folder

    def float_dtype(self) -> torch.dtype | None:
        return self.base.float_dtype()

    def is_floating_point(self, name: str) -> bool:
        return to_internal(name) in self.changes or self.base.is_floating_point(self._base_name(name))

    def shape(self, name: str) -> tuple[int, ...]:
        change = self.changes.get(to_internal(name) or name)
        if change is not None and change.replaced is not None:
            return self.adapter.tensors.shape(change.replaced)
        return self.base.shape(self._base_name(name))

    def _base_name(self, name: str) -> str:
        return self._stored[to_internal(name) or name] if self.parted else name

    def read(
        self,
        name: str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        passing: bool = False,
    ) -> Tensor:
        """See ``Checkpoint.read``. What the adapter changes is never a view of a file of the base."""
        change = self.changes.get(to_internal(name) or name)
        if change is None:
            return self.base.read(self._base_name(name), dtype=dtype, device=device, passing=passing)
        base = None
        if change.replaced is None:
            base = self.base.read(self._base_name(name), device=device, passing=True)
            dtype = dtype or base.dtype
            base = base.float()
        return self.adapter.apply(change, base, device).to(dtype or self.float_dtype() or torch.float32)

    def fit(self, config: Any) -> None:
        """Make ``config`` that of the changed model: a head of its own, other rows of the embedding."""
        if self.parted:
            config.tie_word_embeddings = False
        embedding = self.changes.get(EMBEDDING_WEIGHT)
        if embedding is not None and embedding.replaced is not None:
            config.vocab_size = self.adapter.tensors.shape(embedding.replaced)[0]

    def _check(self) -> None:
        unknown, wrong = [], []
        for name, change in self.changes.items():
            known = name in self._stored or (self.parted and name == HEAD_WEIGHT)
            if not known:
                unknown.append(name)
            elif reason := self._misfit(name, change):
                wrong.append(f"{name} ({reason})")
        if unknown or wrong:
            parts = [f"{len(unknown)} that the base does not have: {_listed(unknown)}"] if unknown else []
            parts += [f"{len(wrong)} that do not fit: {_listed(wrong)}"] if wrong else []
            raise CheckpointMismatchError(
                f"the adapter in {self.adapter.tensors.folder} does not belong to {self.folder}; it changes "
                f"tensors, {'; '.join(parts)}. Pass base= with the model that it was trained on"
            )

    def _misfit(self, name: str, change: Change) -> str | None:
        """What is wrong with a change of a tensor that is there; None: nothing."""
        tensors, whole = self.adapter.tensors, self.shape(self._stored.get(name, name))
        size = 1
        for axis in whole[1:]:
            size *= axis
        product = self.adapter.shape(change)
        if product is not None and product != (whole[0], size):
            return f"stored {whole}, the adapter's {product}"
        if product is not None and tensors.shape(change.up or "")[1] != self.adapter.rank(change):
            return "two matrices of different ranks"
        if change.magnitude is not None and product is None:
            return "a magnitude without its matrices"
        if change.added is not None and _weight_beside(change) not in self.changes:
            return "the bias of a matrix that is not there"
        if change.rows is not None:
            rows = self.adapter.config.rows_of(self.adapter.names(change))
            if rows is None or tensors.shape(change.rows) != (len(rows), size):
                return "rows that trainable_token_indices does not name"
            if not all(isinstance(row, int) and 0 <= row < whole[0] for row in rows):
                return f"rows outside of its {whole[0]}"
        return None


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
