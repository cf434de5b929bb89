"""Settings of one medium as a request gives them: plain, small, known by name, numbers that are numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qvl.errors import InputError, InputTypeError

OPTION_BYTES = 4096  # of all settings, as JSON
MOST_PIXELS = 2**40  # of any number among them: beyond it, arithmetic on sizes would overflow


def plain_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are given, small enough to be handed on."""
    options = {name: value for name, value in given.items() if value is not None}
    try:
        size = len(json.dumps(options, allow_nan=False))
    except (TypeError, ValueError):
        raise InputError("the settings of a medium must be plain numbers, texts and lists") from None
    if size > OPTION_BYTES:
        raise InputError(
            f"the settings of a medium may have {OPTION_BYTES:,} characters, these have {size:,}"
        )
    return options


def checked_options(given: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The options that are given, all of them known by ``names`` and their numbers finite and not absurd."""
    own = {name: value for name, value in given.items() if value is not None}
    for name, value in own.items():
        if name not in names:
            offered = ", ".join(name for name in names if name != "do_sample_frames")
            raise InputError(f"a part of this kind has no setting {name!r:.80}: expected some of {offered}")
        if name in ("pages", "frame_sampling", "do_sample_frames"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST_PIXELS:
            raise InputTypeError(f"{name} must be a number of a sensible size, not {value!r:.80}")
    for name in ("min_pixels", "max_pixels", "total_pixels"):
        if own.get(name, 1) < 1 or own.get(name, 1) % 1:
            raise InputError(f"{name} must be a whole number of pixels, at least 1, not {own[name]!r}")
    return own
