"""Chosen frames out of a video file without decoding the rest, and what the file holds.

A file is first read through without decoding (a few hundred thousand packets a second), which gives the
exact presentation time of every frame and the keyframes. A chosen frame then costs a seek to the keyframe
before it and the decoding of what lies between. It knows nothing of models, sampling rates or patches.

Legend of shape suffixes: T frames, H height, W width, C channels.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import IO, Any, NoReturn

import numpy as np

from qvl.errors import InputError, MediaDecodeError, MediaError, MediaTooLargeError
from qvl.processing.media.sources import DEFAULT_LIMITS, MediaLimits, describe, opened

SEEK_GAIN = 8  # a seek empties the decoder, so it is worth it only where it skips more frames than this


@dataclass(frozen=True, eq=False)
class PacketIndex:
    """Frames in order of presentation. ``pts``: their times, None where the file does not say."""

    total: int
    pts: np.ndarray | None
    keyframes: tuple[int, ...]  # frame numbers, ascending
    last_duration: int  # ticks; 0 where unknown

    def keyframe_at(self, number: int) -> int:
        """The last keyframe at or before frame ``number`` (0 if the file marks none)."""
        place = bisect_right(self.keyframes, number)
        return self.keyframes[place - 1] if place else 0


class VideoFile:
    """One video stream. Use it in ``with``, or call :meth:`close`.

    ``total_frames``; ``fps``: mean frames per second; ``duration``: seconds; ``width``, ``height``: pixels
    as shown, that is after ``rotation`` (degrees counterclockwise: 0, 90, 180 or 270); ``timestamps_T``:
    float64 seconds of every frame from the first; ``constant_rate``: whether frame k stands at k / fps;
    ``decoded_frames``: how many frames the decoder has returned so far.

    Raises MediaDecodeError for a file without a decodable frame and MediaTooLargeError beyond ``limits``.
    """

    def __init__(self, source: Any, *, limits: MediaLimits = DEFAULT_LIMITS):
        self.name = describe(source)
        self.decoded_frames = 0
        self._limits = limits
        self._container: Any = None
        with ExitStack() as stack:
            self._file: IO[bytes] = stack.enter_context(opened(source, limits))
            stack.callback(self._close_container)
            self._index, self._time_base, rate = self._read_index()
            self._start_over()
            self._look_at_first_frame()
            self._set_times(rate)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def total_frames(self) -> int:
        return self._index.total

    def frames(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Frames by number, never descending, each (H, W, 3) uint8 RGB as a full decode would give it.

        Raises InputError for a number that is not there, MediaDecodeError for a frame that is broken,
        MediaTooLargeError for more numbers than ``limits.sampled_frames``.
        """
        if len(numbers) > self._limits.sampled_frames:
            raise MediaTooLargeError(
                f"{len(numbers)} frames of {self.name} are wanted, more than the "
                f"{self._limits.sampled_frames} of MediaLimits.sampled_frames: lower fps or num_frames"
            )
        picture, before = None, -1
        for number in numbers:
            if not before <= number < self.total_frames or number < 0:
                raise InputError(
                    f"Frames of {self.name} are numbered 0 to {self.total_frames - 1} and asked for in "
                    f"ascending order, got {number}"
                )
            if picture is None or number != before:
                picture, before = self._picture(self._frame(number)), number
            yield picture

    def _frame(self, number: int) -> Any:
        """The decoded frame ``number``, from an earlier keyframe if the nearest turns out too late."""
        start = self._index.keyframe_at(number)
        if number <= self._position or start > self._position + SEEK_GAIN:
            self._seek(start)
        while True:
            frame = self._advance_to(number)
            if frame is not None:
                return frame
            if start <= 0:
                raise MediaDecodeError(f"Frame {number} of {self.name} is missing or broken")
            start = self._index.keyframe_at(start - 1)
            self._seek(start)

    def _advance_to(self, number: int) -> Any | None:
        """Decodes up to frame ``number``; None if the decoder passes it by."""
        for frame in self._frames:
            self.decoded_frames += 1
            self._position = self._number_of(frame)
            if self._position == number:
                return self._sound(frame)
            if self._position > number:
                return None
        return None

    def _sound(self, frame: Any) -> Any:
        """The frame, unless the decoder had to invent a part of it."""
        if frame.is_corrupt:
            raise MediaDecodeError(f"Frame {self._position} of {self.name} is broken")
        return frame

    def _number_of(self, frame: Any) -> int:
        """The number of the frame that was just decoded; a frame that the index lacks leaves it as it was."""
        pts = self._index.pts
        if pts is None:  # nothing to go by but counting
            return self._position + 1
        if frame.pts is None:
            return self._position
        place = int(np.searchsorted(pts, frame.pts))
        return place if place < len(pts) and pts[place] == frame.pts else self._position

    def _seek(self, number: int) -> None:
        """Puts the decoder before frame ``number``, a keyframe or 0."""
        if self._index.pts is None or number == 0:
            self._start_over()
            return
        with self._decoding():
            self._container.seek(int(self._index.pts[number]), stream=self._stream, backward=True)
        self._frames = self._decoder()
        self._position = -1  # where it landed shows with the next frame

    def _start_over(self) -> None:
        self._close_container()
        self._container = self._open_container()
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self._frames = self._decoder()
        self._position = -1

    def _close_container(self) -> None:
        if self._container is not None:
            self._container.close()

    def _decoder(self) -> Iterator[Any]:
        with self._decoding():
            yield from self._container.decode(self._stream)

    def _picture(self, frame: Any) -> np.ndarray:
        with self._decoding():
            if (frame.width, frame.height) != self._coded_size:  # a stream may change its size midway
                frame = frame.reformat(width=self._coded_size[0], height=self._coded_size[1], format="rgb24")
            picture_HWC = frame.to_ndarray(format="rgb24")
        turns = self.rotation // 90
        return np.ascontiguousarray(np.rot90(picture_HWC, turns)) if turns else picture_HWC

    def _look_at_first_frame(self) -> None:
        """Size and rotation, which only a decoded frame tells for sure."""
        first = next(self._frames, None)
        if first is None:
            raise MediaDecodeError(f"{self.name} holds no frame that can be decoded")
        self.decoded_frames += 1
        self._position = self._number_of(first)
        self._coded_size = (first.width, first.height)
        self.rotation = round(first.rotation / 90) * 90 % 360
        sideways = self.rotation in (90, 270)
        self.width, self.height = self._coded_size[::-1] if sideways else self._coded_size

    def _set_times(self, rate: Fraction | None) -> None:
        total = self.total_frames
        if self._index.pts is None:
            self.fps = float(rate or 25)
            self.timestamps_T = np.arange(total) / self.fps
            self.duration, self.constant_rate = total / self.fps, True
            return
        ticks = self._index.pts - self._index.pts[0]
        self.timestamps_T = ticks * float(self._time_base)
        span = float(self.timestamps_T[-1])
        self.fps = float(rate) if rate else max(total - 1, 1) / span if span > 0 else 25.0
        ideal = np.arange(total) / self.fps
        self.constant_rate = bool(np.abs(self.timestamps_T - ideal).max() <= 0.5 / self.fps)
        if self.constant_rate:
            self.duration = total / self.fps
            return
        last = self._index.last_duration * float(self._time_base) or span / max(total - 1, 1)
        self.duration = span + last
        self.fps = total / self.duration

    def _read_index(self) -> tuple[PacketIndex, Fraction, Fraction | None]:
        """Reads the file through without decoding."""
        with self._open_container() as container, self._decoding():
            stream = container.streams.video[0]
            self._check_size(stream)
            packets, hidden = [], 0
            for packet in container.demux(stream):
                if packet.is_discard:  # cut away by an edit list: no decoder shows it
                    hidden += 1
                elif packet.size:
                    packets.append((packet.pts, packet.is_keyframe, packet.duration or 0))
                if len(packets) > self._limits.video_frames:
                    raise MediaTooLargeError(
                        f"{self.name} has more than {self._limits.video_frames:,} frames, "
                        "the limit set by MediaLimits.video_frames"
                    )
            if not packets:
                raise MediaDecodeError(f"{self.name} has no frames: its video stream is empty")
            if "mp4" in container.format.name and len(packets) + hidden < stream.frames:
                raise MediaDecodeError(
                    f"{self.name} is truncated: it declares {stream.frames} frames and holds {len(packets)}"
                )
            return _presentation_order(packets), stream.time_base, stream.average_rate

    def _check_size(self, stream: Any) -> None:
        pixels = stream.width * stream.height
        if pixels > self._limits.video_pixels:
            raise MediaTooLargeError(
                f"The frames of {self.name} are {stream.width} x {stream.height} = {pixels:,} pixels, "
                f"more than the {self._limits.video_pixels:,} of MediaLimits.video_pixels"
            )

    def _open_container(self) -> Any:
        import av  # here, since most media are pictures: FFmpeg loads only where a video is opened

        self._file.seek(0)
        with self._decoding():
            # genpts: AVI and the like store decoding times only. io_open: playlists may not open other files.
            # mode: taken from the stream otherwise, and a download's is "w+b".
            container = av.open(
                self._file, "r", options={"fflags": "+genpts"}, io_open=self._refuse_other_files
            )
        if not container.streams.video:
            container.close()
            raise MediaDecodeError(f"{self.name} has no video stream")
        if container.streams.video[0].codec_context is None:
            container.close()
            raise MediaDecodeError(f"{self.name} is broken, or of a codec that this FFmpeg cannot decode")
        return container

    def _refuse_other_files(self, url: str, *_: Any) -> NoReturn:
        raise MediaDecodeError(f"{self.name} refers to another file or address ({url}), which is not opened")

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        """FFmpeg's errors as one MediaDecodeError that names the file."""
        import av

        try:
            yield
        except MediaError:
            raise
        except (av.FFmpegError, OSError, ValueError, IndexError) as error:
            raise MediaDecodeError(f"{self.name} is not a video that can be decoded: {error}") from error


def _presentation_order(packets: list[tuple[int | None, bool, int]]) -> PacketIndex:
    known = [(pts, key, duration) for pts, key, duration in packets if pts is not None]
    known.sort()
    pts = np.array([pts for pts, _, _ in known], np.int64)
    if len(known) < len(packets) or np.any(np.diff(pts) == 0):
        return PacketIndex(len(packets), None, (), 0)
    keyframes = tuple(number for number, (_, key, _) in enumerate(known) if key)
    return PacketIndex(len(packets), pts, keyframes, known[-1][2])
