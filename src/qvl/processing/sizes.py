"""How large a picture or frame becomes: the smart_resize rule and where its limits are kept.

Sizes are (height, width) in pixels; limits count pixels of one picture or frame. Nothing here touches pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from qvl.errors import InputError, InputTypeError, MediaError

MAX_ASPECT_RATIO = 200


def smart_resize(
    height: int, width: int, factor: int = 28, min_pixels: int = 56 * 56, max_pixels: int = 14 * 14 * 4 * 1280
) -> tuple[int, int]:
    """(height, width) nearest to the given, in pixels, such that both are multiples of ``factor``, their
    product lies within ``min_pixels`` and ``max_pixels``, and the aspect ratio is kept as well as can be.

    The rule of the Qwen2-VL release (rounding half to even). Raises MediaError for an aspect ratio above 200
    and for an empty picture, InputError for limits that no picture can keep.
    """
    _check_limits(min_pixels, max_pixels)
    if min(height, width) < 1:
        raise MediaError(f"A picture must have at least one pixel each way, got {height} x {width}")
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise MediaError(
            f"The picture's aspect ratio must be at most {MAX_ASPECT_RATIO}, got {ratio:g} "
            f"({height} high, {width} wide): crop it or cut it into pieces"
        )
    rounded_height = round(height / factor) * factor
    rounded_width = round(width / factor) * factor
    if rounded_height * rounded_width > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        rounded_height = max(factor, math.floor(height / shrink / factor) * factor)
        rounded_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif rounded_height * rounded_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rounded_height = math.ceil(height * grow / factor) * factor
        rounded_width = math.ceil(width * grow / factor) * factor
    return rounded_height, rounded_width


def _check_limits(least: Any, most: Any) -> None:
    numbers = isinstance(least, Real) and isinstance(most, Real)
    if not numbers or not (least >= 0 and most > 0):
        raise InputError(
            f"min_pixels and max_pixels must be numbers of pixels, such as 256 * 28 * 28 (256 tokens), "
            f"max_pixels above 0; got {least!r} and {most!r}"
        )


def target_size(settings: Any, height: int, width: int) -> tuple[int, int]:
    """(height, width) after resizing: from the medium's own size or from ``resized_height`` and
    ``resized_width``.
    """
    if (settings.resized_height is None) != (settings.resized_width is None):
        raise InputError("resized_height and resized_width go together: give both or neither")
    if settings.resized_height is not None:
        height, width = settings.resized_height, settings.resized_width
        for name, value in (("resized_height", height), ("resized_width", width)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise InputTypeError(f"{name} must be a whole number of pixels, not {value!r}")
    return smart_resize(height, width, settings.shape.factor, settings.min_pixels, settings.max_pixels)


class PixelLimits:
    """``size`` as a dict of pixel counts, readable and settable as ``min_pixels`` and ``max_pixels`` too."""

    size: dict[str, int]

    @property
    def min_pixels(self) -> int:
        return self.size["shortest_edge"]

    @min_pixels.setter
    def min_pixels(self, value: int) -> None:
        self.size = {**self.size, "shortest_edge": value}

    @property
    def max_pixels(self) -> int:
        return self.size["longest_edge"]

    @max_pixels.setter
    def max_pixels(self, value: int) -> None:
        self.size = {**self.size, "longest_edge": value}

    def _limits(
        self, size: Mapping[str, int] | None, min_pixels: int | None, max_pixels: int | None
    ) -> tuple[int, int]:
        """The (fewest, most) pixels of one call: an explicit ``size`` wins, then the two numbers, then what
        is stored.
        """
        if size is not None:
            checked = checked_size(size)
            return checked["shortest_edge"], checked["longest_edge"]
        return (
            self.min_pixels if min_pixels is None else min_pixels,
            self.max_pixels if max_pixels is None else max_pixels,
        )


def checked_size(size: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(size, Mapping) or not {"shortest_edge", "longest_edge"} <= size.keys():
        raise InputError(
            f"size must contain 'shortest_edge' and 'longest_edge' (fewest and most pixels), got {size!r}"
        )
    return {name: size[name] for name in ("shortest_edge", "longest_edge")}
