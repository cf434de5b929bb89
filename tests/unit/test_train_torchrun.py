"""Two processes under torchrun (gloo) take the steps of one."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qvl import AutoModelForImageTextToText
from qvl.train import saving
from qvl.train.metrics import FILE
from support.training_run import make_trainer

TESTS = Path(__file__).parents[1]
SETTINGS = {"steps": 6, "batch": 4, "average": 0.5, "evaluation": 5, "save_every": 3}


def losses(out):
    with (out / FILE).open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def torchrun(out, **options):
    """A run in two processes; the second one sees fewer pictures than the first, and in some steps none."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = subprocess.run(
        [*command, "-m", "support.training_run", str(out), json.dumps(options)],
        cwd=TESTS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert found.returncode == 0, found.stderr[-3000:]


@pytest.mark.parametrize("sharded", [True, False], ids=["shares", "copies"])
def test_the_losses_are_those_of_one_process(tmp_path, sharded):
    make_trainer(tmp_path / "one", **SETTINGS).run()
    torchrun(tmp_path / "two", sharded=sharded, **SETTINGS)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-5)
    one, two = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-3, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    states = [saving.newest(tmp_path / name)[1] / saving.STATE for name in ("one", "two")]
    first, second = (torch.load(path, weights_only=True) for path in states)
    for name, value in first["average"].items():
        torch.testing.assert_close(second["average"][name], value, atol=1e-3, rtol=1e-3)


def test_one_process_goes_on_where_two_were(tmp_path):
    make_trainer(tmp_path / "one", **SETTINGS).run()
    torchrun(tmp_path / "two", sharded=False, **{**SETTINGS, "steps": 3})
    make_trainer(tmp_path / "two", **SETTINGS).run()
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-5)
