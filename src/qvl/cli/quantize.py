"""``qvl quantize``: a checkpoint with weights in 8 or 4 bits, that loads as it is."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvl.cli.options import DebugOption, MaxPixelsOption, Weights
from qvl.cli.small_files import copy_small_files, new_folder, weight_bytes
from qvl.cli.streams import harmless
from qvl.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image
    from rich.table import Table

    from qvl.cli.quality import Quality
    from qvl.weights.quantization.config import QuantizationConfig
    from qvl.weights.quantization.whole import LayerReport

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".pdf")
HELD_OUT = 4  # one picture of so many is not calibrated on, but measured with


class Group(str, Enum):
    """Inputs that share a scale, in 4 bits."""

    small = "32"
    middle = "64"
    large = "128"


ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder, hub id or bundled name of a checkpoint.")
]
OutFolder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the new checkpoint.")]
WeightsArgument = Annotated[Weights, typer.Option("--weights", help="int8, or int4.")]
GroupOption = Annotated[
    Group | None, typer.Option("--group", help="Of int4: inputs that share a scale. Default: 64.")
]
VisionOption = Annotated[bool, typer.Option("--vision", help="The vision tower too.")]
HeadOption = Annotated[bool, typer.Option("--head", help="The output head too.")]
KeepOption = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        help="Part of a module name to keep higher: int8 instead of int4, or as it is.",
        show_default=False,
    ),
]
ExactOption = Annotated[
    bool, typer.Option("--exact", help="Multiply with activations as they are, not rounded to 8 bits.")
]
CalibrateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--calibrate", help="Picture, PDF or folder of pictures to calibrate on.", show_default=False
    ),
]
CheckOption = Annotated[bool, typer.Option("--check", help="Measure what changed in what the model says.")]


def quantize(
    model: ModelName,
    out: OutFolder,
    weights: WeightsArgument,
    group: GroupOption = None,
    vision: VisionOption = False,
    head: HeadOption = False,
    keep: KeepOption = None,
    exact: ExactOption = False,
    calibrate: CalibrateOption = None,
    check: CheckOption = False,
    max_pixels: MaxPixelsOption = None,
    debug: DebugOption = False,
) -> None:
    """Write MODEL with weights in 8 or 4 bits into the folder OUT, which loads as it is.

    With --calibrate every layer is rounded so that its outputs for these pictures change least; give 16 or
    more that are like yours. --calibrate, --keep may be given several times.
    """
    from qvl.weights.quantization.config import QuantizationConfig

    spared = "modules_in_int8" if weights is Weights.int4 else "modules_to_not_convert"
    config = QuantizationConfig(
        weights.value,
        None if group is None else int(group.value),
        vision=vision,
        head=head,
        exact=exact,
        **{spared: tuple(keep or ())},
    )
    new_folder(out)
    pictures = _pictures(calibrate or [])
    folder, reports, config, quality = _quantized(model, out, config, pictures, check, max_pixels)
    _print_report(reports, config, keep or [], folder, out, quality)


def _pictures(sources: Sequence[str]) -> list[Image.Image]:
    """The pictures named, and those of the folders named; raises InputError for a folder without any."""
    from qvl.cli.media import open_media

    names: list[str] = []
    for source in sources:
        if not Path(source).is_dir():
            names.append(source)
            continue
        inside = sorted(str(path) for path in Path(source).iterdir() if path.suffix.lower() in PICTURES)
        if not inside:
            raise InputError(f"{source} holds no pictures ({', '.join(PICTURES)})")
        names += inside
    media = open_media(names)
    if any(medium.kind != "image" for medium in media):
        raise InputError("--calibrate takes pictures and PDF files; there is a video among them")
    return [medium.content for medium in media]


def _quantized(
    name: str,
    out: Path,
    config: QuantizationConfig,
    pictures: Sequence[Image.Image],
    check: bool,
    max_pixels: int | None,
) -> tuple[Path, list[LayerReport], QuantizationConfig, Quality | None]:
    """Loads, quantizes, measures and saves: the folder of the weights, and what the report says."""
    from qvl.cli import quality
    from qvl.cli.collector import started
    from qvl.cli.common import Loading, fetch, load_assistant, load_processor
    from qvl.cli.progress import Bar
    from qvl.hub import ALL_FILES, base_of
    from qvl.weights.quantization.whole import quantize_model, sensitive_layers

    folder = Path(fetch(name, ALL_FILES))
    loading = Loading(str(folder), device="cpu", max_pixels=max_pixels)
    processor = load_processor(loading)
    model = load_assistant(loading, processor).model
    started()
    if getattr(model.config, "quantization_config", None):
        raise InputError(f"{name} is quantized already; quantize the checkpoint that it was made from")
    with Bar("answering questions") as bar:
        asked, held = _shares(pictures)
        prompts = quality.answered(model, processor, quality.questions(asked), bar.update) if pictures else []
        readings = quality.answered(model, processor, quality.questions(held, 1), bar.update) if check else []
        before = quality.scored(model, readings)
    inputs = [reading.inputs for reading in prompts]
    if config.weights == "int4":
        with Bar("looking for sensitive layers") as bar:
            found = sensitive_layers(model, config, inputs, bar.update)
        config = replace(config, modules_in_int8=(*config.modules_in_int8, *found))
    with Bar("quantizing layers") as bar:
        reports = quantize_model(model, config, inputs, bar.update)
    measured = quality.compared(before, quality.scored(model, readings)) if check else None
    model.save_pretrained(out)
    base = base_of(folder)
    copy_small_files(folder, out, base)
    return base or folder, reports, config, measured


def _shares(pictures: Sequence[Image.Image]) -> tuple[list[Image.Image], list[Image.Image]]:
    """The pictures to calibrate on, and those to measure with; too few are both, asked about differently."""
    held = list(pictures[HELD_OUT - 1 :: HELD_OUT])
    if not held:
        return list(pictures), list(pictures)
    return [p for i, p in enumerate(pictures) if i % HELD_OUT != HELD_OUT - 1], held


def _print_report(
    reports: Sequence[LayerReport],
    config: QuantizationConfig,
    keep: Sequence[str],
    folder: Path,
    out: Path,
    quality: Quality | None,
) -> None:
    from rich.console import Console

    console = Console(
        highlight=False, markup=False, emoji=False, width=None if Console().is_terminal else 120
    )
    with console.capture() as shown:
        console.print(_table(reports))
    print(shown.get(), end="")
    found = [name for name in config.modules_in_int8 if name not in keep]
    if found:
        print(f"kept in int8, because int4 changes them most: {', '.join(found)}")
    before, after = weight_bytes(folder), weight_bytes(out)
    print(f"weights: {before / 1e6:,.1f} MB -> {after / 1e6:,.1f} MB in {harmless(str(out))}")
    if quality is not None:
        print(
            f"perplexity x {quality.perplexity_ratio:.4f} over {quality.tokens} tokens; the same next token "
            f"for {quality.agreement:.1%} of {quality.choices} tokens of answers"
        )


def _table(reports: Sequence[LayerReport]) -> Table:
    from rich.table import Column, Table

    table = Table(Column("layer", overflow="fold"), "bits", "group", "error")
    for report in reports:
        scheme: Any = report.scheme
        table.add_row(report.name, str(scheme.bits), str(scheme.group), f"{report.error:.2%}")
    return table
