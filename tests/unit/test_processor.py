"""The processor: media from messages, placeholders, settings and where they go, files, errors."""

import json
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from qvl.auto import AutoProcessor, AutoTokenizer
from qvl.errors import (
    CheckpointNotFoundError,
    ConfigError,
    InputError,
    InputTypeError,
    PlaceholderMismatchError,
    PromptError,
    UnsupportedError,
)
from qvl.processing.image import Qwen2VLImageProcessor
from qvl.processing.placeholders import expanded
from qvl.processing.processor import Qwen2_5_VLProcessor
from support.page import PAGE, WITH_ID, WITHOUT_ID
from support.processors import write_tiny_processor
from support.video import write_video

HOLE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO_HOLE = "<|vision_start|><|video_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_processor(tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "bar.mp4", frames=24, fps=4)  # six seconds


def picture(width=84, height=56):
    return Image.fromarray(np.full((height, width, 3), 128, np.uint8))


def ask(*content):
    return [{"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}]


def inputs(processor, *content, **options):
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"} | options
    return processor.apply_chat_template(ask(*content), **options)


def test_the_prompts_of_the_page(processor):
    assert processor.apply_chat_template(PAGE, add_generation_prompt=True) == WITHOUT_ID
    assert processor.apply_chat_template(PAGE, add_generation_prompt=True, add_vision_id=True) == WITH_ID


def test_every_form_of_picture(processor, tmp_path):
    path = tmp_path / "picture.png"
    picture().save(path)
    expected = processor(text=HOLE, images=picture(), return_tensors="pt")
    for item in (
        {"type": "image", "path": str(path)},
        {"type": "image", "url": path.as_uri()},
        {"type": "image", "image": picture()},
        {"type": "image", "image": torch.full((3, 56, 84), 128, dtype=torch.uint8)},
        {"type": "image_url", "image_url": {"url": path.as_uri()}},
    ):
        found = inputs(processor, item)
        assert torch.equal(found["pixel_values"], expected["pixel_values"])
        assert found["image_grid_thw"].tolist() == [[1, 4, 6]]
        assert (found["input_ids"] == processor.image_token_id).sum() == 6


def test_settings_beside_a_picture_win(processor):
    small = {"type": "image", "image": picture(), "max_pixels": 28 * 28}
    exact = {"type": "image", "image": picture(), "resized_height": 112, "resized_width": 28}
    found = inputs(processor, small, {"type": "image", "image": picture()}, exact, max_pixels=28 * 28 * 4)
    assert found["image_grid_thw"].tolist() == [[1, 2, 2], [1, 2, 4], [1, 8, 2]]


def test_a_video_is_sampled_and_its_true_rate_told(processor, video):
    found = inputs(processor, {"type": "video", "path": str(video)}, fps=1)
    assert found["video_grid_thw"].tolist()[0][0] == 3
    assert found["second_per_grid_ts"].tolist() == [2.0]
    assert found["second_per_grid_ts"].dtype == torch.float64
    # eight frames of six seconds: 4/3 frames a second, whatever constant transformers would assume
    found = inputs(processor, {"type": "video", "video": str(video), "nframes": 8})
    assert found["video_grid_thw"].tolist()[0][0] == 4
    assert found["second_per_grid_ts"].tolist() == [1.5]
    own = {"type": "video", "path": str(video), "fps": 2, "video_start": 1.0, "video_end": 3.0}
    found = inputs(processor, own, {"type": "video", "path": str(video)}, fps=1)
    assert found["second_per_grid_ts"].tolist()[1] == 2.0 and found["second_per_grid_ts"][0] < 2
    tokens = found["video_grid_thw"].prod(1).sum() // 4
    assert (found["input_ids"] == processor.video_token_id).sum() == tokens


def test_frames_that_are_there_already(processor):
    frames = [picture() for _ in range(4)]
    found = inputs(processor, {"type": "video", "video": frames}, fps=4)
    assert found["video_grid_thw"].tolist()[0][0] == 2
    assert found["second_per_grid_ts"].tolist() == [0.5]
    with pytest.warns(UserWarning, match="2 per second"):
        found = processor(text=VIDEO_HOLE, videos=np.zeros((4, 56, 84, 3), np.uint8), return_tensors="pt")
    assert found["second_per_grid_ts"].tolist() == [1.0]


def test_a_mixed_batch(processor, video):
    chats = [
        ask({"type": "image", "image": picture()}, {"type": "video", "path": str(video)}),
        ask(),
        ask({"type": "image", "image": picture(56, 56)}),
    ]
    options = {"tokenize": True, "return_dict": True, "fps": 1}
    batch = processor.apply_chat_template(
        chats, padding=True, return_tensors="pt", padding_side="left", **options
    )
    singles = [processor.apply_chat_template(chat, **options) for chat in chats]
    for row, mask, single in zip(batch["input_ids"], batch["attention_mask"], singles, strict=True):
        assert row[mask.bool()].tolist() == single["input_ids"][0]
        assert mask.tolist() == sorted(mask.tolist())
    assert batch["image_grid_thw"].tolist() == [[1, 4, 6], [1, 4, 4]]
    assert [*batch] == [
        "input_ids",
        "attention_mask",
        "pixel_values",
        "image_grid_thw",
        "pixel_values_videos",
        "video_grid_thw",
        "second_per_grid_ts",
    ]
    with pytest.raises(InputError, match="padding=True"):
        processor.apply_chat_template(chats, return_tensors="pt", **options)


def test_typed_placeholders_are_text(processor):
    typed = {"type": "text", "text": "<|image_pad|> and <|vision_start|><|video_pad|><|im_end|>"}
    found = inputs(processor, typed, {"type": "image", "image": picture()}, return_mm_token_type_ids=True)
    ids = found["input_ids"]
    assert (ids == processor.image_token_id).sum() == 6 == found["mm_token_type_ids"].sum()
    assert (ids == processor.video_token_id).sum() == 0
    assert (ids == processor.tokenizer.eos_token_id).sum() == 2  # the template's own
    text = processor.apply_chat_template(ask(typed))
    assert processor.decode(inputs(processor, typed)["input_ids"][0]) == text
    with pytest.raises(PlaceholderMismatchError, match=r"has 1 <\|image_pad\|> placeholder.*0 image"):
        processor(text=text)  # a ready prompt is taken as it is


@pytest.mark.parametrize(
    ("text", "images", "said"),
    [
        (HOLE, None, "1 <|image_pad|> placeholder(s), but 0 image(s)"),
        ("none", 2, "0 <|image_pad|> placeholder(s), but 2 image(s)"),
        ([HOLE, HOLE + HOLE], 2, "3 <|image_pad|> placeholder(s), but 2 image(s)"),
        (VIDEO_HOLE, None, "1 <|video_pad|> placeholder(s), but 0 video(s)"),
    ],
)
def test_mismatch_says_how_many_of_each(processor, text, images, said):
    with pytest.raises(PlaceholderMismatchError) as caught:
        processor(text=text, images=[picture()] * images if images else None)
    assert said in str(caught.value)


def test_one_list_of_pictures_per_prompt_must_fit_each_prompt(processor):
    pictures = [picture(), picture(28, 28), picture(56, 56)]
    with pytest.raises(PlaceholderMismatchError) as caught:  # three and three, but not of each
        processor(text=[HOLE, HOLE * 2], images=[pictures[:2], pictures[2:]])
    assert "Text 0 has 1 <|image_pad|> placeholder(s), but its list holds 2 image(s)" in str(caught.value)
    nested = processor(text=[HOLE, HOLE * 2], images=[pictures[:1], pictures[1:]])
    for flat in (pictures, [pictures]):
        assert processor(text=[HOLE, HOLE * 2], images=flat)["input_ids"] == nested["input_ids"]


def test_frame_numbers_times_and_rate_for_those_who_ask(processor, video):
    item = {"type": "video", "path": str(video)}
    assert "video_metadata" not in inputs(processor, item, num_frames=4)
    found = inputs(processor, item, num_frames=4, return_metadata=True).to("cpu")["video_metadata"]
    assert [m.frames_indices for m in found] == [(0, 6, 12, 18)]
    assert [m.timestamps for m in found] == [(0.0, 1.5, 3.0, 4.5)]
    assert [m.sampled_fps for m in found] == [4 / 6]


def test_truncation_must_not_cut_a_picture(processor):
    with pytest.raises(PlaceholderMismatchError, match=r"4 image tokens where the images take 6.*max_length"):
        processor(text=HOLE, images=picture(), truncation=True, max_length=5)


def test_expansion_is_linear():
    """Replacing one placeholder after the other would copy tens of megabytes fifty thousand times."""
    start = time.perf_counter()
    (text,) = expanded([f"{HOLE}a" * 50_000], "image", "<|image_pad|>", [64] * 50_000)
    assert time.perf_counter() - start < 5  # 0.05 on the slowest machine seen
    assert text.count("<|image_pad|>") == 64 * 50_000


def test_settings_go_to_the_parts_that_have_them(processor, video):
    both = ask({"type": "image", "image": picture(280, 280)}, {"type": "video", "path": str(video)})
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "fps": 1}
    found = processor.apply_chat_template(both, max_pixels=28 * 28 * 4, min_pixels=28 * 28, **options)
    assert found["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert found["video_grid_thw"].prod(1).tolist() <= [3 * 16]
    found = processor.apply_chat_template(both, images_kwargs={"max_pixels": 28 * 28 * 4}, **options)
    assert found["image_grid_thw"].tolist() == [[1, 4, 4]]
    for wrong, error, said in (
        ({"max_pixel": 1}, InputTypeError, "no argument max_pixel;"),
        ({"images_kwargs": {"fps": 1}}, InputTypeError, "images_kwargs has no argument fps"),
        ({"fps": 1, "videos_kwargs": {"fps": 2}}, InputError, "fps: given twice"),
    ):
        with pytest.raises(error, match=said):
            processor(text="x", **wrong)


def test_arguments_without_a_meaning_here(processor):
    with pytest.warns(UserWarning, match="vision_infos"):
        assert processor(text=[HOLE], images=[picture()], vision_infos=[None])["input_ids"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs(processor, video_load_backend="pyav", load_audio_from_video=False)
    with pytest.raises(UnsupportedError, match="hears nothing"):
        inputs(processor, load_audio_from_video=True)
    with pytest.raises(InputTypeError, match="text must be"):
        processor(images=picture())
    with pytest.raises(PromptError, match="return_dict=True"):
        inputs(processor, return_assistant_tokens_mask=True, return_dict=False)


def test_counting_without_processing(processor, video):
    counted = processor.count_media_tokens([(56, 84), picture()], [str(video), (4, 56, 84)], fps=1)
    found = inputs(processor, {"type": "video", "path": str(video)}, fps=1)
    assert counted.images == (6, 6)
    assert counted.videos == (found["video_grid_thw"].prod().item() // 4, 2 * 6)


def test_post_processing(processor):
    ids = processor.tokenizer("a b<|im_end|>")["input_ids"]
    for given in (torch.tensor([ids]), torch.tensor(ids), np.array(ids), [ids]):
        assert processor.post_process_image_text_to_text(given) == ["a b"]
    assert processor.post_process_image_text_to_text([ids], skip_special_tokens=False) == ["a b<|im_end|>"]
    assert processor.batch_decode([ids], skip_special_tokens=True) == ["a b"]
    assert processor.decode(ids) == "a b<|im_end|>"


def test_loading(folder, tmp_path):
    loaded = AutoProcessor.from_pretrained(
        folder, min_pixels=784, max_pixels=1568, padding_side="left", use_fast=True
    )
    for part in (loaded.image_processor, loaded.video_processor):
        assert (part.min_pixels, part.max_pixels) == (784, 1568)
    assert loaded.tokenizer.padding_side == "left"
    with pytest.raises(InputTypeError, match=r"setting max_pixel$"):
        AutoProcessor.from_pretrained(folder, max_pixel=3)
    with pytest.raises(CheckpointNotFoundError):
        AutoProcessor.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(InputTypeError, match="needs a tokenizer"):
        Qwen2_5_VLProcessor(Qwen2VLImageProcessor())
    defaults = Qwen2_5_VLProcessor(tokenizer=loaded.tokenizer)
    assert defaults.chat_template == loaded.tokenizer.chat_template != loaded.chat_template


RELEASED = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}


def test_the_released_layout(processor, tmp_path):
    """preprocessor_config.json serves both kinds of media; chat_template.json wins over all others."""
    processor.tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "tokenizer's"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(RELEASED))
    (tmp_path / "chat_template.jinja").write_text("newer file")
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "released"}))
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.chat_template == "released"
    for part in (loaded.image_processor, loaded.video_processor):
        assert part.size == {"shortest_edge": 3136, "longest_edge": 12845056}
    (tmp_path / "chat_template.json").unlink()
    assert AutoProcessor.from_pretrained(tmp_path).chat_template == "newer file"
    (tmp_path / "chat_template.jinja").unlink()
    assert AutoProcessor.from_pretrained(tmp_path).chat_template == "tokenizer's"


