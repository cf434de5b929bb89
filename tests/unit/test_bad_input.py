"""Bad input, end to end: one clear sentence from qvl's own tree, which is also the built-in type that a
caller of transformers would catch. One row per mistake that people make."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from qvl import errors
from qvl.config import AutoConfig, Qwen2_5_VLConfig
from qvl.modeling import Qwen2_5_VLForConditionalGeneration
from qvl.processing.image import Qwen2VLImageProcessor
from qvl.processing.media import load_image
from qvl.processing.video import Qwen2_5_VLVideoProcessor
from support.batches import batch, prompt_row
from support.tiny import tiny_settings


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


# -- pictures ---------------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    with pytest.raises(errors.MediaNotFoundError) as info:
        load_image(tmp_path / "nothing.jpg")
    check(info, ValueError, OSError, FileNotFoundError, says=["nothing.jpg"])


def test_text_file_named_jpg(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("this is not a picture")
    with pytest.raises(errors.MediaDecodeError) as info:
        load_image(path)
    check(info, ValueError, OSError, says=["notes.jpg"])


def test_truncated_jpeg(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(jpeg()[:700])
    with pytest.raises(errors.MediaDecodeError) as info:
        load_image(path)
    check(info, ValueError, OSError, says=["cut.jpg"])


def test_one_by_five_thousand():
    with pytest.raises(errors.MediaError) as info:
        Qwen2VLImageProcessor()(Image.new("RGB", (5000, 1)))
    check(info, ValueError, says=["200"])


def test_a_billion_declared_pixels():
    with pytest.raises(errors.MediaTooLargeError) as info:
        load_image(declared_png(40_000, 25_000))
    check(info, ValueError, says=["pixels"])


# -- videos -----------------------------------------------------------------------------------------------


def test_video_without_frames():
    with pytest.raises(errors.MediaError) as info:
        Qwen2_5_VLVideoProcessor()(videos=[np.zeros((0, 56, 56, 3), np.uint8)])
    check(info, ValueError, says=["frame"])


def test_corrupt_video(tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 8)
    with pytest.raises(errors.MediaDecodeError) as info:
        Qwen2_5_VLVideoProcessor()(videos=[str(path)])
    check(info, ValueError, OSError, says=["broken.mp4"])


FRAMES = np.zeros((8, 56, 56, 3), np.uint8)


@pytest.mark.parametrize("fps", [0, -1])
def test_fps_not_positive(fps):
    with pytest.raises(errors.InputError) as info:
        Qwen2_5_VLVideoProcessor()(videos=[FRAMES], fps=fps, do_sample_frames=True)
    check(info, ValueError, says=["fps"])


def test_both_fps_and_num_frames():
    with pytest.raises(errors.InputError) as info:
        Qwen2_5_VLVideoProcessor()(videos=[FRAMES], fps=1, num_frames=4, do_sample_frames=True)
    check(info, ValueError, says=["fps", "num_frames"])


# -- prompts ----------------------------------------------------------------------------------------------


def test_placeholders_and_media_differ(model):
    arguments = batch(prompt_row(3, ("image", (1, 4, 4)), 2))
    arguments["image_grid_thw"] = torch.tensor([[1, 4, 6]])
    arguments["pixel_values"] = torch.zeros(24, 1176)
    for call in (model, model.generate):
        with pytest.raises(errors.PlaceholderMismatchError) as info:
            call(**arguments)
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


def test_tensor_of_another_shape(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 52
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(errors.CheckpointMismatchError) as info:
        Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint)
    assert isinstance(info.value, (OSError, RuntimeError))
    assert "gate_proj" in str(info.value) and "52" in str(info.value)


@pytest.mark.parametrize("part", ["vision tower", "text decoder"])
def test_weights_that_are_not_numbers(part):
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**tiny_settings())).eval()
    broken = model.visual.blocks[2].mlp if part == "vision tower" else model.language_model.layers[1].mlp
    with torch.no_grad():
        broken.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(errors.NonFiniteError) as info:
        model.generate(**batch(prompt_row(3, ("image", (1, 4, 4)), 2)), max_new_tokens=2)
    check(info, ValueError, says=[part])
