"""Settings of a processor kept in a JSON file of a checkpoint folder: reading and writing, for any processor.

Works on the processor's attributes; what they mean is the processor's business.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from qvl import hub
from qvl.config.base import read_json
from qvl.errors import CheckpointNotFoundError, InputError

# Where newer checkpoints keep the settings of all processors, each under its own key
COMBINED_FILE = "processor_config.json"
# Entries that name the class which wrote a file; a video processor may read an image processor's
TYPE_ENTRIES = ("image_processor_type", "video_processor_type", "feature_extractor_type")


class SavedSettings:
    """``from_pretrained``, ``save_pretrained``, ``from_dict`` and ``to_dict`` as transformers' processors
    have them.

    A subclass says under which ``files`` its settings may be found (the first is the one written), under
    which ``section`` of ``processor_config.json``, and what ``type_entry`` names its class in the file.
    """

    files: ClassVar[tuple[str, ...]]
    section: ClassVar[str]
    type_entry: ClassVar[tuple[str, str]]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """The processor of a checkpoint: a folder, a settings file or a hub id.

        ``revision``, ``cache_dir``, ``local_files_only``, ``token``, ``force_download``, ``subfolder``: see
        :func:`qvl.hub.resolve`. Other arguments replace settings of the file, those that are no settings are
        left out (``return_unused_kwargs=True`` returns them too). Raises CheckpointNotFoundError and
        CheckpointCorruptError.
        """
        options = hub.pop_options(kwargs)
        path = Path(pretrained_model_name_or_path).expanduser()
        if path.is_file():
            return cls.from_dict(read_json(path), **kwargs)
        folder = hub.holding(pretrained_model_name_or_path, (*cls.files, COMBINED_FILE), **options)
        return cls.from_dict(cls._find_settings(folder), **kwargs)

    @classmethod
    def _find_settings(cls, folder: Path) -> dict[str, Any]:
        combined = folder / COMBINED_FILE
        for name in cls.files:
            if (folder / name).is_file():
                return read_json(folder / name)
        if combined.is_file() and isinstance(settings := read_json(combined).get(cls.section), dict):
            return settings
        raise CheckpointNotFoundError(f"{folder} holds none of {', '.join((*cls.files, COMBINED_FILE))}")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], **kwargs: Any) -> Any:
        """A processor with ``settings``, of which ``kwargs`` replace some; ``return_unused_kwargs`` as
        above.
        """
        return_unused = kwargs.pop("return_unused_kwargs", False)
        known = {**settings, **{name: kwargs.pop(name) for name in ("size",) if name in kwargs}}
        processor = cls(**{name: value for name, value in known.items() if name not in TYPE_ENTRIES})
        unused = {}
        for name, value in kwargs.items():
            if hasattr(processor, name):
                setattr(processor, name, value)
            else:
                unused[name] = value
        return (processor, unused) if return_unused else processor

    def to_dict(self) -> dict[str, Any]:
        """All settings, unknown ones of the file they came from included."""
        settings = {
            name: copy.deepcopy(value) for name, value in vars(self).items() if not name.startswith("_")
        }
        return {**settings, self.type_entry[0]: self.type_entry[1]}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Writes the settings file into the folder, which is made where missing; returns its path."""
        folder = Path(save_directory).expanduser()
        if folder.is_file():
            raise InputError(f"{folder} is a file: give the folder to save into")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.files[0]
        path.write_text(self.to_json_string(), encoding="utf-8")
        return [str(path)]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"
