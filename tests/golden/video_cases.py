"""Synthetic videos and settings shared by make_video_golden.py and the tests: NumPy only, the same
everywhere.
"""

import itertools

import numpy as np


def case(frames: int, height: int, width: int, *, dtype: str = "uint8", layout: str = "THWC", **more) -> dict:
    options = {name: more.pop(name) for name in list(more) if name not in ("file_fps", "tensor")}
    return {"shape": (frames, height, width), "dtype": dtype, "layout": layout, "options": options, **more}


CASES = {
    "small_grows": case(4, 60, 90),
    "exact_size": case(4, 336, 336),
    "odd_frames": case(5, 120, 200),
    "one_frame": case(1, 150, 100),
    "portrait_shrinks": case(2, 1100, 700),
    "long_sides": case(2, 40, 900),
    "channels_first": case(4, 100, 130, layout="TCHW"),
    "tensor": case(3, 110, 80, layout="TCHW", tensor=True),
    "own_size": case(2, 80, 300, size={"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 16}),
    "no_resize": case(4, 56, 84, do_resize=False),
    "no_rescale": case(2, 70, 70, do_rescale=False),
    "no_normalize": case(2, 70, 70, do_normalize=False),
    "neither": case(2, 70, 70, do_rescale=False, do_normalize=False),
    "other_mean": case(2, 70, 70, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.25, 0.2]),
    "bilinear": case(2, 90, 70, resample=2),
    "nearest": case(2, 90, 70, resample=0),
    "floats": case(2, 90, 70, dtype="float32"),
    "patch_sizes": case(4, 90, 130, patch_size=16, merge_size=1),
    "fps_2_of_30": case(75, 40, 60, file_fps=30.0, fps=2),
    "fps_4_of_25": case(50, 40, 60, file_fps=25.0, fps=4),
    "fps_min_frames": case(20, 40, 60, file_fps=30.0, fps=1),
    "fps_max_frames": case(60, 40, 60, file_fps=10.0, fps=8, max_frames=10),
    "num_frames": case(33, 40, 60, file_fps=24.0, num_frames=7),
}

# total frames, file fps, options of sample_frames
INDEX_CASES = [
    (total, file_fps, {name: value})
    for total, file_fps in itertools.product(
        (2, 3, 4, 5, 7, 10, 31, 48, 90, 101, 250, 719, 1000, 2997, 7193),
        (10.0, 23.976023976023978, 25.0, 30.0),
    )
    for name, value in (
        ("fps", 0.5),
        ("fps", 1),
        ("fps", 2),
        ("fps", 2.0 / 3),
        ("num_frames", 2),
        ("num_frames", 6),
    )
]
INDEX_CASES += [(7193, 29.97, {"fps": 5, "max_frames": 33}), (300, 30.0, {"fps": 1, "min_frames": 17})]


def make_video(settings: dict) -> np.ndarray:
    """Waves of every size with noise on them; float videos hold fractions of 255."""
    frames, height, width = settings["shape"]
    t, y, x, c = np.ogrid[:frames, :height, :width, :3]
    waves = (x * (3 + c) + y * (7 - c) + t * 11 + (x * y) // 17 + ((x // 9 + y // 7 + t) % 2) * 90) % 256
    noise = (x * 7919 + y * 104729 + t * 1299709 + c * 15485863) * 2654435761 % 4294967296 >> 27
    video = ((waves + noise) % 256).astype(np.uint8)
    if settings["dtype"] == "float32":
        video = video.astype(np.float32) * np.float32(0.75)
    return np.ascontiguousarray(video.transpose(0, 3, 1, 2)) if settings["layout"] == "TCHW" else video


def sample_places(size: int) -> np.ndarray:
    return np.linspace(0, size - 1, min(size, 64)).astype(np.int64)
