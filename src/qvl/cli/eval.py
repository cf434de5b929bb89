"""``qvl eval``: how good a model is on rows with known answers, as a table, a JSON file and predictions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvl.cli.failures import FAILED
from qvl.cli.options import (
    Attention,
    AttentionOption,
    DebugOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    FpsOption,
    MaxPixelsOption,
    MinPixelsOption,
    SystemOption,
    WeightsOption,
)
from qvl.cli.streams import harmless, say
from qvl.errors import InputError

if TYPE_CHECKING:
    from qvl.cli.common import Loading
    from qvl.evaluate import Asking, Prediction, Question, Report, Settings
    from qvl.evaluate.forms import Naming
    from qvl.evaluate.run import Unasked

    Rows = Iterable[Question | Unasked]

STREAMED = (
    ".parquet",
    ".pq",
    ".tsv",
    ".csv",
)  # files that hold the pictures themselves: never read as a whole
FIELDS, SCORING, ANSWERS, FILES = "What rows say", "How answers are scored", "How answers are made", "Files"

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder, hub id or bundled name of a checkpoint.")
]
Data = Annotated[
    list[Path],
    typer.Argument(metavar="DATA...", help="Files of rows: JSON lines, JSON, TSV, CSV or Parquet."),
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="Of rows that name none; TASK=METRIC for one task. exact, match, contains, anls, relaxed, "
        "number, vqa, choice, iou, point, none. Default: iou for boxes, else exact.",
        show_default=False,
        rich_help_panel=SCORING,
    ),
]
ToleranceOption = Annotated[
    float | None, typer.Option("--tolerance", min=0, help="Of number and relaxed.", rich_help_panel=SCORING)
]
ThresholdOption = Annotated[
    float | None, typer.Option("--threshold", min=0, max=1, help="Of iou and anls.", rich_help_panel=SCORING)
]
IgnoreOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore",
        help="Of exact: case, spaces, stop (a final full stop).",
        show_default=False,
        rich_help_panel=SCORING,
    ),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only the first so many rows of each file.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be asked.")]
SequencesOption = Annotated[
    int,
    typer.Option(
        "--max-sequences",
        "--batch",
        min=1,
        help="Questions answered at the same time.",
        rich_help_panel=ANSWERS,
    ),
]
NewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Longest answer.", rich_help_panel=ANSWERS)
]
PenaltyOption = Annotated[
    float,
    typer.Option(
        "--repetition-penalty", help="1: none, whatever the checkpoint says.", rich_help_panel=ANSWERS
    ),
]
KvMemoryOption = Annotated[
    str,
    typer.Option(
        "--kv-memory", metavar="SIZE", help="Most memory for keys and values.", rich_help_panel=ANSWERS
    ),
]
RootOption = Annotated[
    Path | None,
    typer.Option(
        "--image-root",
        help="Where relative paths of media start. Default: beside DATA.",
        rich_help_panel=FIELDS,
    ),
]
ImageKeyOption = Annotated[
    str | None,
    typer.Option("--image-key", help="Field with the picture, or pictures.", rich_help_panel=FIELDS),
]
QuestionKeyOption = Annotated[
    str | None, typer.Option("--question-key", help="Field with the question.", rich_help_panel=FIELDS)
]
AnswerKeyOption = Annotated[
    str | None, typer.Option("--answer-key", help="Field with what is right.", rich_help_panel=FIELDS)
]
PromptOption = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        help="What is asked, with {question} in it and \\n for a new line. Default: what the form of DATA is "
        "usually asked with.",
        rich_help_panel=FIELDS,
    ),
]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", help="Write scores and settings into this file.", rich_help_panel=FILES),
]
PredictionsOption = Annotated[
    Path | None,
    typer.Option(
        "--predictions", help="Write every answer into this file, as it comes.", rich_help_panel=FILES
    ),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on where the predictions end.", rich_help_panel=FILES)
]


@dataclass(frozen=True)
class Outputs:
    """Files that are written, and whether the predictions go on."""

    json: Path | None
    predictions: Path | None
    resume: bool

    def __post_init__(self) -> None:
        if self.resume and self.predictions is None:
            raise InputError("--resume goes on with a file of predictions; name it with --predictions")
        for path in (self.json, self.predictions):
            if path is not None and not path.absolute().parent.is_dir():
                raise InputError(f"{path} cannot be written: there is no folder {path.parent}")
            if path is not None and path.is_dir():
                raise InputError(f"{path} is a folder; name a file")
        held = self.predictions
        if held is not None and not self.resume and held.exists() and held.stat().st_size:
            raise InputError(f"{held} is there already; go on with it with --resume, or name another file")


def evaluate(
    model: ModelName,
    data: Data,
    metric: MetricOption = None,
    tolerance: ToleranceOption = None,
    threshold: ThresholdOption = None,
    ignore: IgnoreOption = None,
    limit: LimitOption = None,
    strict: StrictOption = False,
    max_sequences: SequencesOption = 64,
    max_new_tokens: NewTokensOption = 128,
    repetition_penalty: PenaltyOption = 1.0,
    kv_memory: KvMemoryOption = "4G",
    system: SystemOption = None,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
    fps: FpsOption = None,
    dtype: DtypeOption = Dtype.auto,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    attention: AttentionOption = Attention.sdpa,
    image_root: RootOption = None,
    image_key: ImageKeyOption = None,
    question_key: QuestionKeyOption = None,
    answer_key: AnswerKeyOption = None,
    prompt: PromptOption = None,
    json: JsonOption = None,
    predictions: PredictionsOption = None,
    resume: ResumeOption = False,
    debug: DebugOption = False,
) -> None:
    """Ask MODEL every row of DATA, greedily, and score the answers.

    Rows have messages, whose last turn is the right answer (or "expected", "answers", "answer", "target"),
    or the form of DocVQA, InfographicVQA, ChartQA, TextVQA, VQAv2, MMBench or MMMU. A row whose picture is
    broken counts as wrong.
    """
    from qvl.cli.common import Loading
    from qvl.evaluate.forms import Naming

    outputs = Outputs(json, predictions, resume)
    if fps is not None and not fps > 0:
        raise InputError(f"--fps must be a positive number of frames per second, got {fps:g}")
    settings = _settings(max_new_tokens, max_sequences, repetition_penalty, kv_memory, fps)
    asking = _asking(metric, {"tolerance": tolerance, "threshold": threshold, "ignore": ignore}, system)
    naming = Naming(image_key, question_key, answer_key, prompt, image_root)
    rows = _rows(data, naming, asking, limit, strict)
    bits = None if weights is None else weights.value
    loading = Loading(model, dtype.value, device, attention.value, min_pixels, max_pixels, weights=bits)
    report = _run(loading, rows, settings, outputs, strict)
    report = replace(report, facts=_facts(loading, data, settings, system))
    _finish(report, outputs)


def _settings(new_tokens: int, sequences: int, penalty: float, kv_memory: str, fps: float | None) -> Settings:
    from qvl.cli.setting_options import parse_size
    from qvl.evaluate import Settings

    options = () if fps is None else (("fps", fps),)
    return Settings(new_tokens, sequences, penalty, parse_size(kv_memory), options=options)


def _asking(metrics: Sequence[str] | None, settings: dict[str, Any], system: str | None) -> Asking:
    """``metrics``: names, or TASK=NAME."""
    from qvl.evaluate import Asking

    plain = [name for name in metrics or () if "=" not in name]
    if len(plain) > 1:
        raise InputError(f"--metric names {' and '.join(plain)}; give one, and TASK=METRIC for single tasks")
    by_task = dict(name.rsplit("=", 1) for name in metrics or () if "=" in name)
    given = {name: value for name, value in settings.items() if value is not None}
    return Asking(plain[0] if plain else None, by_task, given, system=system)


def _rows(paths: Sequence[Path], naming: Naming, asking: Asking, limit: int | None, strict: bool) -> Rows:
    """All rows of all files; read and checked at once where they only name their pictures."""
    files = [_of_file(path, paths, naming, asking, limit) for path in paths]
    if any(path.suffix.lower() in STREAMED for path in paths):
        return (row for file in files for row in file)
    rows = [row for file in files for row in file]
    _tell_unasked(rows, strict)
    return rows


def _of_file(
    path: Path, paths: Sequence[Path], naming: Naming, asking: Asking, limit: int | None
) -> Iterator[Question | Unasked]:
    from itertools import islice

    from qvl.evaluate import read_questions
    from qvl.evaluate.forms import rows_of
    from qvl.evaluate.records import read_records

    alike = sum(other.name == path.name for other in paths) > 1
    rows = rows_of(read_records(path), path, naming)
    asked = read_questions(rows, replace(asking, task=path.stem), str(path) if alike else path.name)
    return islice(asked, limit)


def _tell_unasked(rows: Sequence[Question | Unasked], strict: bool) -> None:
    from qvl.evaluate.run import Unasked

    broken = [row for row in rows if isinstance(row, Unasked)]
    if broken and (strict or len(broken) == len(rows)):
        raise InputError(f"{broken[0].name}: {broken[0].error}")
    if broken:
        say(f"qvl: {len(broken)} of {len(rows)} rows cannot be asked; {broken[0].name}: {broken[0].error}")


def _run(loading: Loading, rows: Rows, settings: Settings, outputs: Outputs, strict: bool) -> Report:
    from qvl.cli.common import load_assistant, load_processor
    from qvl.evaluate import ask_questions
    from qvl.evaluate.predictions import PredictionsFile, answered

    processor = load_processor(loading)
    setup = _setup(loading)
    kept = _kept(outputs)
    assistant = load_assistant(loading, processor)
    keeping = nullcontext() if outputs.predictions is None else PredictionsFile(outputs.predictions)
    done = 0

    def count(now: int, total: int) -> None:
        nonlocal done
        done = now
        show(now, total)

    try:
        with keeping as file, _bar(f"asking {loading.name}") as show:
            return ask_questions(
                assistant.model,
                processor,
                rows,
                settings=settings,
                strict=strict,
                known=answered(kept),
                setup=setup,
                progress=count,
                on_answer=None if file is None else file.add,
            )
    except KeyboardInterrupt:
        if outputs.predictions is not None:
            say(f"qvl: {done} rows are answered and kept in {outputs.predictions}; --resume goes on")
        raise


def _kept(outputs: Outputs) -> list[Prediction]:
    from qvl.evaluate.predictions import read_predictions

    path = outputs.predictions
    return read_predictions(path) if outputs.resume and path is not None and path.exists() else []


def _setup(loading: Loading) -> str:
    """All that answers depend on besides the rows: what is loaded, and how; also which weights these are."""
    from qvl.cli.common import fetch
    from qvl.hub import ALL_FILES

    folder = Path(fetch(loading.name, ALL_FILES))
    files = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.glob("*.safetensors"))
    ]
    how = (loading.dtype, loading.weights, loading.min_pixels, loading.max_pixels)
    return f"{loading.name} {how} {files}"


@contextmanager
def _bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, if that is a terminal, with the rows done and the time that is left."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False
    ) as bar:
        task = bar.add_task(harmless(text), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


def _facts(loading: Loading, data: Sequence[Path], settings: Settings, system: str | None) -> dict[str, Any]:
    """What a report says besides its scores."""
    import platform
    from datetime import datetime, timezone

    import torch

    import qvl

    asked = {**vars(settings), "options": dict(settings.options), "system": system}
    how = {
        name: getattr(loading, name) for name in ("dtype", "weights", "min_pixels", "max_pixels", "attention")
    }
    return {
        "model": loading.name,
        "data": [str(path) for path in data],
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": {**how, "decoding": "greedy", **asked},
        "versions": {"qvl": qvl.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _finish(report: Report, outputs: Outputs) -> None:
    """Files, the table, the rows that could not be asked; an error where that is all of them."""
    import json

    from rich.console import Console

    from qvl.evaluate.predictions import replace_file, write_predictions
    from qvl.evaluate.tables import table

    if outputs.predictions is not None:
        write_predictions(outputs.predictions, report.predictions)
    if outputs.json is not None:
        replace_file(outputs.json, json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n")
    console = Console(
        highlight=False, markup=False, emoji=False, width=None if Console().is_terminal else 120
    )
    with console.capture() as shown:
        console.print(table(report))
    print(harmless(shown.get()) if sys.stdout.isatty() and not console.is_terminal else shown.get(), end="")
    broken = [prediction for prediction in report.predictions if prediction.error]
    for prediction in broken[:10]:
        say(f"qvl: {prediction.row}: {prediction.error}")
    if len(broken) > 10:
        say(f"qvl: and {len(broken) - 10} more rows that could not be asked")
    if broken and len(broken) == len(report.predictions):
        raise typer.Exit(FAILED)
