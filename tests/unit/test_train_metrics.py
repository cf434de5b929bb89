"""What a run leaves for people: exact rows, no row twice after a restart, a picture that shows the loss."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from qvl.train import metrics
from qvl.train.metrics import FILE, PLOT, LossPlot, MetricsFile, TensorBoard, draw, read_metrics, watchers

LOSSES = [2.0, 0.1 + 0.2, 1e-30, 1 / 3]


def run(file, losses, start=0):
    file.started(start, 100)
    for step, loss in enumerate(losses, start + 1):
        file.stepped(step, {"loss": loss, "tokens": 7})


def test_rows_read_back_as_they_were(tmp_path):
    file = MetricsFile(tmp_path / FILE)
    run(file, LOSSES)
    text = (tmp_path / FILE).read_text()
    assert text.splitlines()[:2] == ["step,loss,tokens", "1,2,7"]
    assert [row["loss"] for row in read_metrics(tmp_path / FILE)] == LOSSES


def test_evaluations_have_columns_of_their_own(tmp_path):
    file = MetricsFile(tmp_path / FILE)
    run(file, LOSSES[:2])
    file.evaluated(2, {"loss": 5.5})
    file.stepped(3, {"loss": 1.5, "tokens": 7})
    assert (tmp_path / FILE).read_text().splitlines() == [
        "step,loss,tokens,evaluation_loss",
        "1,2,7,",
        "2,0.30000000000000004,7,",
        "2,,,5.5",
        "3,1.5,7,",
    ]


@pytest.mark.parametrize("start", [0, 2, 4])
def test_a_run_that_goes_on_cuts_what_came_after(tmp_path, start):
    """Killed after step 4, gone on from a checkpoint of an earlier one: the file of an unbroken run."""
    whole = MetricsFile(tmp_path / "whole.csv")
    run(whole, [*LOSSES, 0.5])
    run(MetricsFile(tmp_path / FILE), [*LOSSES[:start], *[9.0] * (4 - start)])
    run(MetricsFile(tmp_path / FILE), [*LOSSES, 0.5][start:], start)
    assert (tmp_path / FILE).read_text() == (tmp_path / "whole.csv").read_text()


def test_a_row_that_was_broken_off_is_cut(tmp_path):
    run(MetricsFile(tmp_path / FILE), LOSSES)
    text = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(text + "5,0.12")
    assert [row["step"] for row in read_metrics(tmp_path / FILE)] == [1, 2, 3, 4]
    run(MetricsFile(tmp_path / FILE), [0.5], 4)
    assert (tmp_path / FILE).read_text() == text + "5,0.5,7\n"


def test_each_row_is_in_the_file_at_once(tmp_path):
    """A process that is killed takes no row with it."""
    file = MetricsFile(tmp_path / FILE)
    run(file, LOSSES[:1])
    assert len(read_metrics(tmp_path / FILE)) == 1
    file.stepped(2, {"loss": 1.0, "tokens": 7})
    assert len(read_metrics(tmp_path / FILE)) == 2


def test_numbers_that_are_none_stay_so(tmp_path):
    run(MetricsFile(tmp_path / FILE), [float("inf"), float("nan")])
    first, second = (row["loss"] for row in read_metrics(tmp_path / FILE))
    assert first == float("inf")
    assert second != second


def curve(picture):
    """Rows (from the top) of the training curve, for each column of the picture where there is one."""
    colours = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    upper = colours[: len(colours) // 2]
    blue = np.abs(upper - (31, 119, 180)).sum(-1) < 12
    return [np.flatnonzero(column).mean() for column in blue.T if column.any()]


def test_the_plot_shows_the_loss_fall(tmp_path):
    pytest.importorskip("matplotlib")
    file, plot = MetricsFile(tmp_path / FILE), LossPlot(tmp_path / FILE, tmp_path / PLOT)
    run(file, [2.0 - 0.01 * step for step in range(100)])
    plot.saved(100, tmp_path)
    assert Image.open(tmp_path / PLOT).format == "PNG"
    rows = curve(tmp_path / PLOT)
    assert len(rows) > 300
    assert rows[-1] > rows[0] + 100  # pixels: the loss ends lower than it began


@pytest.mark.parametrize("rows", [[], [{"step": 1.0, "loss": 2.0}], [{"step": 1.0, "loss": float("nan")}]])
def test_a_plot_of_next_to_nothing(tmp_path, rows):
    pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(rows, tmp_path / PLOT)
    assert Image.open(tmp_path / PLOT).size[0] > 100


def test_no_screen_is_asked_for(tmp_path):
    """Plots are drawn without the state that matplotlib's ``pyplot`` shares with the program around; and
    nothing is imported before something is drawn.
    """
    pytest.importorskip("matplotlib")
    code = (
        "import sys; from pathlib import Path; from qvl.train.metrics import draw;"
        "assert not {'matplotlib', 'tensorboard'} & set(sys.modules);"
        f"draw([{{'step': 1, 'loss': 2}}], Path({str(tmp_path / PLOT)!r}));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib_a_warning_says_how_to_get_the_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r'pip install "qvl\[train\]"'):
        found = watchers(tmp_path)
    assert [type(one) for one in found] == [MetricsFile]


def test_what_is_installed_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: True)
    assert [type(one) for one in watchers(tmp_path)] == [MetricsFile, LossPlot, TensorBoard]


def test_tensorboard_scalars_after_a_restart(tmp_path):
    """TensorBoard hides what a run wrote before it was set back."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, losses in ((0, [4.0, 3.0, 9.0]), (2, [2.0])):
        board = TensorBoard(tmp_path)
        board.started(start, 3)
        for step, loss in enumerate(losses, start + 1):
            board.stepped(step, {"loss": loss})
        board.evaluated(3, {"loss": 2.5})
        board.saved(3, tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 4), (2, 3), (3, 2)]
    assert [(e.step, e.value) for e in events.Scalars("evaluation/loss")] == [(3, 2.5)]
