"""Pixel values against transformers' Pillow-based Qwen2VLImageProcessor, bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image

transformers = pytest.importorskip("transformers")
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor as Oracle  # noqa: E402
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as oracle_resize  # noqa: E402

from qvl.processing.image import Qwen2VLImageProcessor, smart_resize  # noqa: E402

pytestmark = pytest.mark.oracle


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def check(images, *, init=None, **options):
    ours = Qwen2VLImageProcessor(**init or {})(images, return_tensors="pt", **options)
    theirs = Oracle(**init or {})(images, return_tensors="pt", **options)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize(
    "size", [(28, 28), (31, 47), (100, 333), (333, 100), (64, 1000), (5, 900), (700, 1500)]
)
def test_sizes(size):
    check(Image.fromarray(noise(*size)))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]
)
def test_modes(mode):
    image = Image.fromarray(noise(60, 90))
    image = image.convert("L").convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    check(image)


@pytest.mark.parametrize("mode", ["RGBX", "RGBa", "PA", "LAB", "I;16B", "I;16L"])
def test_rare_modes(mode):
    size = {"I;16B": 2, "I;16L": 2, "RGBX": 4, "RGBa": 4, "PA": 2, "LAB": 3}[mode]
    image = Image.frombytes(mode, (90, 60), noise(60, 90, size).tobytes())
    if mode == "PA":
        image.putpalette(noise(256, 1).tobytes())
    check(image)


@pytest.mark.parametrize(
    "limits",
    [
        {"min_pixels": 28 * 28, "max_pixels": 28 * 28},
        {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 4},
        {"min_pixels": 600 * 600},
        {"max_pixels": 12_845_056},
        {"min_pixels": 256 * 28 * 28, "max_pixels": 300 * 28 * 28},
        {"size": {"shortest_edge": 28 * 28 * 9, "longest_edge": 28 * 28 * 11}},
        {
            "size": {"shortest_edge": 28 * 28 * 9, "longest_edge": 28 * 28 * 11},
            "min_pixels": 1,
            "max_pixels": 2,
        },
    ],
)
def test_limits_at_call_and_at_load(limits):
    image = Image.fromarray(noise(333, 217))
    check(image, **limits)
    if "size" not in limits:
        check(image, init=limits)


@pytest.mark.parametrize(
    "array",
    [
        noise(70, 90),
        noise(70, 90).transpose(2, 0, 1),
        noise(70, 90).astype(np.int64),
        noise(70, 90).astype(np.float32),
        noise(70, 90).astype(np.float64),
        noise(70, 90) / 255,
        (noise(70, 90) / 255).astype(np.float32),
        (noise(70, 90) / 255).astype(np.float16),
        np.zeros((70, 90, 3)),
        np.ones((3, 70, 90), np.float32),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.filterwarnings("ignore:Picture values lie")
def test_arrays(array, rescale):
    check(array, do_rescale=rescale)
    check(torch.from_numpy(np.ascontiguousarray(array)), do_rescale=rescale)


def test_channel_layout_given():
    check(noise(3, 60), input_data_format="channels_last")
    check(noise(90, 3).transpose(2, 0, 1), input_data_format="channels_first")
    check(noise(3, 90))  # looks like channels first
    check(noise(60, 60), data_format="channels_last")


def test_several_images():
    images = [Image.fromarray(noise(50 + 20 * i, 90 - 10 * i, seed=i)) for i in range(4)]
    check(images)
    check([images[:1], images[1:]])
    check([[], images])
    check(np.stack([noise(60, 80, seed=i) for i in range(3)]))
    check([np.stack([noise(60, 80, seed=i) for i in range(2)]), np.stack([noise(60, 80, seed=9)])])


@pytest.mark.parametrize(
    "flags",
    [
        {"do_resize": False},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
        {"do_convert_rgb": False},
        {"rescale_factor": 1 / 127.5},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
        {"image_mean": 0.5, "image_std": 0.25},
        {"resample": Image.Resampling.LANCZOS},
        {"resample": 2},
        {"patch_size": 16, "merge_size": 1},
        {"patch_size": 7, "merge_size": 3, "temporal_patch_size": 3},
        {"temporal_patch_size": 1},
    ],
    ids=str,
)
def test_flags(flags):
    image = Image.fromarray(noise(112, 168))
    check(image, **flags)
    if "resample" not in flags:
        check(image, init=flags)


def test_return_types():
    for kind in (None, "np"):
        ours = Qwen2VLImageProcessor()(Image.fromarray(noise(60, 60)), return_tensors=kind)
        theirs = Oracle()(Image.fromarray(noise(60, 60)), return_tensors=kind)
        for name in theirs:
            assert type(ours[name]) is type(theirs[name])
            assert ours[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_smart_resize_everywhere():
    random = np.random.default_rng(0)
    for _ in range(3000):
        height, width = (int(x) for x in random.integers(1, 3000, 2))
        if max(height, width) / min(height, width) > 200:
            continue
        for limits in ((), (28, 3136, 12_845_056), (28, 100_352, 602_112), (14, 784, 784)):
            assert smart_resize(height, width, *limits) == oracle_resize(height, width, *limits)


def test_number_of_patches():
    for kwargs in ({}, {"min_pixels": 10**6}, {"max_pixels": 20_000}, {"patch_size": 16, "merge_size": 1}):
        ours, theirs = (
            cls().get_number_of_image_patches(300, 500, kwargs) for cls in (Qwen2VLImageProcessor, Oracle)
        )
        assert ours == theirs


def test_settings_travel_both_ways(tmp_path):
    ours = Qwen2VLImageProcessor(min_pixels=784, max_pixels=7840, image_mean=[0.1, 0.2, 0.3], house="mine")
    ours.save_pretrained(tmp_path)
    theirs = Oracle.from_pretrained(tmp_path)
    assert {**theirs.to_dict(), "_processor_class": None} == {**ours.to_dict(), "_processor_class": None}
    theirs.save_pretrained(tmp_path / "back")
    assert Qwen2VLImageProcessor.from_pretrained(tmp_path / "back").to_dict() == ours.to_dict()


def test_real_pictures(shared_data):
    for path in sorted((shared_data / "images").iterdir()):
        with Image.open(path) as image:
            check(image.copy())
