"""A run that does nothing but save, killed at random moments: ``python -m support.saving_loop OUT MOMENTS``.

One process loads torch and forks the others, which are killed: twenty starts of torch would take a minute.
After each kill the newest checkpoint is loaded by everything that reads one. Prints its steps.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from qvl import AutoModelForImageTextToText
from qvl.train import saving
from qvl.train.trainer import Trainer
from support.training_run import make_trainer


def run(out: Path, steps: int) -> Trainer:
    return make_trainer(out, keep=2, average=0.5, steps=steps, save_every=1)


def save_for_ever(out: Path) -> None:
    trainer = run(out, 10**6)
    trainer.resume()
    while True:
        trainer.step += 1
        trainer.save()
        saving.publish(saving.newest(out)[1], out)


def check(out: Path) -> int:
    """The step of the newest checkpoint, which must load; so must the published model."""
    step, folder = saving.newest(out)
    state = torch.load(folder / saving.STATE, weights_only=True)
    assert state["step"] == step, f"{folder} holds step {state['step']}"
    for each in (folder, out):
        model = AutoModelForImageTextToText.from_pretrained(each)
        assert all(bool(p.isfinite().all()) for p in model.parameters())
    return step


def main(out: str, moments: str) -> None:
    torch.set_num_threads(1)
    chance = random.Random(0)
    run(Path(out), 1).run()
    for _ in range(int(moments)):
        child = os.fork()
        if child == 0:
            try:
                save_for_ever(Path(out))
            finally:  # it never gets here on its own
                os._exit(1)
        time.sleep(chance.uniform(0.05, 0.6))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the process that saves ended by itself"
        print(check(Path(out)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
