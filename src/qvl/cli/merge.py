"""``qvl merge``: a LoRA adapter and its base as one checkpoint, which every tool reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvl.cli.options import DebugOption
from qvl.cli.streams import harmless
from qvl.errors import InputError

AdapterName = Annotated[str, typer.Argument(metavar="ADAPTER", help="Folder or hub id of a LoRA adapter.")]
OutFolder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the new checkpoint.")]
BaseOption = Annotated[
    str | None,
    typer.Option("--base", help="Folder or hub id of the model. Default: the one that the adapter names."),
]


def merge(adapter: AdapterName, out: OutFolder, base: BaseOption = None, debug: DebugOption = False) -> None:
    """Add ADAPTER to the weights of its base and write the whole model into the folder OUT.

    The sum is made in float32 and stored in the base's number format. An adapter needs no merging to be used
    here: every command takes its folder for --model.
    """
    from qvl.auto import AutoModelForImageTextToText
    from qvl.cli.collector import started
    from qvl.cli.common import fetch
    from qvl.cli.progress import Bar
    from qvl.cli.small_files import copy_small_files, new_folder
    from qvl.hub import ALL_FILES, base_of

    new_folder(out)
    folder = Path(fetch(adapter, ALL_FILES, base))
    model_folder = base_of(folder, base=base)
    if model_folder is None:
        raise InputError(
            f"{adapter} is no adapter: it has no adapter_config.json, so there is nothing to merge"
        )
    model = AutoModelForImageTextToText.from_pretrained(folder, base=model_folder)
    started()
    with Bar("writing the merged model"):
        model.save_pretrained(out)
        copy_small_files(folder, out, model_folder)
    print(
        f"{harmless(str(out))}: {model.num_parameters():,} parameters in {model.config.dtype_name}, "
        f"{_megabytes(out)} (base {_megabytes(model_folder)}, adapter {_megabytes(folder)})"
    )


def _megabytes(folder: Path) -> str:
    from qvl.cli.small_files import weight_bytes

    return f"{weight_bytes(folder) / 1e6:,.1f} MB"
