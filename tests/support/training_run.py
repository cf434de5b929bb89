"""A short run of a tiny random model, also as a process: ``python -m support.training_run OUT JSON``."""

from __future__ import annotations

import atexit
import json
import sys
from pathlib import Path
from typing import Any

import torch

from qvl.config import Qwen2_5_VLConfig
from qvl.modeling import Qwen2_5_VLForConditionalGeneration
from qvl.train.metrics import FILE, MetricsFile
from qvl.train.parallel import Processes, processes
from qvl.train.settings import TrainSettings
from qvl.train.trainer import Trainer
from support.tiny import tiny_settings
from support.training import RandomSource

SAMPLES = 13  # of which 5 have a picture and 3 a video, one of them both
SETTINGS: dict[str, Any] = {
    "batch": 3,
    "pass_tokens": 40,
    "learning_rate": 3e-3,
    "warm_up": 2,
    "weight_decay": 0.1,
    "workers": 0,
    "save_every": 4,
    "keep": 0,
}


def tiny_model(*, tied: bool = False, dropout: float = 0.0) -> Any:
    """The documented class, with the same random weights every time."""
    text = {"tie_word_embeddings": tied, "attention_dropout": dropout}
    config = Qwen2_5_VLConfig(**tiny_settings(text=text, tie_word_embeddings=tied))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(config)
        model.init_weights()
    return model


def make_trainer(
    out: Path,
    together: Processes | None = None,
    *,
    tied: bool = False,
    dropout: float = 0.0,
    frozen: tuple[str, ...] = (),
    evaluation: int = 0,
    samples: int = SAMPLES,
    **settings: Any,
) -> Trainer:
    """A run that writes ``metrics.csv`` and checkpoints. ``frozen``: starts of names of parameters."""
    model = tiny_model(tied=tied, dropout=dropout)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(frozen) or ("none",)))
    return Trainer(
        model,
        RandomSource(samples, model.config),
        TrainSettings(**{**SETTINGS, **settings}),
        out,
        lambda whole, folder: whole.save_pretrained(folder),
        evaluation=RandomSource(evaluation, model.config) if evaluation else None,
        listeners=[MetricsFile(out / FILE)],
        processes=together,
    )


def tell_threads() -> None:
    """Says on stderr which threads of gloo are there, where the system tells."""
    for name in Path("/proc/self/task").glob("*/comm"):
        if "gloo" in name.read_text():
            print("left at the end:", name.read_text(), file=sys.stderr)


def main(out: str, options: str) -> None:
    """``options``: of `make_trainer`, and ``sharded``: how several processes hold the weights."""
    given = json.loads(options)
    atexit.register(tell_threads)  # before the group is there, so it is the last to be called
    with processes(sharded=given.pop("sharded", True)) as together:
        make_trainer(Path(out), together, **given).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
