"""Every example of docs/examples runs: on a tiny checkpoint, where the documentation page names a 7B one."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from support.checkpoint import write_checkpoint
from support.video import write_video

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
RUN = {
    "pipeline.py",
    "auto_model.py",
    "quantization.py",
    "video.py",
    "mixed_batch.py",
    "pixels.py",
    "configuration.py",
    "forward_example.py",
}

# The two prompts that the documentation page prints as expected output.
PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{0}<|vision_start|><|image_pad|><|vision_end|>Hello, how are you?<|im_end|>\n"
    "<|im_start|>assistant\nI'm doing well, thank you for asking. How can I assist you today?<|im_end|>\n"
    "<|im_start|>user\nCan you describe these images and video?"
    "{1}<|vision_start|><|image_pad|><|vision_end|>{2}<|vision_start|><|image_pad|><|vision_end|>"
    "{3}<|vision_start|><|video_pad|><|vision_end|>These are from my vacation.<|im_end|>\n"
    "<|im_start|>assistant\nI'd be happy to describe the images and video for you. "
    "Could you please provide more context about your vacation?<|im_end|>\n"
    "<|im_start|>user\nIt was a trip to the mountains. "
    "Can you see the details in the images and video?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
PLAIN = PROMPT.format("", "", "", "")
LABELLED = PROMPT.format("Picture 1: ", "Picture 2: ", "Picture 3: ", "Video 1: ")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.radial_gradient("L").convert("RGB").resize((1200, 900)).save(path)
    return str(path)


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return str(write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=12, fps=4))


def run(name, *arguments):
    return runpy.run_path(str(EXAMPLES / name))["main"](*arguments)


def test_no_example_is_left_out():
    assert {path.name for path in EXAMPLES.glob("*.py")} == RUN


def test_pipeline(tiny, picture):
    (record,) = run("pipeline.py", tiny, picture)
    assert record["input_text"][0]["content"][0] == {"type": "image", "url": picture}
    assert isinstance(record["generated_text"], str)


def test_auto_model(tiny, picture):
    (answer,) = run("auto_model.py", tiny, picture)
    assert isinstance(answer, str)


def test_pipeline_and_auto_model_agree(tiny, picture):
    assert run("pipeline.py", tiny, picture)[0]["generated_text"] == run("auto_model.py", tiny, picture)[0]


def test_quantization(tmp_path, picture):
    pytest.importorskip("torchao")
    wide = write_checkpoint(
        tmp_path,
        hidden_size=128,
        intermediate_size=256,
        rope_scaling={"rope_type": "default", "mrope_section": [4, 6, 6]},
    )
    assert isinstance(run("quantization.py", str(wide), picture), str)


def test_video(tiny, clip):
    (answer,) = run("video.py", tiny, clip)
    assert isinstance(answer, str)


def test_mixed_batch_prompts_are_those_of_the_page(tiny):
    assert run("mixed_batch.py", tiny) == (PLAIN, LABELLED)


def test_mixed_batch_answers(tiny, picture, clip):
    assert len(run("mixed_batch.py", tiny, picture, clip)) == 2 + 3


def test_pixels(tiny, picture):
    high, low = run("pixels.py", tiny, picture)
    assert high == (1200 // 28) * (900 // 28) or high > low
    assert low <= 1024


def test_configuration():
    with_head, text_only = run("configuration.py")
    assert with_head > text_only > 70e9


def test_forward_example(tiny, picture):
    assert isinstance(run("forward_example.py", tiny, picture), str)


def test_examples_are_programs(tiny):
    command = [sys.executable, str(EXAMPLES / "mixed_batch.py"), tiny]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"{PLAIN}\n\n{LABELLED}\n", done.stderr
