"""Any Pillow mode and any array layout to 8-bit RGB: what pictures mean, not where they come from.

Rules: transparency is composited on white (as the released training pipeline did), 16-bit values are scaled
to 8 bits rather than clipped, and float values count as 0..1 where they fit in there, else as 0..255.

Legend of shape suffixes: H height, W width, C channels.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from qvl.errors import InputError, InputTypeError

ChannelLayout = Literal["channels_first", "channels_last"]

EXIF_ORIENTATION = 0x0112
# What undoes each EXIF orientation (Exif 2.32, tag 0x0112); 1 is upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, composited on white where it is transparent."""
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.float64) / 257)
    if image.mode in ("I", "F"):
        return _grey(_to_bytes_range(np.asarray(image).astype(np.float64)))
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if image.has_transparency_data:
        return on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def without_alpha(image: Image.Image) -> Image.Image:
    """``image.convert("RGB")``, as transformers' processor does it: alpha is dropped, whatever it hides."""
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct way from premultiplied grey to RGB
    return image.convert("RGB")


def on_white(image: Image.Image) -> Image.Image:
    """``image`` (any mode with alpha or a transparent colour) over a white ground, as RGB."""
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct way from premultiplied grey to RGBA
    rgba = image.convert("RGBA")
    ground = Image.new("RGB", rgba.size, (255, 255, 255))
    ground.paste(rgba, mask=rgba.getchannel("A"))
    return ground


def upright(image: Image.Image) -> Image.Image:
    """``image`` turned as its EXIF orientation says; broken EXIF counts as none."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # EXIF is parsed from untrusted bytes and Pillow lets many kinds of error through
        return image
    method = UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _grey(values_HW: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(values_HW).astype(np.uint8)).convert("RGB")


def _to_bytes_range(values: np.ndarray) -> np.ndarray:
    """Values of 32-bit pictures in 0..255.

    Nothing in such a file says what white is. Values within 0..1 (fractions), 0..255 (bytes) or 0..65535
    (16 bits in a wider container) are taken as that; other ranges are stretched from darkest to brightest.
    """
    finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(finite.min()), float(finite.max())
    if low < 0 or high > 65535:
        return (finite - low) * (255 / max(high - low, np.finfo(np.float64).tiny))
    if high > 255:
        return finite / 257
    fractions = high <= 1 and not np.array_equal(finite, np.rint(finite))
    return finite * 255 if fractions else finite


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    transform = ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )
    turned = ImageCms.applyTransform(image, transform)
    if turned is None:
        raise InputError("A picture of mode LAB could not be converted to RGB")
    return turned


def as_array(image: Any) -> np.ndarray:
    """A NumPy view or copy of a picture, array or tensor (bfloat16 as float32)."""
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        return (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    if isinstance(image, Image.Image):
        return np.array(image)
    raise InputTypeError(
        f"A picture must be a PIL image, NumPy array or torch tensor here, not {type(image).__name__}"
    )


def channel_layout(shape: tuple[int, ...]) -> ChannelLayout:
    """Where the channels of a (..., C, H, W) or (..., H, W, C) array stand.

    1 or 3 of them are looked for first, then 4; where both ends fit, the first is taken, as in transformers.
    """
    for counts in ((1, 3), (4,)):
        if len(shape) >= 3 and shape[-3] in counts:
            return "channels_first"
        if len(shape) >= 3 and shape[-1] in counts:
            return "channels_last"
    raise InputError(
        f"No axis of shape {shape} can be the channels: expected 1, 3 or 4 of them, first or last"
    )


def array_to_pil(array: Any) -> Image.Image:
    """A (H, W), (H, W, C) or (C, H, W) array or tensor with 1, 3 or 4 channels as an RGB picture.

    uint8, bool, uint16 and float (0..1 or 0..255); alpha is composited on white.
    """
    values = as_array(array)
    if values.size == 0 or values.ndim not in (2, 3):
        raise InputError(f"A picture array must have 2 or 3 axes and no empty one, got shape {values.shape}")
    if values.ndim == 3 and channel_layout(values.shape) == "channels_first":
        values = values.transpose(1, 2, 0)
    values_HWC = np.ascontiguousarray(_array_bytes(values).reshape(*values.shape[:2], -1))
    if values_HWC.shape[2] == 1:
        values_HWC = values_HWC[:, :, 0]
    return to_rgb(Image.fromarray(values_HWC))


def _array_bytes(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        return np.rint(values / 257).astype(np.uint8)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255):
        raise InputError(
            f"Picture values must lie in 0..255 (or 0..1 as floats), got {low} to {high} ({values.dtype})"
        )
    fractions = np.issubdtype(values.dtype, np.floating) and high <= 1
    return np.rint(values * 255 if fractions else values).astype(np.uint8)
