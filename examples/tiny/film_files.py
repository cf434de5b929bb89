"""Films as files, as people have them."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_film(path: Path, frames: Iterable[np.ndarray], rate: float, *, exact: bool = False) -> None:
    """H.264. ``frames``: uint8 (H, W, 3); ``rate``: of them per second.

    ``exact``: in RGB and without loss; else as players like it, with half the colours' resolution.
    """
    codec, form = ("libx264rgb", "rgb24") if exact else ("libx264", "yuv420p")
    options = {"crf": "0", "preset": "veryslow"} if exact else {"crf": "12"}
    with av.open(str(path), "w") as container:
        stream = None
        for frame_HWC in frames:
            if stream is None:
                stream = container.add_stream(
                    codec, rate=Fraction(rate).limit_denominator(8), options=options
                )
                stream.height, stream.width, stream.pix_fmt = (*frame_HWC.shape[:2], form)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())
