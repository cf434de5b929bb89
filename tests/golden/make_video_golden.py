"""Writes video_golden.npz and frame_indices.npz: what transformers' video processor makes of synthetic
videos.

That processor needs torchvision, which does not import beside the CPU build of torch that the tests use, so
it runs in an environment of its own:

    python -m venv golden
    golden/bin/pip install torch==2.14.1 torchvision==0.29.1 "transformers==4.57.*" av pillow numpy
    golden/bin/python tests/golden/make_video_golden.py

Videos are made anew from ``video_cases`` here and in the tests. Of each result the file keeps the grid, the
SHA-256 of all pixel values (float32, little endian), and some of the values to see how far off a mismatch
is.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.video_utils import VideoMetadata
from video_cases import CASES, INDEX_CASES, make_video, sample_places

HERE = Path(__file__).parent


def run_case(case: dict) -> dict[str, np.ndarray]:
    processor = Qwen2VLVideoProcessor(size={"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28})
    video = make_video(case)
    options = dict(case["options"])
    if "file_fps" in case:
        options["video_metadata"] = [{"total_num_frames": len(video), "fps": case["file_fps"]}]
        options["do_sample_frames"] = True
    given = torch.from_numpy(video) if case.get("tensor") else video
    out = processor(videos=[given], return_tensors="pt", return_metadata=True, **options)
    values = out["pixel_values_videos"].contiguous().numpy()
    indices = out["video_metadata"][0].frames_indices
    return {
        "grid": out["video_grid_thw"].numpy()[0],
        "digest": np.frombuffer(hashlib.sha256(values.astype("<f4").tobytes()).digest(), np.uint8),
        "values": values.ravel()[sample_places(values.size)].astype(np.float32),
        "indices": np.asarray(indices, np.int64),
    }


def run_index_case(total: int, file_fps: float, options: dict) -> np.ndarray:
    """The frame numbers, or -1 alone where transformers raises."""
    processor = Qwen2VLVideoProcessor(size={"shortest_edge": 3136, "longest_edge": 602112})
    metadata = VideoMetadata(total_num_frames=total, fps=file_fps)
    try:
        return np.asarray(processor.sample_frames(metadata, **options), np.int64)
    except (ValueError, ZeroDivisionError):
        return np.array([-1])


def main() -> None:
    videos = {f"{name}/{key}": value for name, case in CASES.items() for key, value in run_case(case).items()}
    np.savez_compressed(HERE / "video_golden.npz", **videos)
    rows = [run_index_case(*case) for case in INDEX_CASES]
    np.savez_compressed(
        HERE / "frame_indices.npz", lengths=np.array([len(row) for row in rows]), indices=np.concatenate(rows)
    )


if __name__ == "__main__":
    main()
