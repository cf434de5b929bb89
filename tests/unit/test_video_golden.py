"""Video processor against golden files from transformers 4.57 (tests/golden/make_video_golden.py)."""

import hashlib
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from qvl.errors import InputError
from qvl.processing.video.processor import Qwen2_5_VLVideoProcessor

GOLDEN = Path(__file__).parents[1] / "golden"
cases = runpy.run_path(str(GOLDEN / "video_cases.py"))
CASES, INDEX_CASES = cases["CASES"], cases["INDEX_CASES"]


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "video_golden.npz") as file:
        return dict(file)


def run(case):
    video = cases["make_video"](case)
    options = dict(case["options"])
    if "file_fps" in case:
        options["video_metadata"] = [{"total_num_frames": len(video), "fps": case["file_fps"]}]
        options["do_sample_frames"] = True
    else:
        options["fps"] = 2.0
    given = torch.from_numpy(video) if case.get("tensor") else video
    return Qwen2_5_VLVideoProcessor()([given], return_tensors="pt", return_metadata=True, **options)


@pytest.mark.parametrize("name", CASES)
def test_pixels_and_geometry_equal(name, golden):
    out = run(CASES[name])
    assert out.video_grid_thw.tolist() == [golden[f"{name}/grid"].tolist()]
    assert list(out.video_metadata[0].frames_indices) == golden[f"{name}/indices"].tolist()
    values = out.pixel_values_videos.numpy()
    np.testing.assert_array_equal(
        values.ravel()[cases["sample_places"](values.size)].astype(np.float32), golden[f"{name}/values"]
    )
    digest = hashlib.sha256(values.astype("<f4").tobytes()).digest()
    assert digest == golden[f"{name}/digest"].tobytes()


def test_frame_numbers_equal_wherever_transformers_gives_some():
    with np.load(GOLDEN / "frame_indices.npz") as file:
        rows = np.split(file["indices"], np.cumsum(file["lengths"])[:-1])
    processor = Qwen2_5_VLVideoProcessor()
    compared, one_too_many = 0, 0
    for (total, fps, options), row in zip(INDEX_CASES, rows, strict=True):
        wanted = row.tolist()
        if wanted == [-1]:
            continue
        if wanted[-1] == total:  # its float steps run past the end: a frame that is not there
            one_too_many += 1
            wanted.pop()
        compared += 1
        metadata = {"total_num_frames": total, "fps": fps}
        assert list(processor.sample_frames(metadata, **options)) == wanted, (total, fps, options)
    assert compared > 300
    assert 0 < one_too_many < 10


def test_more_frames_than_there_are_is_an_error_as_in_transformers():
    with pytest.raises(InputError, match="num_frames=6 is more than the 4 frames"):
        Qwen2_5_VLVideoProcessor().sample_frames({"total_num_frames": 4, "fps": 10.0}, num_frames=6)
