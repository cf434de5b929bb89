"""Pictures to the patches of the vision tower: smart_resize and Qwen2VLImageProcessor.

Pixel values equal those of transformers 4.57's Pillow-based processor bit for bit. Files and URLs are opened by
``media``; a PIL image handed over directly is only converted with ``convert("RGB")``, as transformers does.

Legend of shape suffixes: T frames, H height, W width, C channels or, at the end of PC, values of one patch, P patches.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from qvl.errors import InputError, InputTypeError, MediaError, UnsupportedError
from qvl.processing.features import BatchFeature
from qvl.processing.media import load_image
from qvl.processing.patches import PatchShape, TwoStepNormalise, as_tuple, to_patches
from qvl.processing.pretrained import SavedSettings
from qvl.processing.rgb import array_to_pil, as_array, channel_layout
from qvl.types import Grid

__all__ = ["IMAGE_OVERRIDES", "Qwen2VLImageProcessor", "smart_resize"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP, whose normalisation the vision tower was given
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_ASPECT_RATIO = 200
# What a message may say about one picture
IMAGE_OVERRIDES = ("min_pixels", "max_pixels", "resized_height", "resized_width")


def smart_resize(
    height: int, width: int, factor: int = 28, min_pixels: int = 56 * 56, max_pixels: int = 14 * 14 * 4 * 1280
) -> tuple[int, int]:
    """(height, width) nearest to the given, in pixels, such that both are multiples of ``factor``, their product lies
    within ``min_pixels`` and ``max_pixels``, and the aspect ratio is kept as well as can be.

    The rule of the Qwen2-VL release (rounding half to even). Raises MediaError for an aspect ratio above 200 and for
    an empty picture.
    """
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


@dataclass(frozen=True)
class ImageSettings:
    """All that one picture's processing depends on."""

    do_resize: bool
    resample: int
    min_pixels: int
    max_pixels: int
    do_convert_rgb: bool
    normalise: TwoStepNormalise
    shape: PatchShape
    input_data_format: str | None = None
    resized_height: int | None = None
    resized_width: int | None = None

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        return target_size(self, height, width)


def target_size(settings: Any, height: int, width: int) -> tuple[int, int]:
    """(height, width) after resizing: from the medium's own size or from ``resized_height`` and ``resized_width``."""
    if (settings.resized_height is None) != (settings.resized_width is None):
        raise InputError("resized_height and resized_width go together: give both or neither")
    if settings.resized_height is not None:
        height, width = settings.resized_height, settings.resized_width
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
        """The (fewest, most) pixels of one call: an explicit ``size`` wins, then the two numbers, then what is stored."""
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
            f"size must contain 'shortest_edge' and 'longest_edge', the fewest and the most pixels, got {size!r}"
        )
    return {name: size[name] for name in ("shortest_edge", "longest_edge")}


class Qwen2VLImageProcessor(PixelLimits, SavedSettings):
    """Resizes, normalises and cuts pictures into patches; signatures as in transformers 4.57.

    ``size``: {"shortest_edge": fewest, "longest_edge": most} pixels after resizing; ``min_pixels`` and ``max_pixels``
    win over it. Both sides end as multiples of ``patch_size * merge_size``. ``resample``: a Pillow filter number.
    ``image_mean``, ``image_std``: one number or one per channel. Further keywords are kept as attributes and saved.
    """

    files = ("preprocessor_config.json",)
    section = "image_processor"
    type_entry = ("image_processor_type", "Qwen2VLImageProcessor")
    model_input_names = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")

    def __init__(
        self,
        do_resize: bool = True,
        size: Mapping[str, int] | None = None,
        resample: int = Image.Resampling.BICUBIC,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        do_convert_rgb: bool = True,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        patch_size: int = 14,
        temporal_patch_size: int = 2,
        merge_size: int = 2,
        **kwargs: Any,
    ) -> None:
        for name, value in kwargs.items():
            setattr(self, name, value)
        self.size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280} if size is None else checked_size(size)
        self.min_pixels = self.min_pixels if min_pixels is None else min_pixels
        self.max_pixels = self.max_pixels if max_pixels is None else max_pixels
        self.do_resize = do_resize
        self.resample = int(resample)
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = list(CLIP_MEAN) if image_mean is None else image_mean
        self.image_std = list(CLIP_STD) if image_std is None else image_std
        self.do_convert_rgb = do_convert_rgb
        self.patch_size = patch_size
        self.temporal_patch_size = temporal_patch_size
        self.merge_size = merge_size

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        """See :meth:`preprocess`."""
        return self.preprocess(images, **kwargs)

    def preprocess(
        self,
        images: Any,
        videos: Any = None,
        do_resize: bool | None = None,
        size: Mapping[str, int] | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        resample: int | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        patch_size: int | None = None,
        temporal_patch_size: int | None = None,
        merge_size: int | None = None,
        do_convert_rgb: bool | None = None,
        return_tensors: str | None = None,
        data_format: str | None = "channels_first",
        input_data_format: str | None = None,
        *,
        overrides: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> BatchFeature:
        """``pixel_values`` (P, C) float32 and ``image_grid_thw`` (pictures, 3) int64 of all pictures end to end.

        ``images``: one picture or a list, also nested, or a 4-D array. A picture is a PIL image, a NumPy array or
        tensor ((H, W, C) or (C, H, W) with 1 or 3 channels, values 0..255), or anything that ``load_image`` opens.
        ``return_tensors``: "pt" for tensors, "np" or None for arrays. ``overrides``: one entry per picture, None or
        a mapping with any of ``min_pixels``, ``max_pixels``, ``resized_height``, ``resized_width``: what a message
        says about that picture wins over everything else. ``data_format`` may be either layout: patches have none.
        Other arguments stand in for the attribute of that name. Videos belong to Qwen2_5_VLVideoProcessor.

        Raises MediaError and its kinds for pictures that cannot be used, InputError for arguments.
        """
        if videos is not None:
            raise UnsupportedError("Qwen2VLImageProcessor takes pictures only: give videos to Qwen2_5_VLVideoProcessor")
        for layout in (data_format, input_data_format):
            check_layout(layout)
        least, most = self._limits(size, min_pixels, max_pixels)
        settings = ImageSettings(
            do_resize=pick(do_resize, self.do_resize),
            resample=pick(resample, self.resample),
            min_pixels=least,
            max_pixels=most,
            do_convert_rgb=pick(do_convert_rgb, self.do_convert_rgb),
            normalise=TwoStepNormalise(
                pick(rescale_factor, self.rescale_factor) if pick(do_rescale, self.do_rescale) else None,
                *mean_and_std(self, do_normalize, image_mean, image_std),
            ),
            shape=patch_shape(self, patch_size, temporal_patch_size, merge_size),
            input_data_format=None if input_data_format is None else str(getattr(input_data_format, "value", input_data_format)),
        )
        pictures = flat_images(images)
        if not pictures:
            return BatchFeature({})
        done = [
            image_patches(picture, own)
            for picture, own in zip(pictures, with_overrides(settings, overrides, len(pictures)), strict=True)
        ]
        data = {
            "pixel_values": torch.cat([patches_PC for patches_PC, _ in done]),
            "image_grid_thw": torch.tensor([[grid.t, grid.h, grid.w] for _, grid in done]),
        }
        return BatchFeature(data, tensor_type=return_tensors or "np")

    def get_number_of_image_patches(
        self, height: int, width: int, images_kwargs: Mapping[str, Any] | None = None
    ) -> int:
        """Patches of a picture of ``height`` x ``width`` pixels; divided by ``merge_size ** 2`` that is its tokens.

        ``images_kwargs``: what would be passed to the call (size, min_pixels, max_pixels, patch_size, merge_size).
        """
        options = dict(images_kwargs or {})
        least, most = self._limits(options.get("size"), options.get("min_pixels"), options.get("max_pixels"))
        shape = patch_shape(self, options.get("patch_size"), None, options.get("merge_size"))
        resized = smart_resize(height, width, shape.factor, least, most)
        return shape.grid(1, *resized).patches

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "min_pixels": self.min_pixels, "max_pixels": self.max_pixels}


