"""From a name to a folder: the one place that knows about the Hugging Face hub and its cache.

Configs, tokenizers, processors and models all load from a folder; this module finds it. A local folder is
taken as it is, a bundled name points into the package, anything else is a repository id that is looked up in
the cache and downloaded where missing (with huggingface_hub's progress bar). huggingface_hub is imported only
when a repository id is really asked for, so local work neither needs it nor waits for it.

A folder may hold an adapter, which changes a model that lies elsewhere: its base. What the adapter's folder
does not have is read from its base's.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qvl.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    InputError,
    InputTypeError,
)

# Checkpoints that come inside the package: name -> folder.
BUNDLED: Mapping[str, Path] = MappingProxyType({"qvl/tiny": Path(__file__).parent / "assets" / "tiny"})

# Everything of a checkpoint but its tensors: configs, tokenizer, chat template.
SMALL_FILES = ("*.json", "*.txt", "*.jinja")
# A whole checkpoint. Pickled weights (*.bin, *.pt) are never fetched: opening them runs code.
ALL_FILES = (*SMALL_FILES, "*.safetensors")

ADAPTER_CONFIG = "adapter_config.json"  # of a folder that holds an adapter, as PEFT writes it
_MODEL_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")

_REPOSITORY_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_OPTIONS = ("revision", "cache_dir", "local_files_only", "token", "force_download", "subfolder", "base")
_OF_BASE = ("cache_dir", "local_files_only", "token", "base")  # those that count for an adapter's base too


def pop_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take the arguments that belong to :func:`resolve` out of a ``from_pretrained``'s ``kwargs``.

    ``trust_remote_code`` and transformers' private hints are dropped: no repository's code runs here.
    """
    for ignored in ("trust_remote_code", "_from_auto", "_from_pipeline"):
        kwargs.pop(ignored, None)
    options = {name: kwargs.pop(name, None) for name in _OPTIONS}
    return {name: value for name, value in options.items() if value is not None}


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    force_download: bool = False,
    subfolder: str = "",
    base: str | os.PathLike[str] | None = None,
    patterns: Sequence[str] = ALL_FILES,
) -> Path:
    """The folder that holds the checkpoint ``name_or_path``; of an adapter its own, whatever its ``base``.

    ``name_or_path``: an existing folder (or a file, whose folder is meant), a bundled name, or a repository
    id such as ``Qwen/Qwen2.5-VL-3B-Instruct``. ``revision``: branch, tag or commit of the repository.
    ``patterns``: the files worth fetching (see SMALL_FILES, ALL_FILES). ``subfolder``: where in it to look.
    ``HF_HUB_OFFLINE=1`` or ``local_files_only`` use the cache alone.

    Raises CheckpointNotFoundError when there is neither folder nor a cached or reachable repository.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise InputTypeError(
            f"a checkpoint is named by a path or a repository id (str), got {type(name_or_path).__name__}"
        )
    local = _local_folder(name_or_path)
    if local is None:
        wanted = [f"{subfolder}/{pattern}" for pattern in patterns] if subfolder else list(patterns)
        local = _snapshot(
            _repository_id(name_or_path),
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            force_download=force_download,
            allow_patterns=wanted,
        )
    folder = local / subfolder
    if not folder.is_dir():
        raise CheckpointNotFoundError(f"{name_or_path} has no subfolder {subfolder!r}")
    return folder


def holding(
    name_or_path: str | os.PathLike[str],
    files: Sequence[str] = (),
    *,
    patterns: Sequence[str] = SMALL_FILES,
    **options: Any,
) -> Path:
    """The folder to read ``files`` from: the checkpoint's, or, if it is an adapter that has none of them (an
    adapter has no config), its base's.

    ``options``: those of `resolve`; ``base`` is used in place of the base that the adapter names. Raises what
    `resolve` and `base_of` raise.
    """
    folder = resolve(name_or_path, patterns=(*patterns, ADAPTER_CONFIG), **options)
    if any((folder / name).is_file() for name in files):
        return folder
    return base_of(folder, patterns=patterns, **of_base(options)) or folder


def of_base(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options of :func:`resolve` that find the base of an adapter as well."""
    return {name: value for name, value in options.items() if name in _OF_BASE}


