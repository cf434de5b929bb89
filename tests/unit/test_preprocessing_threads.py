"""Bytes looked up in threads: the same numbers as the arithmetic gives, for pictures and for videos."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from qvl.errors import MediaError
from qvl.processing import byte_patches, image, patches, threads
from qvl.processing.image import Qwen2VLImageProcessor
from qvl.processing.media.rgb import to_rgb
from qvl.processing.options import CLIP_MEAN, CLIP_STD
from qvl.processing.patches import FusedNormalise, PatchShape, TwoStepNormalise, all_patches, to_patches
from qvl.processing.threads import as_they_come, in_threads

SHAPES = [PatchShape(), PatchShape(7, 3, 3), PatchShape(16, 1, 1), PatchShape(2, 4, 2)]
RULES = [
    TwoStepNormalise(1 / 255, CLIP_MEAN, CLIP_STD),
    TwoStepNormalise(None, None, None),
    FusedNormalise(1 / 255, CLIP_MEAN, CLIP_STD),
    FusedNormalise(1 / 127, None, None),
]


@pytest.fixture(params=[1, 3], autouse=True)
def number_of_threads(request, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    return request.param


def frames(total, height, width, channels=3, seed=0):
    """As pictures have them: channels lie last in memory."""
    values = np.random.default_rng(seed).integers(0, 256, (total, height, width, channels), np.uint8)
    return torch.from_numpy(values).permute(0, 3, 1, 2)


def by_arithmetic(frames_TCHW, shape, normalise):
    """Patches without a table, one after the other."""
    total, _, height, width = frames_TCHW.shape
    depth, side, merge = shape.temporal_patch_size, shape.patch_size, shape.merge_size
    repeated = frames_TCHW[-1:].expand(-total % depth, -1, -1, -1)
    padded = torch.cat([frames_TCHW, repeated])
    rows = []
    for step in padded.split(depth):
        for y in range(0, height, side * merge):
            for x in range(0, width, side * merge):
                for number in range(merge**2):
                    top, left = y + number // merge * side, x + number % merge * side
                    cut = step[:, :, top : top + side, left : left + side].transpose(0, 1)
                    rows.append(normalise(cut.reshape(1, cut.shape[0], depth, -1)).flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("normalise", RULES, ids=lambda rule: f"{type(rule).__name__}-{rule.mean is None}")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"patch{shape.patch_size}")
@pytest.mark.parametrize("total", [1, 2, 5])
def test_bytes_give_what_the_arithmetic_gives(monkeypatch, total, shape, normalise):
    monkeypatch.setattr(byte_patches, "PIECE", 3000)  # several pieces
    medium = frames(total, 3 * shape.factor, 4 * shape.factor)
    rows_PC, grid = to_patches(medium, shape, normalise)
    wanted = by_arithmetic(medium, shape, normalise)
    assert rows_PC.dtype == wanted.dtype and torch.equal(rows_PC, wanted)
    assert (grid.h, grid.w) == (3 * shape.merge_size, 4 * shape.merge_size)


def test_several_media_and_one_channel():
    media = [frames(1, 56, 84, 1), frames(3, 28, 56, 1, seed=1), frames(1, 28, 28, 1, seed=2)]
    rule = TwoStepNormalise(1 / 255, (0.5,), (0.25,))
    rows_PC, grids = all_patches(media, PatchShape(), rule)
    assert torch.equal(rows_PC, torch.cat([by_arithmetic(medium, PatchShape(), rule) for medium in media]))
    assert [grid.patches for grid in grids] == [24, 16, 4]


def test_bytes_beside_floats_are_no_table():
    media = [frames(1, 28, 28), frames(1, 28, 56).float()]
    rows_PC, _ = all_patches(media, PatchShape(), RULES[0])
    assert torch.equal(rows_PC, torch.cat([by_arithmetic(m, PatchShape(), RULES[0]) for m in media]))


def test_bytes_are_not_normalised_one_by_one(monkeypatch):
    monkeypatch.setattr(patches, "_normalised", None)
    Qwen2VLImageProcessor()(Image.new("RGB", (60, 60)))


def pictures():
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (50 + 20 * n, 90, 3), np.uint8), "RGB") for n in range(4)]


def test_several_pictures_give_what_each_gives_alone(tmp_path):
    files = []
    for number, picture in enumerate(pictures()):
        files.append(str(tmp_path / f"{number}.png"))
        picture.save(files[-1])
    processor = Qwen2VLImageProcessor()
    for media in (pictures(), files):
        together = processor(media, return_tensors="pt")
        alone = [processor(medium, return_tensors="pt") for medium in media]
        assert torch.equal(together["pixel_values"], torch.cat([one["pixel_values"] for one in alone]))
        assert torch.equal(together["image_grid_thw"], torch.cat([one["image_grid_thw"] for one in alone]))


def test_one_open_file_may_be_named_twice():
    file = io.BytesIO()
    pictures()[0].save(file, "PNG")
    lazily = Image.open(file)
    for source in (file, lazily):
        rows_PC = Qwen2VLImageProcessor()([source] * 6, return_tensors="pt")["pixel_values"]
        assert torch.equal(rows_PC, rows_PC[: len(rows_PC) // 6].repeat(6, 1))


def test_files_are_opened_in_threads_and_the_callers_pictures_are_not(
    tmp_path, monkeypatch, number_of_threads
):
    pictures()[0].save(tmp_path / "a.png")
    seen = []
    load = image.load_image
    monkeypatch.setattr(
        image, "load_image", lambda *a, **k: (seen.append(threading.current_thread().name), load(*a, **k))[1]
    )
    Qwen2VLImageProcessor()([tmp_path / "a.png"] * 4)
    assert all(name.startswith("qvl") == (number_of_threads > 1) for name in seen) and len(seen) == 4
    seen.clear()
    Qwen2VLImageProcessor()([io.BytesIO((tmp_path / "a.png").read_bytes()), pictures()[1]])
    assert "MainThread" in seen[0] and "MainThread" in seen[1]


def test_an_error_in_a_thread_is_the_callers(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"broken\.png"):
        Qwen2VLImageProcessor()([*pictures(), str(tmp_path / "broken.png")])


def test_a_warning_about_values_is_the_callers():
    fractions = np.zeros((56, 56, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Qwen2VLImageProcessor()([fractions, fractions])
    assert len(caught) == 2


def test_a_picture_that_is_rgb_is_not_copied():
    picture = pictures()[0]
    assert to_rgb(picture) is picture
    picture.info["transparency"] = (1, 2, 3)
    assert to_rgb(picture) is not picture


def test_order_and_errors_of_threads():
    def late(number):
        time.sleep(0.02 / (number + 1))
        if number == 7:
            raise ValueError("seven")
        return number

    assert in_threads(late, range(6)) == [*range(6)]
    assert [*as_they_come(late, iter(range(6)))] == [*range(6)]
    for run in (in_threads, as_they_come):
        with pytest.raises(ValueError, match="seven"):
            list(run(late, range(9)))


def test_what_comes_later_waits(number_of_threads):
    made, taken = 0, 0

    def items():
        nonlocal made
        for number in range(40):
            made += 1
            yield number

    for _ in as_they_come(lambda number: number, items()):
        taken += 1
        assert made - taken <= number_of_threads
    assert (made, taken) == (40, 40)


def test_not_more_threads_than_media_that_memory_is_for(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 500)
    assert threads.threads() == threads.MOST


PEAK = """
from pathlib import Path
from PIL import Image
from qvl import Qwen2VLImageProcessor

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

processor = Qwen2VLImageProcessor(max_pixels=12_845_056)
picture = Image.effect_noise((2000, 1960), 60).convert("RGB")
processor(Image.new("RGB", (56, 56)), return_tensors="pt")
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
rows_PC = processor(picture, return_tensors="pt")["pixel_values"]
print(resident("VmHWM") - before, rows_PC.nbytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_large_picture_needs_little_more_than_its_patches():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, rows = map(int, done.stdout.split())
    assert rows > 90e6
    assert peak <= 1.3 * rows  # an eighth is the resized picture, as Pillow's and as an array
