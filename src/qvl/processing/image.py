"""Pictures to the patches of the vision tower: smart_resize and Qwen2VLImageProcessor.

Pixel values equal those of transformers 4.57's Pillow-based processor bit for bit. Files and URLs are opened
by ``media``; a PIL image handed over directly is only converted with ``convert("RGB")``, as transformers
does.

Legend of shape suffixes: T frames, H height, W width, C channels or, at the end of PC, values of one patch,
P patches.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from qvl.errors import InputError, UnsupportedError
from qvl.processing.features import BatchFeature
from qvl.processing.media.opening import DEFAULT_LIMITS, MediaLimits, load_image
from qvl.processing.media.rgb import array_to_pil, as_array, channel_layout, without_alpha
from qvl.processing.options import CLIP_MEAN, CLIP_STD, chosen, layout_name, mean_and_std, patch_shape, pick
from qvl.processing.patches import PatchShape, TwoStepNormalise, all_patches
from qvl.processing.pretrained import SavedSettings
from qvl.processing.sizes import PixelLimits, checked_size, smart_resize, target_size
from qvl.processing.threads import in_threads

__all__ = ["IMAGE_OVERRIDES", "Qwen2VLImageProcessor", "smart_resize"]

# What a message may say about one picture
IMAGE_OVERRIDES = ("min_pixels", "max_pixels", "resized_height", "resized_width")


@dataclass(frozen=True)
class ImageSettings:
    """All that one picture's processing depends on; ``resized_*`` stand in for the picture's own size."""

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


class Qwen2VLImageProcessor(PixelLimits, SavedSettings):
    """Resizes, normalises and cuts pictures into patches; signatures as in transformers 4.57.

    ``size``: {"shortest_edge": fewest, "longest_edge": most} pixels after resizing; ``min_pixels`` and
    ``max_pixels`` win over it. Both sides end as multiples of ``patch_size * merge_size``. ``resample``: a
    Pillow filter number. ``image_mean``, ``image_std``: one number or one per channel. ``limits``: what
    opening a file may cost (not saved). Further keywords are kept as attributes and saved.
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
        limits: MediaLimits = DEFAULT_LIMITS,
        **kwargs: Any,
    ) -> None:
        for name, value in kwargs.items():
            setattr(self, name, value)
        self.size = checked_size(size or {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280})
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
        self._media_limits = limits

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
        """``pixel_values`` (P, C) float32 and ``image_grid_thw`` (pictures, 3) int64 of all pictures end to
        end.

        ``images``: one picture or a list, also nested, or a 4-D array. A picture is a PIL image, a NumPy
        array or tensor ((H, W, C) or (C, H, W) with 1 or 3 channels, values 0..255), or anything that
        ``load_image`` opens. ``return_tensors``: "pt" for tensors, "np" or None for arrays. ``overrides``:
        one entry per picture, None or a mapping with any of ``min_pixels``, ``max_pixels``,
        ``resized_height``, ``resized_width``: what a message says about that picture wins over everything
        else. ``data_format`` may be either layout: patches have none. Other arguments stand in for the
        attribute of that name. Videos belong to Qwen2_5_VLVideoProcessor.

        Raises MediaError and its kinds for pictures that cannot be used, InputError for arguments.
        """
        if videos is not None:
            raise UnsupportedError(
                "Qwen2VLImageProcessor takes no videos: give them to Qwen2_5_VLVideoProcessor"
            )
        layout_name(data_format)
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
            input_data_format=layout_name(input_data_format),
        )
        pictures = flat_images(images)
        if not pictures:
            return BatchFeature({})
        own = with_overrides(settings, overrides, len(pictures))
        rows_PC, grids = all_patches(
            prepared(pictures, own, self._media_limits), settings.shape, settings.normalise
        )
        data = {
            "pixel_values": rows_PC,
            "image_grid_thw": torch.tensor([[grid.t, grid.h, grid.w] for grid in grids]),
        }
        return BatchFeature(data, tensor_type=return_tensors or "np")

    def get_number_of_image_patches(
        self, height: int, width: int, images_kwargs: Mapping[str, Any] | None = None
    ) -> int:
        """Patches of a picture of ``height`` x ``width`` pixels; divided by ``merge_size ** 2`` that is its
        tokens.

        ``images_kwargs``: what would be passed to the call (size, min_pixels, max_pixels, patch_size,
        merge_size).
        """
        options = dict(images_kwargs or {})
        least, most = self._limits(options.get("size"), options.get("min_pixels"), options.get("max_pixels"))
        shape = patch_shape(self, options.get("patch_size"), None, options.get("merge_size"))
        resized = smart_resize(height, width, shape.factor, least, most)
        return shape.grid(1, *resized).patches

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "min_pixels": self.min_pixels, "max_pixels": self.max_pixels}


def with_overrides(
    settings: ImageSettings, overrides: Sequence[Mapping[str, Any] | None] | None, count: int
) -> list[ImageSettings]:
    """``settings`` once per picture, changed as its entry of ``overrides`` says."""
    if overrides is None:
        return [settings] * count
    if len(overrides) != count:
        raise InputError(f"overrides must have one entry per picture: got {len(overrides)} for {count}")
    return [replace(settings, **chosen(own, IMAGE_OVERRIDES)) for own in overrides]


