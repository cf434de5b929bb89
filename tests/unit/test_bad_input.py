"""Bad input, end to end: one clear sentence from qvl's own tree, which is also the built-in type that a
caller of transformers would catch. One row per mistake that people make."""

from __future__ import annotations

import io
import json
import struct
import zlib

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from qvl import errors
from qvl.config import AutoConfig, Qwen2_5_VLConfig
from qvl.modeling import Qwen2_5_VLForConditionalGeneration
from qvl.processing.processor import Qwen2_5_VLProcessor
from qvl.processing.video.processor import Qwen2_5_VLVideoProcessor
from support.batches import batch, prompt_row
from support.checkpoint import write_checkpoint
from support.tiny import tiny_settings
from support.video import write_video


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**tiny_settings())).eval()


@pytest.fixture
def checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path)
    return tmp_path


def jpeg() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def declared_png(width: int, height: int) -> bytes:
    """A PNG that says it is large and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def check(info, *kinds, says):
    """The error is of all these kinds and its message is short and says the thing."""
    assert isinstance(info.value, errors.QvlError)
    assert all(isinstance(info.value, kind) for kind in kinds), type(info.value).__mro__
    message = str(info.value)
    assert all(word.lower() in message.lower() for word in says), message
    assert len(message) < 500 and "Traceback" not in message


# -- pictures and videos -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("processor"), weights=False)
    return Qwen2_5_VLProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everything that the rows below name, good files and bad ones."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "notes.jpg").write_text("this is not a picture")
    (folder / "cut.jpg").write_bytes(jpeg()[:700])
    Image.new("RGB", (5000, 1)).save(folder / "line.png")
    (folder / "huge.png").write_bytes(declared_png(40_000, 25_000))
    write_video(folder / "good.mp4", frames=8)
    (folder / "cut.mp4").write_bytes((folder / "good.mp4").read_bytes()[:-300])
    (folder / "broken.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 8)
    with av.open(str(folder / "empty.avi"), "w") as container:  # a video stream, and nothing in it
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height = 64, 48
        container.start_encoding()
    return folder


def frames(count: int) -> np.ndarray:
    return np.zeros((count, 56, 56, 3), np.uint8)


NOT_FOUND, DECODE, TOO_LARGE = errors.MediaNotFoundError, errors.MediaDecodeError, errors.MediaTooLargeError
# (what is wrong, file or frames, options of the call, the error, built-in types that catch it, what it says)
PICTURES = [
    ("missing file", "nothing.jpg", NOT_FOUND, (ValueError, FileNotFoundError), ["nothing.jpg"]),
    ("text file named .jpg", "notes.jpg", DECODE, (ValueError, OSError), ["notes.jpg"]),
    ("truncated JPEG", "cut.jpg", DECODE, (ValueError, OSError), ["cut.jpg"]),
    ("5000 x 1", "line.png", errors.MediaError, (ValueError,), ["200"]),
    ("a billion declared pixels", "huge.png", TOO_LARGE, (ValueError,), ["pixels"]),
]
VIDEOS = [
    ("missing file", "nothing.mp4", {}, NOT_FOUND, (TypeError, FileNotFoundError), ["nothing.mp4"]),
    ("no frames", frames(0), {}, errors.MediaError, (ValueError,), ["frame"]),
    ("no frames in the file", "empty.avi", {}, errors.MediaError, (ValueError,), ["empty.avi", "frame"]),
    ("corrupt", "broken.mp4", {}, DECODE, (ValueError, OSError), ["broken.mp4"]),
    ("truncated", "cut.mp4", {}, errors.MediaError, (ValueError,), ["cut.mp4"]),
    ("fps 0", "good.mp4", {"fps": 0}, errors.InputError, (ValueError,), ["fps", "0"]),
    ("fps below 0", "good.mp4", {"fps": -1.5}, errors.InputError, (ValueError,), ["fps", "-1.5"]),
    ("fps 0 of frames", frames(8), {"fps": 0}, errors.InputError, (ValueError,), ["fps", "0"]),
    (
        "both fps and num_frames",
        "good.mp4",
        {"fps": 1, "num_frames": 4},
        errors.InputError,
        (ValueError,),
        ["fps", "num_frames"],
    ),
]


def ask(processor, kind, medium, **options):
    """The documented way: a message with the medium and a question."""
    content = [{"type": kind, kind: medium}, {"type": "text", "text": "What is this?"}]
    settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return processor.apply_chat_template([{"role": "user", "content": content}], **settings, **options)


def test_the_good_files_are_read(processor, folder):
    """Guards the rows below: the same calls with nothing wrong."""
    (folder / "good.jpg").write_bytes(jpeg())
    assert len(ask(processor, "image", str(folder / "good.jpg"))["pixel_values"])
    for options in ({"fps": 1}, {"num_frames": 4}):
        assert len(ask(processor, "video", str(folder / "good.mp4"), **options)["pixel_values_videos"])


@pytest.mark.parametrize(
    "name, kind, kinds, says", [row[1:] for row in PICTURES], ids=[r[0] for r in PICTURES]
)
def test_pictures(processor, folder, name, kind, kinds, says):
    for call in (lambda path: ask(processor, "image", path), lambda path: processor(text="", images=path)):
        with pytest.raises(kind) as info:
            call(str(folder / name))
        check(info, *kinds, says=says)


@pytest.mark.parametrize(
    "medium, options, kind, kinds, says", [row[1:] for row in VIDEOS], ids=[row[0] for row in VIDEOS]
)
def test_videos(processor, folder, medium, options, kind, kinds, says):
    medium = str(folder / medium) if isinstance(medium, str) else medium
    with pytest.raises(kind) as info:
        ask(processor, "video", medium, **options)
    check(info, *kinds, says=says)
    if isinstance(medium, np.ndarray):
        return
    with pytest.raises(kind) as info:
        processor.video_processor(videos=[medium], **options)
    check(info, *kinds, says=says)


# -- prompts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("placeholders, media", [(2, 1), (0, 1), (1, 2)])
def test_placeholders_and_media_handed_over_differ(processor, kind, placeholders, media):
    text = f"<|vision_start|><|{kind}_pad|><|vision_end|>" * placeholders + "Hello"
    handed = [Image.new("RGB", (56, 56))] * media if kind == "image" else [frames(4)] * media
    with pytest.raises(errors.PlaceholderMismatchError) as info:
        processor(text=[text], return_tensors="pt", **{f"{kind}s": handed})
    check(info, ValueError, says=[kind, str(placeholders), str(media)])


def test_placeholders_and_media_differ(model):
    arguments = batch(prompt_row(3, ("image", (1, 4, 4)), 2))
    arguments["image_grid_thw"] = torch.tensor([[1, 4, 6]])
    arguments["pixel_values"] = torch.zeros(24, 1176)
    for call in (model, model.generate):
        with pytest.raises(errors.PlaceholderMismatchError) as info:
            call(**arguments, **({"max_new_tokens": 1} if call == model.generate else {}))
        check(info, ValueError, says=["4", "6"])


def test_prompt_longer_than_the_model(model):
    with pytest.raises(errors.PromptTooLongError) as info:
        model.generate(torch.ones(1, 300, dtype=torch.long), max_new_tokens=1)
    check(info, ValueError, says=["300", "256"])


def test_negative_max_new_tokens(model):
    with pytest.raises(errors.GenerationError) as info:
        model.generate(torch.ones(1, 3, dtype=torch.long), max_new_tokens=-1)
    check(info, ValueError, says=["max_new_tokens", "-1"])


# -- checkpoints ------------------------------------------------------------------------------------------


def test_truncated_safetensors(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(errors.CheckpointCorruptError) as info:
        Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint)
    check(info, OSError, says=["model.safetensors"])


def test_index_names_a_missing_shard(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(errors.CheckpointNotFoundError) as info:
        Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    check(info, OSError, says=[gone.name])


def test_config_of_another_model(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    for load in (AutoConfig.from_pretrained, Qwen2_5_VLForConditionalGeneration.from_pretrained):
        with pytest.raises(errors.ConfigError) as info:
            load(checkpoint)
        check(info, ValueError, says=["llama"])


def test_nothing_half_done(model, checkpoint):
    """A save that fails leaves the checkpoint as it was, and a load that fails leaves no file."""
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    with pytest.raises(errors.CheckpointError):
        model.save_pretrained(checkpoint, state_dict={"model.norm.weight": torch.empty(1, device="meta")})
    with pytest.raises(errors.InputError):
        model.save_pretrained(checkpoint, max_shard_size="much")
    with pytest.raises(errors.InputError):
        Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype="int8")
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before


def test_tensor_of_another_shape(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 52
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(errors.CheckpointMismatchError) as info:
        Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint)
    assert isinstance(info.value, (OSError, RuntimeError))
    assert "gate_proj" in str(info.value) and "52" in str(info.value)


@pytest.mark.parametrize(
    "part, name",
    [
        ("vision tower", "visual.blocks.2.mlp.up_proj.weight"),
        ("text decoder", "model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_weights_that_are_not_numbers(checkpoint, part, name):
    stored = load_file(checkpoint / "model.safetensors")
    stored[name][0, 0] = float("nan")
    save_file(stored, checkpoint / "model.safetensors")
    broken = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint)
    with pytest.raises(errors.NonFiniteError) as info:
        broken.generate(**batch(prompt_row(3, ("image", (1, 4, 4)), 2)), max_new_tokens=2)
    check(info, ValueError, says=[part, name.split(".", 1)[1]])


def filled(values, dtype) -> np.ndarray:
    return np.full((4, 56, 56, 3), values, dtype)


@pytest.mark.parametrize(
    ("video", "error", "said"),
    [
        (filled(4000, np.uint16), errors.InputError, "0..255, got 4000"),
        (filled(-5, np.int16), errors.InputError, "0..255, got -5"),
        (filled(np.nan, np.float32), errors.InputError, "0..255, got nan"),
        (filled(True, np.bool_), errors.InputTypeError, "0 to 255"),
    ],
    ids=["16 bit", "negative", "nan", "bool"],
)
def test_frames_that_are_no_pictures(video, error, said):
    with pytest.raises(error, match=said):
        Qwen2_5_VLVideoProcessor()(video, fps=2)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"num_frames": 2.5}, errors.InputError, "num_frames counts frames"),
        (
            {"fps": 2, "min_frames": -3, "do_sample_frames": True},
            errors.InputError,
            "min_frames must be 0 or more",
        ),
        ({"fps": 2, "video_start": "a"}, errors.InputTypeError, "video_start must be a number"),
        ({"fps": 2, "patch_size": 0}, errors.InputError, "patch_size must be a whole number"),
        (
            {"fps": 2, "resized_height": "a", "resized_width": 28},
            errors.InputTypeError,
            "resized_height must be a whole number",
        ),
    ],
)
def test_settings_of_a_video_that_make_no_sense(settings, error, said):
    with pytest.raises(error, match=said):
        Qwen2_5_VLVideoProcessor()(filled(9, np.uint8), **settings)


@pytest.mark.parametrize(
    ("medium", "said"),
    [({"type": "audio", "url": "song.mp3"}, "'audio'"), ({"type": "video", "video": []}, "empty list")],
)
def test_media_of_a_message_that_cannot_be_seen(medium, said):
    from qvl import AutoProcessor

    content = [medium, {"type": "text", "text": "What is it?"}]
    with pytest.raises(errors.PromptError, match=said):
        AutoProcessor.from_pretrained("qvl/tiny").apply_chat_template(
            [{"role": "user", "content": content}], tokenize=True
        )


class TestForward:
    @pytest.fixture
    def model(self):
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**tiny_settings())).eval()

    def test_nan_in_the_head_is_named(self, model):
        model.lm_head.weight.data[3, 0] = np.nan
        with pytest.raises(errors.NonFiniteError, match="head"):
            model(torch.tensor([[5, 6, 7]]))

    def test_labels_beyond_the_vocabulary(self, model):
        ids = torch.tensor([[5, 6, 7]])
        with pytest.raises(errors.InputError, match="labels hold 100000"):
            model(ids, labels=torch.tensor([[5, 100000, -100]]))

    @pytest.mark.parametrize("seconds", [float("nan"), -1.0, float("inf")])
    def test_seconds_that_are_none(self, model, seconds):
        call = batch(prompt_row(3, ("video", (2, 4, 4)), 2))
        with pytest.raises(errors.InputError, match="second_per_grid_ts must be seconds"):
            model(**{**call, "second_per_grid_ts": torch.tensor([seconds])})

    def test_pixels_of_another_library(self, model):
        call = batch(prompt_row(3, ("image", (1, 4, 4)), 2))
        with pytest.raises(errors.InputTypeError, match=r"must be a torch\.Tensor"):
            model(**{**call, "pixel_values": call["pixel_values"].numpy()})

    def test_patches_of_two_widths(self, model):
        call = batch(prompt_row(3, ("image", (1, 4, 4)), 2, ("video", (2, 4, 4)), 2))
        with pytest.raises(errors.InputError, match="one number of values"):
            model.generate(**{**call, "pixel_values": call["pixel_values"][:, :-3]}, max_new_tokens=2)
