"""Trains the bundled model. Seeded; can be stopped and started again at any time.

The whole model learns from the first step on: to answer (the loss that anybody trains with) and, beside it, a
linear reader of the vision tokens (`examples.tiny.reader`), which is thrown away. What is saved is a moving
average of the weights, in bfloat16.

    python -m examples.tiny.train --steps 40000        # goes on from runs/tiny if something is there
    torchrun --nproc-per-node 2 -m examples.tiny.train --steps 40000     # the same steps, on two cores sooner
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from examples.tiny.checkpoint import model_config, write_small_files
from examples.tiny.lessons import Lessons
from examples.tiny.reader import ReadingObjective, marked_pack
from qvl import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from qvl.train.encode import Encoder
from qvl.train.export import ModelWriter
from qvl.train.parallel import processes
from qvl.train.settings import TrainSettings
from qvl.train.trainer import Trainer, Values

RUN = Path("runs/tiny")


class Diary:
    """A bar, and now and then a line of means in ``log.txt``."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every, self.start = path, every, time.monotonic()
        self.sums: dict[str, float] = {}
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, refresh_per_second=0.5)

    def started(self, step: int, steps: int) -> None:
        self.task = self.bar.add_task("", total=steps, completed=step)

    def stepped(self, step: int, values: Values) -> None:
        self.bar.update(self.task, completed=step)
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if step % self.every == 0:
            means = {name: value / self.every for name, value in self.sums.items()}
            line = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
            text = f"step {step}, {time.monotonic() - self.start:.0f} s: {line}"
            with self.path.open("a", encoding="utf-8") as file:
                print(text, file=file)
            self.sums.clear()

    def evaluated(self, step: int, values: Values) -> None: ...

    def saved(self, step: int, folder: Path) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40000)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--reading", type=float, default=0.3, help="weight of the reader's loss")
    parser.add_argument("--out", type=Path, default=RUN)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--log-every", type=int, default=50)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    write_small_files(options.out)
    settings = TrainSettings(
        batch=options.batch,
        pass_tokens=100_000,
        steps=options.steps,
        learning_rate=options.learning_rate,
        schedule="trapezoid",
        warm_up=300,
        weight_decay=0.05,
        betas=(0.9, 0.98),
        average=0.999,
        shuffle=False,
        save_every=options.save_every,
        keep=2,
    )
    with processes(sharded=False) as together:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // together.count))
        torch.manual_seed(0)
        config = model_config()
        processor = AutoProcessor.from_pretrained(options.out)
        diary = Diary(options.out / "log.txt", options.log_every)
        trainer = Trainer(
            Qwen2_5_VLForConditionalGeneration(config),
            Lessons(Encoder(processor, config)),
            settings,
            options.out,
            ModelWriter(processor, torch.bfloat16),
            objective=ReadingObjective(config.text_config.hidden_size, options.reading),
            collate=marked_pack,
            listeners=[diary],
            processes=together,
        )
        with diary.bar:
            trainer.run()


if __name__ == "__main__":
    main()
