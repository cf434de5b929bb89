"""The files of a checkpoint: safetensors, one or several with an index, mapped to read, replaced to write.

Knows files and stored tensors; knows no modules. Which name means what is ``names``'s business, which tensor
goes where is ``load``'s and ``checkpoint``'s.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qvl.config.base import read_json
from qvl.errors import CheckpointCorruptError, CheckpointError, CheckpointNotFoundError, InputError
from qvl.weights.aligned import save_aligned
from qvl.weights.mapped import MappedFile

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_UNITS = MappingProxyType(
    {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
)
_DTYPES = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
    }
)


class Source(Protocol):
    """What a loader asks of stored tensors; see ``Checkpoint``."""

    @property
    def folder(self) -> Path: ...

    @property
    def files(self) -> Mapping[str, Any]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def float_dtype(self) -> torch.dtype | None: ...

    def is_floating_point(self, name: str) -> bool: ...

    def read(
        self,
        name: str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        passing: bool = False,
    ) -> Tensor: ...


class Checkpoint:
    """The stored tensors of a folder, by their stored names.

    ``files``: stored name -> file. ``metadata``: what the files' headers say besides the tensors. ``only``: a
    file of the folder to read instead of its weights. Raises CheckpointNotFoundError (no weights, or a shard
    that the index names is missing) and CheckpointCorruptError (truncated, or not what the index says).
    """

    def __init__(self, folder: Path, only: Path | None = None) -> None:
        self.folder = folder
        self.files: dict[str, Path] = {}
        self.metadata: dict[str, str] = {}
        self._open: dict[Path, Any] = {}
        self._mappings: dict[Path, MappedFile] = {}
        for path in _weight_files(folder) if only is None else [only]:
            handle = self._open[path] = _opened(path)
            self.files.update(dict.fromkeys(handle.keys(), path))
            self.metadata.update(handle.metadata() or {})
        if only is None:
            self._check_index()

    def _check_index(self) -> None:
        index = _read_index(self.folder)
        lost = sorted(name for name in index if name not in self.files)
        if lost:
            raise CheckpointCorruptError(
                f"{self.folder / INDEX} lists {len(lost)} tensors that its files do not hold, first {lost[0]}"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._open[self.files[name]].get_slice(name).get_shape())

    def float_dtype(self) -> torch.dtype | None:
        """The dtype of the first floating-point tensor."""
        for name, path in self.files.items():
            dtype = _DTYPES.get(self._open[path].get_slice(name).get_dtype())
            if dtype is not None:
                return dtype
        return None

    def is_floating_point(self, name: str) -> bool:
        return self._open[self.files[name]].get_slice(name).get_dtype() in _DTYPES

    def read(
        self,
        name: str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        passing: bool = False,
    ) -> Tensor:
        """The tensor, on ``device`` and (if it is floating-point) in ``dtype``.

        What needs no change is a view of the mapped file: no second copy, and writes stay private. What
        does is copied by as many threads as torch has, in pieces, so that no more than one piece of the file
        lies in memory beside the copy.
        ``passing``: the tensor will be dropped soon; as a view it has a mapping of its own, closed with it.
        """
        path = self.files[name]
        stored = self._open[path].get_slice(name).get_dtype()
        same_dtype = dtype is None or _DTYPES.get(stored, dtype) == dtype
        if not same_dtype or torch.device(device).type != "cpu":
            return self._copied(name, _DTYPES.get(stored) and dtype, torch.device(device))
        with _corruption_named(path):
            return (_opened(path) if passing else self._open[path]).get_tensor(name)

    def _copied(self, name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        path = self.files[name]
        stored = _DTYPES.get(self._open[path].get_slice(name).get_dtype())
        with _corruption_named(path):
            if stored is None:
                return _opened(path).get_tensor(name).to(device)
            whole = torch.empty(self.shape(name), dtype=dtype or stored, device=device)
            self._mapped(path).copy(name, stored, whole)
            return whole

    def _mapped(self, path: Path) -> MappedFile:
        if path not in self._mappings:
            self._mappings[path] = MappedFile(path)
        return self._mappings[path]


def _weight_files(folder: Path) -> list[Path]:
    """The files to read: the single one, or every shard of the index."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        paths = [folder / shard for shard in sorted(set(_read_index(folder).values()))]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise CheckpointNotFoundError(f"{folder} lacks {', '.join(missing)}, which its {INDEX} names")
        return paths
    pickled = any(folder.glob("*.bin")) or (folder / "pytorch_model.bin.index.json").is_file()
    raise CheckpointNotFoundError(
        f"{folder} has neither {SINGLE} nor {INDEX}"
        + ("; its pickled .bin weights are never opened here" if pickled else "")
        + "; give a checkpoint whose weights are safetensors (saving it again with transformers makes some)"
    )


def _read_index(folder: Path) -> dict[str, str]:
    """Stored name -> shard; empty where the single file is used."""
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return {}
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointCorruptError(f"{folder / INDEX} has no weight_map")
    for shard in index.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointCorruptError(
                f"{folder / INDEX} names {shard!r}, which is not a file of its folder"
            )
    return index


def _opened(path: Path) -> Any:
    with _corruption_named(path):
        return safe_open(path, framework="pt")


@contextmanager
def _corruption_named(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise CheckpointCorruptError(
            f"{path} is truncated or not a safetensors file ({error}); fetch it again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def parse_size(size: int | str) -> int:
    """Bytes in ``size``: an int, or a number with KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(size))
    if found is None or found[2].upper() not in _UNITS:
        raise InputError(f'a size is bytes or a string such as "5GB", got {size!r}')
    count = int(float(found[1]) * _UNITS[found[2].upper()])
    if count < 1:
        raise InputError(f"a size must be at least one byte, got {size!r}")
    return count


def write_tensors(
    folder: Path, tensors: Mapping[str, Tensor], *, max_shard_size: int | str = "5GB", **metadata: str
) -> None:
    """Write ``tensors`` (stored name -> tensor) as the weights of ``folder``, in place of any there.

    Everything is written beside the old files first and renamed at the end, so an interrupted save leaves the
    old weights, and tensors mapped from files that are replaced stay valid. Raises CheckpointError for
    tensors without data and for a folder that cannot be written.
    """
    empty = [name for name, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise CheckpointError(
            f"{len(empty)} tensors have no data to save (the meta device, or offloaded), first {empty[0]}; "
            "load the model onto one device before saving it"
        )
    shards = split(tensors, parse_size(max_shard_size))
    count = len(shards)
    names = (
        [SINGLE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    )
    header = {"format": "pt", **metadata}
    written = []
    try:
        for name, shard in zip(names, shards, strict=True):
            written.append(folder / f".{name}.partial")
            save_aligned(shard, written[-1], header)
        if count > 1:
            names.append(INDEX)
            written.append(folder / f".{INDEX}.partial")
            written[-1].write_text(_index_text(names, shards), encoding="utf-8")
        for partial, name in zip(written, names, strict=True):
            os.replace(partial, folder / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the weights cannot be written into {folder}: {error}") from error
    finally:
        for partial in written:
            partial.unlink(missing_ok=True)
    for old in folder.iterdir():
        if _OURS.fullmatch(old.name) and old.name not in names:
            old.unlink()


def split(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Consecutive groups of at most ``limit`` bytes; a larger tensor has a group of its own."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    return shards


def _index_text(names: list[str], shards: list[dict[str, Tensor]]) -> str:
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    weight_map = {key: name for name, shard in zip(names, shards, strict=False) for key in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, indent=2) + "\n"
