"""From a name to a folder: the one place that knows about the Hugging Face hub and its cache.

Configs, tokenizers, processors and models all load from a folder; this module finds it. A local folder is
taken as it is, a bundled name points into the package, anything else is a repository id that is looked up in
the cache and downloaded where missing (with huggingface_hub's progress bar). huggingface_hub is imported only
when a repository id is really asked for, so local work neither needs it nor waits for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qvl.errors import CheckpointNotFoundError, InputTypeError

# Checkpoints that come inside the package: name -> folder.
BUNDLED: Mapping[str, Path] = MappingProxyType({"qvl/digits": Path(__file__).parent / "assets" / "digits"})

# Everything of a checkpoint but its tensors: configs, tokenizer, chat template.
SMALL_FILES = ("*.json", "*.txt", "*.jinja")
# A whole checkpoint. Pickled weights (*.bin, *.pt) are never fetched: opening them runs code.
ALL_FILES = (*SMALL_FILES, "*.safetensors")

_REPOSITORY_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_OPTIONS = ("revision", "cache_dir", "local_files_only", "token", "force_download", "subfolder")


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
    patterns: Sequence[str] = ALL_FILES,
) -> Path:
    """The folder that holds the checkpoint ``name_or_path``.

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
