"""The benchmarks compare like with like: each task does the same work in qvl and in transformers."""

import pytest
import torch

from benchmarks import readme, tasks


@pytest.mark.oracle
def test_the_same_patches():
    ours, theirs = (tasks.pixels(who)() for who in ("qvl", "peer"))
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])


@pytest.mark.oracle
@pytest.mark.parametrize("task", ["tokens", "batch"])
def test_the_same_tokens(task, monkeypatch):
    monkeypatch.setattr(tasks, "NEW_TOKENS", 4)
    ours, theirs = (tasks.TASKS[task](who)() for who in ("qvl", "peer"))
    assert ours.tolist() == theirs.tolist()


def test_figures_are_written_where_the_readme_keeps_them():
    text = readme.README.read_text(encoding="utf-8")
    assert text.count(readme.BEGIN) == text.count(readme.END) == 1


def test_a_process_that_says_nothing_is_no_measurement():
    with pytest.raises(RuntimeError, match="printed nothing"):
        readme.process([readme.sys.executable, "-c", ""])


@pytest.mark.parametrize(("seconds", "text"), [(0.0123, "12 ms"), (1.234, "1.23 s")])
def test_times_are_read_easily(seconds, text):
    assert readme.shown(seconds) == text