def flat_images(images: Any) -> list[Any]:
    """One picture, a batch array or nested lists of them as a flat list."""
    if images is None:
        return []
    if isinstance(images, list | tuple):
        return [picture for item in images for picture in flat_images(item)]
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images)
    return [images]


def prepared(
    pictures: Sequence[Any], settings: Sequence[ImageSettings], limits: MediaLimits = DEFAULT_LIMITS
) -> list[torch.Tensor]:
    """Every picture opened and resized, as frames (1, C, H, W).

    Several pictures are resized in threads, and opened there if they are files of their own; pictures and
    open files of the caller's are read here, since one may stand for several.
    """
    opened = [image if _opens_alone(image) else load_image(image, limits=limits) for image in pictures]
    for image, own in zip(opened, settings, strict=True):
        if isinstance(image, np.ndarray | torch.Tensor) and own.normalise.rescale_factor is not None:
            _warn_if_rescaled(as_array(image))

    def work(item: tuple[Any, ImageSettings]) -> torch.Tensor:
        pixels_HWC = np.ascontiguousarray(_prepared(*item, limits))
        return torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None]

    return in_threads(work, list(zip(opened, settings, strict=True)))


def _opens_alone(image: Any) -> bool:
    """Whether opening ``image`` changes nothing that another picture may share."""
    return isinstance(image, np.ndarray | torch.Tensor | str | os.PathLike | bytes)


def _prepared(image: Any, settings: ImageSettings, limits: MediaLimits) -> np.ndarray:
    """One picture as (H, W, C), resized."""
    if isinstance(image, np.ndarray | torch.Tensor):
        pixels_HWC = _pixels(image, settings)
        size = _target(settings, *pixels_HWC.shape[:2])
        return resize(pixels_HWC, size, settings.resample) if settings.do_resize else pixels_HWC
    picture = _three_channels(load_image(image, limits=limits), settings)
    size = _target(settings, picture.height, picture.width)
    if size != (picture.height, picture.width):
        picture = picture.resize(size[::-1], Image.Resampling(settings.resample))
    return np.array(picture)


def _target(settings: ImageSettings, height: int, width: int) -> tuple[int, int]:
    return target_size(settings, height, width) if settings.do_resize else (height, width)


def _three_channels(image: Image.Image, settings: ImageSettings) -> Image.Image:
    """``image`` as RGB; one that is RGB is not copied, since nothing here writes into it."""
    if image.mode == "RGB":
        return image
    if not settings.do_convert_rgb:
        raise InputError(f"A picture of mode {image.mode} needs do_convert_rgb=True")
    return without_alpha(image)


def _pixels(image: Any, settings: ImageSettings) -> np.ndarray:
    """An array or tensor as (H, W, C)."""
    array = as_array(image)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.size == 0:
        raise InputError(f"A picture array must be (H, W, C) or (C, H, W), got shape {array.shape}")
    if settings.do_convert_rgb and array.dtype == np.uint8 and not {1, 3} & {array.shape[0], array.shape[2]}:
        array = np.array(array_to_pil(array))  # four channels: transformers refuses them
    if (settings.input_data_format or channel_layout(array.shape)) == "channels_first":
        array = array.transpose(1, 2, 0)
    return np.repeat(array, 3, axis=2) if settings.do_convert_rgb and array.shape[2] == 1 else array


def resize(pixels_HWC: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """Pillow's resampling of 8-bit values; fractions 0..1 go there and back, as in transformers."""
    fractions = _are_fractions(pixels_HWC)
    if fractions:
        pixels_HWC = (pixels_HWC.astype(np.float64) * 255).astype(np.float32)
    bytes_HWC = np.ascontiguousarray(pixels_HWC.astype(np.uint8, copy=False))
    channels = bytes_HWC.shape[2]
    picture = Image.fromarray(bytes_HWC[:, :, 0] if channels == 1 else bytes_HWC)
    resized_HWC = np.array(picture.resize(size[::-1], resample=resample)).reshape(*size, channels)
    return (resized_HWC.astype(np.float64) * (1 / 255)).astype(np.float32) if fractions else resized_HWC


def _are_fractions(pixels: np.ndarray) -> bool:
    """Whether values mean 0..1 rather than 0..255; InputError where they fit neither."""
    if pixels.dtype == np.uint8:
        return False
    low, high = pixels.min(), pixels.max()
    with np.errstate(invalid="ignore"):
        whole = np.allclose(pixels, pixels.astype(int))
    if whole and low >= 0 and high <= 255:
        return False
    if not whole and low >= 0 and high <= 1:
        return True
    raise InputError(
        "Picture values must be whole numbers in 0..255 or fractions in 0..1 to be resized, "
        f"got {low:g} to {high:g} of dtype {pixels.dtype}"
    )


def _warn_if_rescaled(pixels: np.ndarray) -> None:
    if pixels.size and pixels.dtype != np.uint8 and pixels.min() >= 0 and pixels.max() <= 1:
        warnings.warn(
            "Picture values lie in 0..1 and are about to be rescaled again: set do_rescale=False",
            stacklevel=4,
        )
