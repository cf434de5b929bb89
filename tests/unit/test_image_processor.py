"""What Qwen2VLImageProcessor does beyond transformers' one: overrides, loading, errors, saving."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from qvl.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    InputError,
    InputTypeError,
    MediaDecodeError,
    MediaError,
    MediaNotFoundError,
    MediaTooLargeError,
    UnsupportedError,
)
from qvl.processing.image import Qwen2VLImageProcessor, smart_resize
from qvl.processing.media.opening import MediaLimits


@pytest.fixture
def processor():
    return Qwen2VLImageProcessor()


def image(height=60, width=90, mode="RGB"):
    values = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values).convert(mode)


def test_a_patch_is_where_it_belongs(processor):
    """Row 5 of a merged order is column 3, row 0: the patch's values stand channel first, frame twice."""
    values = np.arange(28 * 56 * 3, dtype=np.uint32).reshape(28, 56, 3).astype(np.uint8)
    out = processor(values, do_resize=False, do_rescale=False, do_normalize=False)
    assert out.image_grid_thw.tolist() == [[1, 2, 4]]
    row = out.pixel_values[5].reshape(3, 2, 14, 14)
    wanted = values[0:14, 42:56].transpose(2, 0, 1)
    np.testing.assert_array_equal(row[:, 0], wanted)
    np.testing.assert_array_equal(row[:, 1], wanted)


def test_files_are_composited_but_pil_images_are_not(processor, tmp_path):
    clear = Image.new("RGBA", (56, 56), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    options = {"do_rescale": False, "do_normalize": False}
    assert processor(tmp_path / "clear.png", **options).pixel_values.min() == 255
    assert processor(str(tmp_path / "clear.png"), **options).pixel_values.min() == 255
    assert processor(clear, **options).pixel_values.max() == 0


def test_overrides(processor):
    pictures = [image(200, 300), image(200, 300), image(200, 300), image(200, 300)]
    overrides = [
        None,
        {"max_pixels": 28 * 28 * 6},
        {"min_pixels": 10**6},
        {"resized_height": 90, "resized_width": 60},
    ]
    grids = processor(pictures, overrides=overrides).image_grid_thw.tolist()
    assert grids[0] == processor(pictures[0]).image_grid_thw[0].tolist()
    assert grids[1] == processor(pictures[0], max_pixels=28 * 28 * 6).image_grid_thw[0].tolist()
    assert grids[2] == processor(pictures[0], min_pixels=10**6).image_grid_thw[0].tolist()
    assert grids[3] == [1, 6, 4]  # 90 x 60 to multiples of 28
    overrides[1] = {"max_pixels": 28 * 28 * 6, "min_pixels": None}
    assert (
        processor(pictures, overrides=overrides, max_pixels=28 * 28 * 2).image_grid_thw[1].tolist()
        == grids[1]
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([{}, {}], "one entry per picture: got 2 for 1"),
        ([{"fps": 2}], "no setting 'fps'"),
        ([{"resized_height": 28}], "go together"),
    ],
)
def test_bad_overrides(processor, overrides, words):
    with pytest.raises(InputError, match=words):
        processor(image(), overrides=overrides)


def test_grey_and_alpha_arrays_which_transformers_refuses(processor):
    grey = np.asarray(image(mode="L"))
    as_rgb = processor(np.repeat(grey[:, :, None], 3, axis=2)).pixel_values
    np.testing.assert_array_equal(processor(grey).pixel_values, as_rgb)
    np.testing.assert_array_equal(processor(grey[:, :, None]).pixel_values, as_rgb)
    alpha = np.zeros((56, 56, 4), np.uint8)
    out = processor(alpha, do_rescale=False, do_normalize=False)
    assert out.pixel_values.min() == 255


def test_premultiplied_grey_which_transformers_refuses(processor):
    grey = image(mode="LA")
    assert torch.equal(*(torch.from_numpy(processor(i).pixel_values) for i in (grey.convert("La"), grey)))


def test_bytes_of_every_type(processor, tmp_path):
    image(60, 90).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    wanted = processor(image(60, 90)).pixel_values
    for given in (data, bytearray(data), memoryview(data), io.BytesIO(data), image(60, 90)):
        np.testing.assert_array_equal(processor([[given]]).pixel_values, wanted)


def test_truncated_pil_image(processor, tmp_path):
    image(60, 90).save(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:1500])
    with pytest.raises(MediaDecodeError, match=r"cut\.jpg is broken or truncated"):
        processor(Image.open(tmp_path / "cut.jpg"))


@pytest.mark.parametrize("limits", [{"max_pixels": 0}, {"max_pixels": -1}, {"min_pixels": -1},
                                    {"max_pixels": "50176"}, {"min_pixels": float("nan")}])  # fmt: skip
