"""Writes small videos for tests, with PyAV."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def write_video(
    path: Path, *, frames: int, size: tuple[int, int] = (64, 48), fps: int = 4, codec: str = "mpeg4"
) -> Path:
    """A video of ``size`` (width, height) in which a bright bar wanders to the right."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            picture_HWC = np.full((height, width, 3), 40, np.uint8)
            picture_HWC[:, number * width // frames :][:, : width // 8] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")))
        container.mux(stream.encode())
    return path