def base_of(
    folder: Path,
    *,
    base: str | os.PathLike[str] | None = None,
    patterns: Sequence[str] = ALL_FILES,
    **options: Any,
) -> Path | None:
    """The folder of the model that the adapter in ``folder`` changes; None where ``folder`` holds no adapter.

    ``base``: a folder, bundled name or repository id in place of the one that the adapter names. A relative
    path in the adapter's file counts from its folder, then from the working directory.

    Raises CheckpointNotFoundError for an adapter that names no base or one that is nowhere, CheckpointError
    for a folder that holds a whole model too, and for a base that is itself an adapter, InputError for
    ``base`` where there is no adapter.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        if base is not None:
            raise InputError(f"base= names the model of an adapter, and {folder} holds none; leave it out")
        return None
    if any((folder / name).is_file() for name in _MODEL_WEIGHTS):
        raise CheckpointError(
            f"{folder} holds both a whole model and an adapter ({ADAPTER_CONFIG}); move one of them elsewhere"
        )
    settings = _adapter_settings(folder)
    named = settings.get("base_model_name_or_path") if base is None else base
    if not named or not isinstance(named, str | os.PathLike):
        raise CheckpointNotFoundError(
            f"the adapter in {folder} does not name the model it belongs to (base_model_name_or_path in "
            f"{ADAPTER_CONFIG}); write its folder or id there, or pass base="
        )
    if base is None and (folder / named).is_dir():
        named = folder / named
    elif base is None and isinstance(settings.get("revision"), str):
        options["revision"] = settings["revision"]
    try:
        found = resolve(named, patterns=(*patterns, ADAPTER_CONFIG), **options)
    except CheckpointNotFoundError as error:
        raise CheckpointNotFoundError(
            f"the adapter in {folder} changes the model {os.fspath(named)!r}, which is not there: {error}; "
            "pass base= with the model's folder or id"
        ) from error
    if (found / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"the base {found} of the adapter in {folder} is itself an adapter: merge it into its own base "
            "first (qvl merge ADAPTER OUT), then pass base=OUT"
        )
    return found


def _adapter_settings(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointCorruptError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(settings, dict):
        raise CheckpointCorruptError(f"{path} holds no JSON object")
    return settings


def _local_folder(name_or_path: str | os.PathLike[str]) -> Path | None:
    if not os.fspath(name_or_path):  # as a path it would be the working directory
        raise CheckpointNotFoundError("the name of the checkpoint is empty; give a folder or a repository id")
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
    return BUNDLED.get(str(name_or_path))


def _repository_id(name_or_path: str | os.PathLike[str]) -> str:
    """The name as a repository id, or the error of a path that is not there."""
    name = os.fspath(name_or_path)
    looks_like_id = isinstance(name_or_path, str) and _REPOSITORY_ID.fullmatch(name)
    if not looks_like_id or name.startswith(".") or ".." in name:
        raise CheckpointNotFoundError(
            f"there is no folder {name!r}, and it is not a repository id of the form owner/name either"
        )
    return name


def _snapshot(repository: str, *, revision: str | None, **options: Any) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm

    class Files(tqdm):
        """The count of files beside the bars of each: on a terminal only, and not for files in the cache."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{"disable": None, **kwargs, "leave": False, "delay": 0.5})

    with _plain_errors(repository, revision):
        return Path(snapshot_download(repository, revision=revision, tqdm_class=Files, **options))


@contextmanager
def _plain_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Turn huggingface_hub's errors into one sentence each."""
    import httpx
    from huggingface_hub import errors

    where = f"{repository!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointNotFoundError(
            f"{where} is gated: accept its terms on the hub, then log in with `hf auth login` or pass token="
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointNotFoundError(
            f"the repository {repository!r} has no revision {revision!r}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointNotFoundError(
            f"there is no folder and no public repository {where}; check the spelling, or pass token= for a "
            "private one"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise CheckpointNotFoundError(
            f"there is no folder {repository!r}, the cache does not hold {where}, and the hub was not "
            "reached (offline, or no connection); give a local folder or connect once to download it"
        ) from error
    except (errors.HFValidationError, errors.HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise CheckpointNotFoundError(f"{where} could not be read from the hub: {error}") from error
