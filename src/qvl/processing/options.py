"""What the arguments of a call and the attributes of a processor come to together; for both kinds of
processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qvl.errors import InputError
from qvl.processing.patches import PatchShape, as_tuple

CLIP_MEAN = (
    0.48145466,
    0.4578275,
    0.40821073,
)  # of OpenAI's CLIP, whose normalisation the vision tower was given
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def pick(value: Any, default: Any) -> Any:
    return default if value is None else value


def layout_name(layout: Any) -> str | None:
    """A data format as its plain name; transformers' ChannelDimension is an enum of these strings."""
    name = getattr(layout, "value", layout)
    if name not in (None, "channels_first", "channels_last"):
        raise InputError(f"A data format must be 'channels_first' or 'channels_last', not {layout!r}")
    return name


def mean_and_std(
    processor: Any,
    do_normalize: bool | None,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation of one call, None for both where nothing is normalised."""
    if not pick(do_normalize, processor.do_normalize):
        return None, None
    return as_tuple(pick(mean, processor.image_mean)), as_tuple(pick(std, processor.image_std))


def patch_shape(
    processor: Any, patch_size: int | None, temporal_patch_size: int | None, merge_size: int | None
) -> PatchShape:
    return PatchShape(
        pick(patch_size, processor.patch_size),
        pick(temporal_patch_size, processor.temporal_patch_size),
        pick(merge_size, processor.merge_size),
    )


def chosen(own: Mapping[str, Any] | None, names: Sequence[str]) -> dict[str, Any]:
    """The entries of one medium's overrides that are not None; InputError for a name that is none of
    ``names``.
    """
    for name in own or {}:
        if name not in names:
            raise InputError(f"A medium has no setting {name!r}: expected some of {', '.join(names)}")
    return {name: value for name, value in (own or {}).items() if value is not None}