def pick(value: Any, default: Any) -> Any:
    return default if value is None else value


def check_layout(layout: Any) -> None:
    if layout is not None and getattr(layout, "value", layout) not in ("channels_first", "channels_last"):
        raise InputError(f"A data format must be 'channels_first' or 'channels_last', not {layout!r}")


def mean_and_std(
    processor: Any, do_normalize: bool | None, mean: float | Sequence[float] | None, std: float | Sequence[float] | None
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


def with_overrides(
    settings: ImageSettings, overrides: Sequence[Mapping[str, Any] | None] | None, count: int
) -> list[ImageSettings]:
    """``settings`` once per picture, changed as its entry of ``overrides`` says."""
    if overrides is None:
        return [settings] * count
    if len(overrides) != count:
        raise InputError(f"overrides must have one entry per picture: got {len(overrides)} for {count}")
    return [replace(settings, **chosen(own, IMAGE_OVERRIDES)) for own in overrides]


def chosen(own: Mapping[str, Any] | None, names: Sequence[str]) -> dict[str, Any]:
    """The entries of one medium's overrides that are not None; InputError for a name that is none of ``names``."""
    for name in own or {}:
        if name not in names:
            raise InputError(f"A medium has no setting {name!r}: expected some of {', '.join(names)}")
    return {name: value for name, value in (own or {}).items() if value is not None}


def flat_images(images: Any) -> list[Any]:
    """One picture, a batch array or nested lists of them as a flat list."""
    if images is None:
        return []
    if isinstance(images, list | tuple):
        return [picture for item in images for picture in flat_images(item)]
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images)
    return [images]


def image_patches(image: Any, settings: ImageSettings) -> tuple[torch.Tensor, Grid]:
    """Patches (P, C) and grid of one picture."""
    if isinstance(image, str | bytes | bytearray | os.PathLike) or hasattr(image, "read"):
        image = load_image(image)
    pixels_HWC = _pixels(image, settings)
    if settings.normalise.rescale_factor is not None:
        _warn_if_rescaled(pixels_HWC)
    height, width = pixels_HWC.shape[:2]
    if settings.do_resize:
        pixels_HWC = resize(pixels_HWC, settings.target_size(height, width), settings.resample)
    frames_TCHW = torch.from_numpy(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1)[None]
    return to_patches(frames_TCHW, settings.shape, settings.normalise)


def _pixels(image: Any, settings: ImageSettings) -> np.ndarray:
    """A picture as (H, W, C)."""
    if isinstance(image, Image.Image):
        if settings.do_convert_rgb and image.mode != "RGB":
            image = image.convert("RGB")
        array = np.array(image)
        if array.ndim != 3 or array.shape[2] != 3:
            raise InputError(f"A picture of mode {image.mode} needs do_convert_rgb=True: only RGB has three channels")
        return array
    array = as_array(image)
    if settings.do_convert_rgb and (array.ndim == 2 or (array.ndim == 3 and 4 in (array.shape[0], array.shape[-1]))):
        array = _grey_or_alpha(array)
    if array.ndim != 3 or array.size == 0:
        raise InputError(f"A picture array must have three axes, (H, W, C) or (C, H, W), got shape {array.shape}")
    layout = settings.input_data_format or channel_layout(array.shape)
    array = array.transpose(1, 2, 0) if layout == "channels_first" else array
    if settings.do_convert_rgb and array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return array
