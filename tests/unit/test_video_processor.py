"""The video processor on files, frames and arrays: rates, budgets, overrides, metadata, errors."""

import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_video_file import write_video

from qvl.errors import (
    InputError,
    InputTypeError,
    MediaDecodeError,
    MediaError,
    MediaNotFoundError,
    MediaTooLargeError,
    UnsupportedError,
)
from qvl.processing.image import Qwen2VLImageProcessor
from qvl.processing.media.opening import MediaLimits, open_video
from qvl.processing.video.processor import VIDEO_OVERRIDES, Qwen2_5_VLVideoProcessor, Qwen2VLVideoProcessor

RAW = {"do_resize": False, "do_rescale": False, "do_normalize": False}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Ten seconds at 20 frames per second, 64 x 48."""
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", frames=200, rate=20)


@pytest.fixture
def processor():
    return Qwen2_5_VLVideoProcessor(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 16)


def frames(count=4, height=56, width=84):
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), np.uint8)


# Files


def test_a_file_is_sampled_at_two_frames_per_second(processor, path):
    out = processor(path, return_tensors="pt", return_metadata=True)
    assert out.video_grid_thw.tolist() == [[10, 4, 4]]
    assert out.pixel_values_videos.shape == (160, 1176)
    assert out.second_per_grid_ts.tolist() == [1.0]
    metadata = out.video_metadata[0]
    assert metadata.frames_indices == tuple(range(0, 200, 10))
    assert metadata.timestamps == tuple(i / 2 for i in range(20))
    assert (metadata.total_num_frames, metadata.fps, metadata.duration) == (200, 20.0, 10.0)
    assert (metadata.width, metadata.height, metadata.sampled_fps) == (64, 48, 2.0)
    assert metadata["video_backend"] == "pyav"


def test_a_file_gives_what_its_decoded_frames_give(processor, path):
    with open_video(path) as video:
        decoded = np.stack(list(video.frames(range(200))))
    metadata = {"total_num_frames": 200, "fps": 20.0}
    for options in ({"fps": 3}, {"num_frames": 6}, {"fps": 1, "video_start": 2.0, "video_end": 5.0}):
        ours = processor(path, return_tensors="pt", **options)
        wanted = processor(
            decoded, return_tensors="pt", video_metadata=metadata, do_sample_frames=True, **options
        )
        for name in ours:
            assert torch.equal(ours[name], wanted[name]), (options, name)


def test_rate_follows_from_what_was_really_sampled(processor, path):
    assert processor(path, fps=1).second_per_grid_ts == [2.0]
    assert processor(path, fps=0.1).second_per_grid_ts == [5.0]  # min_frames: 4 in 10 seconds
    assert processor(path, fps=10, max_frames=20).second_per_grid_ts == [1.0]
    assert processor(path, num_frames=10).second_per_grid_ts == [2.0]
    assert processor(path, do_sample_frames=False).second_per_grid_ts == [0.1]


def test_sample_and_plan(processor, path):
    sampled = processor.sample(path, num_frames=4)
    assert sampled.frames_TCHW.shape == (4, 3, 56, 56)
    assert sampled.frames_TCHW.dtype == torch.uint8
    assert sampled.indices == (0, 50, 100, 150)
    assert sampled.timestamps == (0.0, 2.5, 5.0, 7.5)
    assert sampled.sampled_fps == 0.4
    plan = processor.plan(path, num_frames=4)
    assert plan == sampled.plan
    assert plan.grid.tokens(2) == 2 * 4
    assert plan.seconds_per_grid == 5.0
    assert processor.sample(path, num_frames=4, do_resize=False).frames_TCHW.shape == (4, 3, 48, 64)


def test_linspace(processor, path):
    sampled = processor.sample(path, num_frames=4, frame_sampling="linspace")
    assert sampled.indices == (0, 66, 133, 199)


def test_video_file_objects_are_left_open(processor, path):
    with open_video(path) as video:
        first = processor(video, num_frames=4).pixel_values_videos
        assert torch.equal(processor(video, num_frames=4).pixel_values_videos, first)


def test_only_what_is_needed_is_decoded(processor, path):
    with open_video(path) as video:
        processor(video, num_frames=4)
        assert video.decoded_frames <= 1 + 4 * 12


def test_varying_rate(processor, tmp_path):
    pts = [0, 100, 200, 300, 400, 500, 4000, 8000]
    with open_video(write_video(tmp_path / "a.mkv", frames=8, pts=pts)) as video:
        sampled = processor.sample(video, num_frames=4)
        assert sampled.indices[:2] == (0, 5)
        assert sampled.indices[2] == 6
        assert sampled.sampled_fps == pytest.approx(4 / video.duration)


# Frames that are there already


def test_lists_arrays_and_tensors_are_the_same(processor, tmp_path):
    array = frames()
    pictures = [Image.fromarray(frame) for frame in array]
    names = []
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
        names.append(str(tmp_path / f"{number}.png"))
    tensor = torch.from_numpy(array)
    given = [
        array,
        tensor,
        tensor.permute(0, 3, 1, 2),
        array[None],
        pictures,
        tuple(pictures),
        list(array),
        names,
    ]
    given += [[array], [pictures], [[array]], [names], list(tensor)]
    wanted = processor(array, fps=2.0)
    for videos in given:
        out = processor(videos, fps=2.0)
        assert torch.equal(out.pixel_values_videos, wanted.pixel_values_videos)
        assert out.video_grid_thw.tolist() == wanted.video_grid_thw.tolist() == [[2, 4, 6]]


def test_rate_of_frames(processor):
    array = frames(8)
    assert processor(array, fps=4).second_per_grid_ts == [0.5]
    assert processor(array, video_metadata={"total_num_frames": 8, "fps": 10.0}).second_per_grid_ts == [0.2]
    picked = {"total_num_frames": 80, "fps": 10.0, "frames_indices": list(range(0, 80, 10))}
    assert processor(array, video_metadata=[picked]).second_per_grid_ts == [2.0]
    with pytest.warns(UserWarning, match="taken to be 2 per second"):
        assert processor(array).second_per_grid_ts == [1.0]
    back = processor(array, fps=4, return_metadata=True).video_metadata
    assert processor(array, video_metadata=back).second_per_grid_ts == [0.5]


def test_frames_are_sampled_where_asked_to(processor):
    array = frames(40)
    metadata = {"total_num_frames": 40, "fps": 10.0}
    out = processor(array, fps=2, do_sample_frames=True, video_metadata=metadata, return_metadata=True)
    assert out.video_metadata[0].frames_indices == tuple(range(0, 40, 5))
    assert out.second_per_grid_ts == [1.0]
    with pytest.raises(InputError, match="video_metadata with fps"):
        processor(array, fps=2, do_sample_frames=True)
    with pytest.warns(UserWarning, match="unknown"):
        assert processor(array, num_frames=10).video_grid_thw.tolist() == [[5, 4, 6]]
    with pytest.raises(InputError, match="num_frames=41 is more than the 40 frames"):
        processor(array, num_frames=41)


def test_grey_alpha_and_single_frames(processor):
    grey = frames()[..., :1]
    same = processor(grey.repeat(3, axis=3), fps=2).pixel_values_videos
    assert torch.equal(processor(grey, fps=2).pixel_values_videos, same)
    clear = np.zeros((2, 56, 56, 4), np.uint8)
    assert processor(clear, fps=2, **RAW).pixel_values_videos.min() == 255
    assert processor(Image.fromarray(frames(1)[0]), fps=2).video_grid_thw.tolist() == [[1, 4, 6]]
    assert processor(frames(1)[0], fps=2).video_grid_thw.tolist() == [[1, 4, 6]]


def test_odd_number_of_frames_repeats_the_last(processor):
    out = processor(frames(3), fps=2, **RAW)
    assert out.video_grid_thw.tolist() == [[2, 4, 6]]
    last = out.pixel_values_videos[24:].reshape(24, 3, 2, 196)
    assert torch.equal(last[:, :, 0], last[:, :, 1])


# Batches, overrides and budgets


def test_a_batch_is_its_videos_end_to_end(processor, path):
    videos = [frames(4), path, frames(6, 84, 56)]
    rates = [2.0, 1.0, 4.0]
    batch = processor(videos, fps=rates, return_tensors="pt")
    single = [
        processor(video, fps=rate, return_tensors="pt") for video, rate in zip(videos, rates, strict=True)
    ]
    for name in batch:
        assert torch.equal(batch[name], torch.cat([out[name] for out in single])), name
    assert batch.second_per_grid_ts.tolist() == [1.0, 2.0, 0.5]
    assert processor([[frames(4)], [], [path]], fps=2).video_grid_thw.shape == (2, 3)
    assert processor(None) == {}
    assert processor([[], []]) == {}


def test_overrides_win(processor, path):
    overrides = [
        None,
        {"fps": 1.0},
        {"nframes": 8},
        {"max_pixels": 28 * 28 * 4, "video_start": 5.0},
        {"resized_height": 84, "resized_width": 112, "max_frames": 4},
    ]
    out = processor([path] * 5, fps=2, overrides=overrides)
    assert out.video_grid_thw.tolist() == [[10, 4, 4], [5, 4, 4], [4, 4, 4], [5, 4, 4], [2, 6, 8]]
    assert out.second_per_grid_ts[:3] == [1.0, 2.0, 2.5]


def test_total_pixels_as_qwen_vl_utils_counts_them(processor):
    array = frames(8, 280, 280)
    least, most = 28 * 28 * 4, 28 * 28 * 16
    assert processor(array, fps=2).video_grid_thw.tolist() == [[4, 8, 8]]
    for budget in (28 * 28 * 24, 28 * 28 * 36, 28 * 28 * 4, 28 * 28 * 999):
        share = max(min(most, budget / 8 * 2), int(least * 1.05))
        wanted = processor(array, fps=2, max_pixels=share).video_grid_thw.tolist()
        assert processor(array, fps=2, total_pixels=budget).video_grid_thw.tolist() == wanted
        assert processor(array, fps=2, overrides=[{"total_pixels": budget}]).video_grid_thw.tolist() == wanted


def test_limits_of_a_call_count_too(processor):
    array = frames(2, 280, 280)
    assert processor(array, fps=2, max_pixels=28 * 28 * 4).video_grid_thw.tolist() == [[1, 4, 4]]
    assert processor(array, fps=2, min_pixels=280 * 280, max_pixels=280 * 280).video_grid_thw.tolist() == [
        [1, 20, 20]
    ]
    size = {"shortest_edge": 784, "longest_edge": 784}
    assert processor(array, fps=2, size=size).video_grid_thw.tolist() == [[1, 2, 2]]


def test_number_of_patches(processor):
    assert processor.get_num_of_video_patches(8, 280, 280) == 4 * 8 * 8
    assert processor.get_number_of_video_patches(8, 280, 280, {"max_pixels": 28 * 28 * 4}) == 4 * 4 * 4


# Bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fps": 2, "num_frames": 4}, "exclude each other"),
        ({"fps": 0}, "fps must be a positive number"),
        ({"fps": -2.0}, "fps must be a positive number"),
        ({"num_frames": 0}, "num_frames"),
        ({"num_frames": 201}, "num_frames=201 is more than the 200 frames"),
        ({"video_start": 3, "video_end": 2}, "video_start"),
        ({"video_start": 11}, "No frame lies between"),
        ({"do_sample_frames": False, "fps": 2}, "takes every frame"),
        ({"fps": [1, 2]}, "one entry per video: got 2 for 1"),
        ({"overrides": []}, "one entry per video: got 0 for 1"),
        ({"overrides": [{"speed": 1}]}, "no setting 'speed'"),
        ({"overrides": [{"fps": 1, "nframes": 2}]}, "exclude each other"),
        ({"overrides": [{"resized_height": 56}]}, "go together"),
    ],
)
def test_bad_options(processor, path, options, words):
    with pytest.raises(InputError, match=words):
        processor(path, **options)


def test_rates_of_frames_are_checked_too(processor):
    for fps in (0, -1):
        with pytest.raises(InputError, match="positive"):
            processor(frames(), fps=fps)
    with pytest.raises(InputError, match="exclude each other"):
        processor(frames(), fps=2, num_frames=2)


def test_unknown_options_and_types(processor):
    with pytest.raises(InputTypeError, match="no option 'speed'"):
        processor(frames(), speed=3)
    with pytest.raises(InputTypeError, match="must be a path"):
        processor(3, fps=2)
    with pytest.raises(UnsupportedError, match="resample"):
        processor(frames(2, 90, 90), fps=2, resample=Image.Resampling.LANCZOS)


@pytest.mark.parametrize(
    "video",
    [np.zeros((0, 56, 56, 3), np.uint8), np.zeros((2, 0, 5, 3)), [frames(1)[0], frames(1, 84, 84)[0]]],
)
def test_frames_that_are_no_video(processor, video):
    with pytest.raises(MediaError):
        processor(video, fps=2)


def test_broken_files(processor, tmp_path):
    with pytest.raises(MediaNotFoundError):
        processor(tmp_path / "no.mp4")
    (tmp_path / "a.mp4").write_text("not a video")
    with pytest.raises(MediaDecodeError):
        processor(tmp_path / "a.mp4")


def test_thin_frames(processor):
    with pytest.raises(MediaError, match="aspect ratio"):
        processor(frames(2, 1, 5000), fps=2)


def test_limits_of_files(path):
    small = Qwen2_5_VLVideoProcessor(limits=MediaLimits(sampled_frames=10))
    with pytest.raises(MediaTooLargeError):
        small(path, fps=2)
    assert small(path, num_frames=10).video_grid_thw[0, 0] == 5


# Settings


def test_names():
    assert Qwen2VLVideoProcessor is Qwen2_5_VLVideoProcessor
    assert set(VIDEO_OVERRIDES) >= {
        "fps",
        "nframes",
        "video_start",
        "video_end",
        "total_pixels",
        "resized_height",
    }
    defaults = Qwen2_5_VLVideoProcessor()
    assert (defaults.min_pixels, defaults.max_pixels) == (128 * 28 * 28, 768 * 28 * 28)
    assert (defaults.min_frames, defaults.max_frames, defaults.do_sample_frames) == (4, 768, False)
    assert inspect.signature(defaults.preprocess).parameters["videos"]


def test_save_and_load(tmp_path):
    made = Qwen2_5_VLVideoProcessor(fps=3, total_pixels=10**6, house="mine", limits=MediaLimits(bytes=5))
    made.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert saved["video_processor_type"] == "Qwen2VLVideoProcessor"
    loaded = Qwen2_5_VLVideoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == made.to_dict()
    assert loaded.fps == 3
    assert Qwen2_5_VLVideoProcessor.from_pretrained(tmp_path, max_frames=10).max_frames == 10


def test_videos_inherit_the_image_limits_of_released_checkpoints(tmp_path):
    Qwen2VLImageProcessor(min_pixels=3136, max_pixels=12_845_056).save_pretrained(tmp_path)
    loaded = Qwen2_5_VLVideoProcessor.from_pretrained(tmp_path)
    assert loaded.size == {"shortest_edge": 3136, "longest_edge": 12_845_056}
    assert "image_processor_type" not in loaded.to_dict()


def test_a_file_saved_by_transformers_loads():
    settings = {
        "do_sample_frames": False,
        "fps": None,
        "crop_size": None,
        "data_format": "channels_first",
        "device": None,
        "max_pixels": 602112,
        "min_pixels": 100352,
        "return_metadata": False,
        "size": {"longest_edge": 602112, "shortest_edge": 100352},
        "video_metadata": None,
        "video_processor_type": "Qwen2VLVideoProcessor",
    }
    loaded = Qwen2_5_VLVideoProcessor.from_dict(settings)
    assert loaded(frames(2), fps=2).video_grid_thw.shape == (1, 3)
    assert loaded.to_dict()["crop_size"] is None


def test_real_videos(shared_data):
    processor = Qwen2_5_VLVideoProcessor(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 16)
    names = ("bikes.mp4", "carphone_pristine.mp4")
    out = processor([shared_data / "videos" / name for name in names], fps=1, return_metadata=True)
    for name, metadata, grid, seconds in zip(
        names, out.video_metadata, out.video_grid_thw.tolist(), out.second_per_grid_ts, strict=True
    ):
        assert len(metadata.frames_indices) == grid[0] * 2, name
        assert seconds == pytest.approx(metadata.duration / grid[0]), name