def test_limits_that_no_picture_can_keep(processor, limits):
    with pytest.raises(InputError, match="min_pixels and max_pixels must be numbers of pixels"):
        processor(image(), **limits)
    with pytest.raises(InputError, match="min_pixels and max_pixels must be numbers of pixels"):
        processor(image(), overrides=[limits])


def test_limits_of_files(tmp_path):
    image(60, 90).save(tmp_path / "a.png")
    with pytest.raises(MediaTooLargeError):
        Qwen2VLImageProcessor(limits=MediaLimits(image_pixels=100))(tmp_path / "a.png")


def test_no_pictures(processor):
    assert processor(None) == {}
    assert processor([[], []]) == {}


def test_a_thin_picture(processor):
    with pytest.raises(MediaError, match="aspect ratio must be at most 200, got 5000"):
        processor(image(1, 5000))
    with pytest.raises(ValueError, match="aspect ratio"):
        smart_resize(5000, 1)
    with pytest.raises(MediaError, match="at least one pixel"):
        smart_resize(0, 10)


@pytest.mark.parametrize(
    ("picture", "options", "error"),
    [
        (np.zeros((30, 30)), {"do_convert_rgb": False}, InputError),
        (np.zeros((30, 30, 5)), {}, InputError),
        (np.full((30, 30, 3), 300.0), {}, InputError),
        (np.full((30, 30, 3), np.nan), {}, InputError),
        (np.zeros((30, 0, 3)), {}, InputError),
        (image(30, 30), {"do_resize": False}, MediaError),
        (image(30, 30, "L"), {"do_convert_rgb": False}, InputError),
        (image(), {"size": {"height": 3}}, InputError),
        (image(), {"image_mean": [0.5, 0.5]}, InputError),
        (image(), {"input_data_format": "HWC"}, InputError),
        (image(), {"videos": [1]}, UnsupportedError),
        ("/no/such/file.png", {}, MediaNotFoundError),
        (3, {}, InputTypeError),
    ],
)
@pytest.mark.filterwarnings("ignore:Picture values lie")
def test_bad_input(processor, picture, options, error):
    with pytest.raises(error):
        processor(picture, **options)


def test_warns_of_values_rescaled_twice(processor):
    with pytest.warns(UserWarning, match="do_rescale=False"):
        processor(np.full((30, 30, 3), 0.5))


def test_size_and_the_two_numbers_are_one_thing():
    processor = Qwen2VLImageProcessor(size={"shortest_edge": 784, "longest_edge": 7840})
    assert (processor.min_pixels, processor.max_pixels) == (784, 7840)
    processor.max_pixels = 1568
    assert processor.size == {"shortest_edge": 784, "longest_edge": 1568}
    assert processor.get_number_of_image_patches(500, 500) == 4
    assert processor.to_dict()["max_pixels"] == 1568
    with pytest.raises(InputError, match="shortest_edge"):
        Qwen2VLImageProcessor(size={"height": 5, "width": 5})


def test_save_and_load(tmp_path):
    made = Qwen2VLImageProcessor(max_pixels=7840, processor_class="Qwen2_5_VLProcessor")
    assert made.save_pretrained(tmp_path / "new") == [str(tmp_path / "new" / "preprocessor_config.json")]
    saved = json.loads((tmp_path / "new" / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "Qwen2VLImageProcessor"
    assert saved["processor_class"] == "Qwen2_5_VLProcessor"
    loaded = Qwen2VLImageProcessor.from_pretrained(tmp_path / "new")
    assert loaded.to_dict() == made.to_dict()
    other = Qwen2VLImageProcessor.from_pretrained(str(tmp_path / "new"), min_pixels=1568, unknown=3)
    assert (other.min_pixels, other.max_pixels) == (1568, 7840)
    loaded, unused = Qwen2VLImageProcessor.from_dict(saved, unknown=3, return_unused_kwargs=True)
    assert unused == {"unknown": 3}
    from_file = Qwen2VLImageProcessor.from_pretrained(tmp_path / "new" / "preprocessor_config.json")
    assert from_file.to_dict() == made.to_dict()


def test_loads_the_combined_file(tmp_path):
    settings = {"image_processor": {"max_pixels": 7840}, "processor_class": "Qwen2_5_VLProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    assert Qwen2VLImageProcessor.from_pretrained(tmp_path).max_pixels == 7840


def test_bad_folders(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r"preprocessor_config\.json"):
        Qwen2VLImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointCorruptError, match="not valid JSON"):
        Qwen2VLImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(CheckpointCorruptError, match="expected an object"):
        Qwen2VLImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        Qwen2VLImageProcessor().save_pretrained(tmp_path / "preprocessor_config.json")


def test_tensors_and_dtypes(processor):
    out = processor([image(), image(70, 70)], return_tensors="pt")
    assert out.pixel_values.dtype == torch.float32
    assert out.pixel_values.is_contiguous()
    assert out.image_grid_thw.dtype == torch.int64
    assert len(out.pixel_values) == int(out.image_grid_thw.prod(1).sum())
