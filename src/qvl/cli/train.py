"""``qvl train``: a checkpoint and files of conversations in, a fine-tuned checkpoint or an adapter out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvl.cli.options import Attention, AttentionOption, DebugOption, DeviceOption, WeightsOption
from qvl.cli.streams import harmless, say
from qvl.cli.train_options import (
    OUTCOME,
    data_settings,
    from_file,
    lora_values,
    rates_of,
    train_settings,
    weights_of,
    with_train_options,
)
from qvl.errors import CheckpointMismatchError, InputError

if TYPE_CHECKING:
    from qvl.processing.processor import Qwen2_5_VLProcessor
    from qvl.train.data.checking import Report
    from qvl.train.data.dataset import Dataset, Mixture
    from qvl.train.data.settings import DataSettings
    from qvl.train.encode import Encoder
    from qvl.train.parallel import Processes
    from qvl.train.parts import PartSettings
    from qvl.train.settings import TrainSettings

RECORD = "run.json"  # in the folder of a run: what it is, so that it is only gone on with as the same

ShardOption = Annotated[
    bool,
    typer.Option(
        "--shard/--copies",
        help="Under torchrun: each process holds a share of the weights, or a copy, which sends less.",
    ),
]
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder, hub id or bundled name of a checkpoint.")
]
DataFiles = Annotated[
    list[Path], typer.Argument(metavar="DATA...", help="Files of conversations: JSON lines or a JSON array.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", help="Folder of the run; one that holds a run that was broken off goes on with it."
    ),
]
EvalDataOption = Annotated[
    Path | None, typer.Option("--eval-data", help="Rows that are not learned, to measure the loss on.")
]
CheckOption = Annotated[bool, typer.Option("--check", help="Look through the data and end.")]
DecodeOption = Annotated[
    bool, typer.Option("--decode", help="Open every picture whole when looking through the data.")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", help="File of options, TOML or JSON; the command line wins.", rich_help_panel=OUTCOME
    ),
]


@with_train_options
def train(
    model: ModelName,
    data: DataFiles,
    out: OutOption = None,
    eval_data: EvalDataOption = None,
    check: CheckOption = False,
    decode: DecodeOption = False,
    config: ConfigOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    attention: AttentionOption = Attention.sdpa,
    shard: ShardOption = True,
    debug: DebugOption = False,
    *,
    given: Mapping[str, Any],
) -> None:
    """Fine-tune MODEL on DATA into the folder of --out, which every command then takes for --model.

    All rows are looked through before the first step. A run that was broken off goes on when the same command
    is given again. Ctrl-C saves and ends.
    """
    wish = Wish.of(model, data, eval_data, out, config, given)
    wish.check(check=check, weights=weights is not None)
    from qvl.train.parallel import processes

    with processes(sharded=shard) as group:
        run = _Run(wish, group, device, attention.value, None if weights is None else weights.value)
        reports = run.look(decode=decode, whole=check)
        run.refuse(reports)
        if not check:
            run.train(reports)


@dataclass(frozen=True)
class Wish:
    """All that the command line and the file of settings ask for, checked before anything is loaded."""

    model: str
    data: tuple[Path, ...]
    eval_data: Path | None
    out: Path | None
    given: Mapping[str, Any]
    settings: TrainSettings
    rows: DataSettings
    weights: tuple[float, ...]
    lora: Mapping[str, Any] | None
    rates: Mapping[str, float]

    @classmethod
    def of(
        cls,
        model: str,
        data: Sequence[Path],
        eval_data: Path | None,
        out: Path | None,
        config: Path | None,
        given: Mapping[str, Any],
    ) -> Wish:
        values = {**({} if config is None else from_file(config)), **given}
        return cls(
            model,
            tuple(data),
            eval_data,
            out,
            values,
            train_settings(values),
            data_settings(values),
            tuple(weights_of(values, len(data))),
            lora_values(values),
            rates_of(values),
        )

    def check(self, *, check: bool, weights: bool) -> None:
        if self.out is None and not check:
            raise InputError("--out names the folder of the run; --check looks through the data without one")
        if weights and self.lora is None:
            raise InputError("--weights rounds weights, which are not trained: give --lora too")
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise InputError(f"--out {self.out} is no folder")
        if self.settings.evaluate_every and self.eval_data is None:
            raise InputError("--evaluate-every needs rows to measure on: --eval-data")

    @property
    def parts(self) -> PartSettings:
        from qvl.train.parts import PartSettings

        named = self.given.get("train")
        return PartSettings(None if named is None else tuple(named), self.rates)


class _Run:
    """One run of the command, from the processor to the last checkpoint."""

    def __init__(
        self, wish: Wish, group: Processes, device: str | None, attention: str, weights: str | None
    ) -> None:
        from qvl.cli.common import Loading, fetch, load_processor
        from qvl.config import Qwen2_5_VLConfig
        from qvl.hub import ALL_FILES, SMALL_FILES
        from qvl.train.encode import Encoder

        self.wish, self.group = wish, group
        values = wish.given
        self.loading = Loading(
            wish.model,
            wish.settings.dtype,
            device if group.count == 1 else "cpu",  # from there the shards go to their devices
            attention,
            values.get("min_pixels"),
            values.get("max_pixels"),
            weights=weights,
        )
        self.parts = wish.parts
        self.processor: Qwen2_5_VLProcessor = load_processor(self.loading)
        if values.get("fps") is not None:  # kept with the checkpoint, so that it is served as it was trained
            self.processor.video_processor.fps = values["fps"]
        patterns = SMALL_FILES if wish.out is None else ALL_FILES
        self.folder = fetch(wish.model, patterns)
        self.config = Qwen2_5_VLConfig.from_pretrained(self.folder)
        self.encoder: Encoder = Encoder(self.processor, self.config, learn=values.get("learn", "answers"))

    # -- data

    def look(self, *, decode: bool, whole: bool) -> list[Report]:
        """Every file looked through; the reports are printed by the first process."""
        from qvl.cli.progress import Bar
        from qvl.cli.train_report import print_report
        from qvl.train.data.checking import check

        reports = []
        files = [*self.wish.data, *([self.wish.eval_data] if self.wish.eval_data else [])]
        for path in files:
            with Bar(f"looking through {path.name}") as bar:
                reports.append(check(path, self.encoder, self.wish.rows, decode=decode, progress=bar.update))
            if self.group.first:
                print_report(reports[-1], whole=whole)
        if self.wish.eval_data and self.group.first:
            learned = set[bytes]().union(*(report.digests for report in reports[:-1]))
            if both := len(learned & reports[-1].digests):
                say(f"qvl: {both:,} rows of --eval-data are learned too, so they measure nothing new")
        return reports

    def refuse(self, reports: Sequence[Report]) -> None:
        """Raises InputError where there are bad rows, or nothing to learn from."""
        for report in reports:
            bad = len(report.bad)
            if bad and not self.wish.given.get("skip_bad"):
                raise InputError(
                    f"{report.path} has {bad} row{'s' * (bad != 1)} that cannot be trained on, the first in "
                    f"line {report.bad[0].line}: {report.bad[0].reason}; mend them, or leave them out with "
                    f"--skip-bad{_about_length(report)}"
                )
            if not len(report.kept):
                raise InputError(f"{report.path} has no row left to train on")

    def _source(self, reports: Sequence[Report]) -> Dataset | Mixture:
        from qvl.train.data.dataset import Dataset, Mixture

        files = [Dataset(r.path, self.encoder, self.wish.rows, r.kept) for r in reports]
        return (
            Mixture(files, self.wish.weights) if len(files) > 1 or self.wish.weights != (1.0,) else files[0]
        )

    # -- the run

    def train(self, reports: Sequence[Report]) -> None:
        from qvl.cli.train_progress import Interruption, RunProgress
        from qvl.train import saving
        from qvl.train.metrics import watchers
        from qvl.train.trainer import Trainer

        wish, out = self.wish, self._out()
        settings, learned = wish.settings, reports[: len(wish.data)]
        source = self._source(learned)
        if self.group.first:
            self._check_record(out, learned)
        if settings.warm_up >= (steps := settings.total_steps(len(source))) and settings.warm_up:
            say(f"qvl: the learning rate rises for all of the {steps:,} steps; --warm-up sets fewer")
        evaluation = self._source(reports[-1:]) if wish.eval_data else None
        model, writer = self._model()
        if self.group.first:
            self._print_plan(model, source, learned)
        with Interruption(alone=self.group.count == 1) as interruption:
            progress = RunProgress(interruption, settings.log_every)
            listeners: list[Any] = [*watchers(out), progress] if self.group.first else []
            trainer = Trainer(
                model,
                source,
                settings,
                out,
                writer,
                rate_of=self.parts.rate_of(settings.learning_rate),
                evaluation=evaluation,
                listeners=listeners,
                processes=self.group,
            )
            try:
                with progress.shown():
                    trainer.run()
            except KeyboardInterrupt:
                found = saving.newest(out)
                if found is not None and self.group.first:
                    say(f"qvl: saved after step {found[0]:,}; the same command goes on from there")
                raise
        if self.group.first:
            name = harmless(str(out))
            print(f"{name}: {trainer.step:,} steps done; try it with qvl chat --model {name}")

    def _out(self) -> Path:
        """The run's folder: new, empty, or of this command."""
        from qvl.train import saving

        out = self.wish.out
        assert out is not None  # `Wish.check`
        strangers = out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file()
        if strangers and saving.newest(out) is None:
            raise InputError(f"{out} is there already and holds no run; name a new folder")
        out.mkdir(parents=True, exist_ok=True)
        return out

    def _check_record(self, out: Path, reports: Sequence[Report]) -> None:
        """Writes down what the run is, or holds it against what was written down.

        The trainer compares its own settings; here are data, model and parts.
        """
        record = {
            "model": self.wish.model,
            "data": [
                _described(report, weight) for report, weight in zip(reports, self.wish.weights, strict=False)
            ],
            "rows": asdict(self.wish.rows),
            "learn": self.encoder.learn,
            "pixels": [self.processor.image_processor.min_pixels, self.processor.image_processor.max_pixels],
            "fps": self.processor.video_processor.fps,
            "parts": {"train": self.parts.train, "rates": dict(self.parts.rates)},
            "lora": self.wish.lora,
            "weights": self.loading.weights,
        }
        record = json.loads(json.dumps(record, default=str))
        path = out / RECORD
        if path.is_file():
            then = json.loads(path.read_text(encoding="utf-8"))
            other = [name for name in record if then.get(name) != record[name]]
            if other:
                raise CheckpointMismatchError(
                    f"{out} holds a run with other {' and '.join(other)}; give the same to go on, or another "
                    "--out to begin anew"
                )
        else:
            path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def _model(self) -> tuple[Any, Any]:
        """The model with its trained parts, and what writes it."""
        import torch

        from qvl.cli.common import load_assistant
        from qvl.train.export import ModelWriter
        from qvl.train.lora import AdapterWriter, LoraSettings, attach
        from qvl.train.parts import freeze

        model = load_assistant(self.loading, self.processor).model
        settings, lora = self.wish.settings, self.wish.lora
        if lora is not None:
            attach(model, LoraSettings(**lora), self.parts, seed=settings.seed)
            return model, AdapterWriter(self.processor)
        freeze(model, self.parts)
        name = settings.save_dtype or self.config.dtype_name or settings.dtype
        return model, ModelWriter(self.processor, getattr(torch, name))

    def _print_plan(self, model: Any, source: Any, reports: Sequence[Report]) -> None:
        from qvl.train.parts import format_table, parts_table

        settings = self.wish.settings
        print(format_table(parts_table(model, self.parts, settings.learning_rate)))
        steps, samples = settings.total_steps(len(source)), len(source)
        tokens = sum(
            report.tokens * weight for report, weight in zip(reports, self.wish.weights, strict=True)
        )
        taken = settings.steps * settings.batch if settings.steps else settings.epochs * samples
        print(
            f"{steps:,} steps of {settings.batch:,} rows, {taken / samples:.3g} times through {samples:,} "
            f"rows: about {tokens * taken / samples:,.0f} tokens"
        )


def _about_length(report: Report) -> str:
    return ", --too-long drop or --too-long shrink" if report.counts().get("long") else ""


def _described(report: Report, weight: float) -> dict[str, Any]:
    with report.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else None
        if digest is None:  # Python 3.10
            digest = hashlib.sha256(file.read())
    return {
        "path": report.path.name,
        "sha256": digest.hexdigest(),
        "rows": len(report.kept),
        "weight": weight,
    }
