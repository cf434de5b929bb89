"""Checkpoints on disk: whole or not there, found again, thrown away when old, published."""

import os

import pytest

from qvl.errors import CheckpointError
from qvl.train import saving


def writer(text, names=("model.safetensors", saving.STATE)):
    def write(folder):
        for name in names:
            (folder / name).write_text(text)

    return write


def test_a_checkpoint_is_found_again(tmp_path):
    assert saving.newest(tmp_path) is None
    saving.save_whole(tmp_path, 10, writer("ten"))
    folder = saving.save_whole(tmp_path, 200, writer("later"))
    assert folder.name == "step-00000200"
    assert saving.newest(tmp_path) == (200, folder)
    assert [step for step, _ in saving.complete(tmp_path)] == [10, 200]


def test_a_step_that_is_there_stays(tmp_path):
    saving.save_whole(tmp_path, 10, writer("first"))
    folder = saving.save_whole(tmp_path, 10, writer("second"))
    assert (folder / "model.safetensors").read_text() == "first"
    assert len(list((tmp_path / saving.FOLDER).iterdir())) == 1


def test_a_failed_write_leaves_the_earlier_ones(tmp_path):
    def fail(folder):
        (folder / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    saving.save_whole(tmp_path, 1, writer("one"))
    with pytest.raises(
        CheckpointError, match=r"the checkpoint of step 2 cannot be written into .*No space left"
    ):
        saving.save_whole(tmp_path, 2, fail)
    assert [step for step, _ in saving.complete(tmp_path)] == [1]
    saving.save_whole(tmp_path, 2, writer("two"))
    assert [step for step, _ in saving.complete(tmp_path)] == [1, 2]


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 3, 4]), (1, [4]), (3, [2, 3, 4]), (9, [1, 2, 3, 4])])
def test_old_ones_go(tmp_path, keep, left):
    for step in (1, 2, 3, 4):
        saving.save_whole(tmp_path, step, writer("x"))
    broken = tmp_path / saving.FOLDER / ".step-00000005.partial"
    broken.mkdir()
    saving.tidy(tmp_path, keep)
    assert [step for step, _ in saving.complete(tmp_path)] == left
    assert not broken.exists()


def test_published_files_are_whole_and_old_ones_stay_valid(tmp_path):
    saving.publish(saving.save_whole(tmp_path, 1, writer("one")), tmp_path)
    with (tmp_path / "model.safetensors").open() as reading:
        saving.publish(saving.save_whole(tmp_path, 2, writer("two")), tmp_path)
        assert reading.read() == "one"
    assert (tmp_path / "model.safetensors").read_text() == "two"
    assert not (tmp_path / saving.STATE).exists(), "the trainer's own state is nobody else's"
    saving.tidy(tmp_path, 1)
    assert (tmp_path / "model.safetensors").read_text() == "two"


def test_publishing_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    saving.publish(saving.save_whole(tmp_path, 1, writer("one")), tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "one"
    assert not list(tmp_path.glob(".*"))
