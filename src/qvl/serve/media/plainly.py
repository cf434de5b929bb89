"""What decoders raise, in qvl's own words: nothing that a library says of a stranger's file goes further."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qvl.errors import (
    InputError,
    InputTypeError,
    MediaDecodeError,
    MediaTooLargeError,
    MissingDependencyError,
)
from qvl.serve.settings import Limits


@contextmanager
def plain_errors(noun: str, limits: Limits) -> Iterator[None]:
    """Whatever decoders raise, as errors in qvl's own words.

    MemoryError goes through: what to do then is a matter of the process.
    """
    try:
        yield
    except MediaTooLargeError as error:
        raise MediaTooLargeError(_too_large(str(error), noun, limits)) from error
    except MediaDecodeError as error:
        if error.__cause__ is None and "MediaLimits" not in str(error):
            raise
        raise MediaDecodeError(f"the {noun} is broken or truncated and cannot be decoded") from error
    except (InputError, InputTypeError, MissingDependencyError, MemoryError):
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            raise MemoryError from error
        raise MediaDecodeError(f"the {noun} is broken or truncated and cannot be decoded") from error


def _is_out_of_memory(error: Exception) -> bool:
    """torch says so in a RuntimeError."""
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("not enough memory", "can't allocate memory", "bad_alloc")
    )


def _too_large(message: str, noun: str, limits: Limits) -> str:
    """The message of the library, which speaks of a setting that people of a server cannot reach."""
    if "MediaLimits" not in message:
        return message
    for name in ("video_frames", "sampled_frames", "video_pixels"):
        if name in message:
            unit = "pixels a frame" if name == "video_pixels" else "frames"
            return f"the {noun} has more {unit} than the {getattr(limits, name):,} allowed"
    return f"the {noun} is larger than this server allows"
