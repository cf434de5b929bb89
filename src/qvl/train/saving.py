"""Checkpoints of a run on disk: written whole or not at all, found again, thrown away when old.

A checkpoint is a folder ``checkpoints/step-00000100`` that appears by a rename once every file in it is on
the disk: whatever kills the process, a folder of that name is complete. Knows no model: what stands in a
folder is written by the caller.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from qvl.errors import CheckpointError

FOLDER = "checkpoints"
STATE = "training.pt"  # what only the trainer reads, beside the files that anyone can serve
_NAME = re.compile(r"step-(\d{8})")


def place(out: Path, step: int) -> Path:
    """The folder of a step's checkpoint, whether or not it is there."""
    return out / FOLDER / f"step-{step:08}"


def save_whole(out: Path, step: int, write: Callable[[Path], None]) -> Path:
    """The checkpoint of a step, filled by ``write(folder)`` and put in its place at once.

    One that is there already stays: the same step of the same run holds the same values, and at no moment
    may there be none. Raises CheckpointError where the folder cannot be written; then the earlier ones are as
    they were.
    """
    target = place(out, step)
    if target.is_dir():
        return target
    partial = target.with_name(f".{target.name}.partial")
    try:
        _remove(partial)
        partial.mkdir(parents=True)
        write(partial)
        for path in (*partial.rglob("*"), partial):
            _flush(path)
        partial.rename(target)
        _flush(target.parent)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint of step {step} cannot be written into {out}: {error}"
        ) from error
    return target


def complete(out: Path) -> list[tuple[int, Path]]:
    """All complete checkpoints, oldest first: (step, folder)."""
    if not (out / FOLDER).is_dir():
        return []
    found = ((_NAME.fullmatch(path.name), path) for path in (out / FOLDER).iterdir())
    return sorted((int(name[1]), path) for name, path in found if name)


def newest(out: Path) -> tuple[int, Path] | None:
    """The checkpoint to go on from."""
    return next(reversed(complete(out)), None)


def tidy(out: Path, keep: int) -> None:
    """Leaves the last ``keep`` checkpoints (0: all), and nothing that was broken off."""
    old = complete(out)[: -keep or None] if keep else []
    for path in (*(folder for _, folder in old), *(out / FOLDER).glob(".*")):
        _remove(path)


def publish(folder: Path, out: Path) -> None:
    """Makes ``out`` itself the model of a checkpoint: its files are linked there, one by one, by rename.

    What a process has open or mapped of the files before stays valid for it.
    """
    for path in sorted(folder.iterdir()):
        if path.name == STATE or not path.is_file():
            continue
        fresh = out / f".{path.name}.fresh"
        fresh.unlink(missing_ok=True)
        try:
            os.link(path, fresh)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, fresh)
        fresh.replace(out / path.name)
    _flush(out)


def _remove(folder: Path) -> None:
    """A folder is renamed before it is emptied, so that half of it never passes for a whole one."""
    if folder.exists():
        gone = folder.with_name(f".{folder.name.lstrip('.')}.gone")
        if folder != gone:
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
        shutil.rmtree(gone)


def _flush(path: Path) -> None:
    """Onto the disk, so that a rename never comes before what it names."""
    if os.name != "posix" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
