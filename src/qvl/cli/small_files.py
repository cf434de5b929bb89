"""What a checkpoint has besides config and tensors: taken along into the folder of a new one."""

from __future__ import annotations

import shutil
from pathlib import Path

from qvl.errors import InputError

NOT_COPIED = ("config.json", "generation_config.json", "model.safetensors.index.json")  # written anew


def copy_small_files(folder: Path, out: Path, base: Path | None = None) -> None:
    """Tokenizer, chat template and image settings of ``folder`` into ``out``: as they are.

    ``base``: of the adapter that ``folder`` is. What an adapter has of its own is put together with the
    base's by its processor.
    """
    from qvl.hub import SMALL_FILES

    if base is not None and _has_own(folder):
        from qvl.auto import AutoProcessor

        AutoProcessor.from_pretrained(folder, base=base).save_pretrained(out)
        return
    for pattern in SMALL_FILES:
        for path in (base or folder).glob(pattern):
            if path.name not in NOT_COPIED:
                shutil.copyfile(path, out / path.name)


def _has_own(adapter: Path) -> bool:
    """Whether an adapter came with files of a tokenizer or a processor."""
    from qvl.processing.image import Qwen2VLImageProcessor
    from qvl.processing.pretrained import COMBINED_FILE
    from qvl.processing.text.chat import PROCESSOR_TEMPLATE
    from qvl.processing.text.files import VOCABULARY_FILES

    names = (*VOCABULARY_FILES, PROCESSOR_TEMPLATE, COMBINED_FILE, *Qwen2VLImageProcessor.files)
    return any((adapter / name).is_file() for name in names)


def weight_bytes(folder: Path) -> int:
    """Size of a folder's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def new_folder(out: Path) -> None:
    """InputError unless ``out`` is empty or not there."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already and not empty; name a new folder")