def test_saving(folder, processor, tmp_path):
    saved = Qwen2_5_VLProcessor.from_pretrained(folder, max_pixels=28 * 28 * 9)
    written = saved.save_pretrained(tmp_path / "one")
    assert {path.rsplit("/", 1)[1] for path in written} >= {
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.json",
    }
    again = AutoProcessor.from_pretrained(tmp_path / "one")
    assert again.image_processor.max_pixels == 28 * 28 * 9
    assert again.chat_template == saved.chat_template
    assert again.tokenizer.chat_template == saved.tokenizer.chat_template
    again.chat_template = {"default": "D", "tool_use": "T"}
    again.save_pretrained(tmp_path / "two")
    named = AutoProcessor.from_pretrained(tmp_path / "two")
    assert named.chat_template == {"default": "D", "tool_use": "T"}
    assert named.apply_chat_template(ask(), chat_template="tool_use") == "T"


def test_other_kinds_of_checkpoint(folder, tmp_path):
    write_tiny_processor(tmp_path)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == len(
        AutoProcessor.from_pretrained(folder).tokenizer
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(ConfigError, match="'llava'"):
        AutoProcessor.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | {"tokenizer_class": "LlamaTokenizer"})
    )
    with pytest.raises(ConfigError, match="LlamaTokenizer"):
        AutoTokenizer.from_pretrained(tmp_path)
