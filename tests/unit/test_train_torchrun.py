"""Two processes under torchrun (gloo) take the steps of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qvl import AutoModelForImageTextToText
from qvl.train import saving
from qvl.train.metrics import FILE, read_metrics
from support.training_run import make_trainer

TESTS = Path(__file__).parents[1]
SETTINGS = {"steps": 6, "batch": 4, "average": 0.5, "evaluation": 5, "evaluate_every": 3, "save_every": 3}


def assert_same_steps(found, expected):
    """Losses; norms of gradients, since Adam hides what scales all of them; tokens, each sample once."""
    ours, theirs = (read_metrics(out / FILE) for out in (found, expected))
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for name, close in {"step": 0, "loss": 2e-5, "norm": 1e-3, "tokens": 0, "evaluation_loss": 2e-5}.items():
        own, whole = ([row[name] for row in rows if name in row] for rows in (ours, theirs))
        assert own == pytest.approx(whole, abs=close, rel=0), name


def torchrun(out, **options):
    """A run in two processes; the second one sees fewer pictures than the first, and in some steps none."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launcher = subprocess.Popen(
        [*command, "-m", "support.training_run", str(out), json.dumps(options)],
        cwd=TESTS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, told = launcher.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        launcher.terminate()  # which it passes on; killed, it would leave two processes that wait for hours
        launcher.communicate()
        raise
    assert launcher.returncode == 0, told[-3000:]
    assert "left at the end" not in told, told[-3000:]  # a thread that outlives Python can abort the process


@pytest.mark.parametrize("sharded", [True, False], ids=["shares", "copies"])
def test_the_losses_are_those_of_one_process(tmp_path, sharded):
    make_trainer(tmp_path / "one", **SETTINGS).run()
    torchrun(tmp_path / "two", sharded=sharded, **SETTINGS)
    assert_same_steps(tmp_path / "two", tmp_path / "one")
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
    settings = {**SETTINGS, "evaluation": 0}  # there would be one more at the end of the first part
    make_trainer(tmp_path / "one", **settings).run()
    torchrun(tmp_path / "two", sharded=False, **{**settings, "steps": 3})
    make_trainer(tmp_path / "two", **settings).run()
    assert_same_steps(tmp_path / "two", tmp_path / "one")


def test_two_processes_go_on_where_one_was(tmp_path):
    """Shares of a tied head and a frozen tower, layers that are computed twice, and last a step with a sample
    for one of the two alone.
    """
    settings = {"batch": 4, "tied": True, "frozen": ["model.visual"], "gradient_checkpointing": True}
    settings |= {"save_every": 2, "average": 0.5}
    make_trainer(tmp_path / "one", **settings).run()
    stopped = make_trainer(tmp_path / "two", **settings)
    stopped.listeners[0].started(0, 4)
    for step in range(2):
        stopped._report(stopped.advance(stopped.lessons[step]))
    stopped.save()
    torchrun(tmp_path / "two", **settings)
    assert_same_steps(tmp_path / "two", tmp_path / "one")
