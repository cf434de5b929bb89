"""Every example of docs/examples runs: on a tiny checkpoint, where the documentation page names a 7B one."""

import os
import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image

from qvl.weights.quantized_files import is_quantized
from support.checkpoint import write_checkpoint
from support.video import write_video

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "docs" / "examples"
PAGE = Path(
    os.environ.get("QVL_PAGE", REPOSITORY.parent / "shared" / "seed" / "qwen2_5_vl-documentation.txt")
)
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
    assert (high, low) == (43 * 32, 36 * 27)  # 1204 x 896 pixels, and 1008 x 756 of at most 1024 * 28 * 28


def test_configuration():
    with_head, text_only = run("configuration.py")
    assert with_head > text_only > 70e9


def test_forward_example(tiny, picture):
    assert isinstance(run("forward_example.py", tiny, picture), str)


def test_examples_are_programs(tiny):
    command = [sys.executable, str(EXAMPLES / "mixed_batch.py"), tiny]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"{PLAIN}\n\n{LABELLED}\n", done.stderr


class TestThePageItself:
    """The code as the documentation page prints it, with ``qvl`` for ``transformers`` and a tiny checkpoint.

    Left out is the example under ``forward``, which uses names that it never defines; see forward_example.py.
    """

    @pytest.fixture
    def page(self):
        if not PAGE.is_file():
            pytest.skip(f"the documentation page is not at {PAGE}; set QVL_PAGE to its text")
        return PAGE.read_text(encoding="utf-8")

    @pytest.fixture
    def block(self, page, tiny, picture, clip):
        def block(first, last, model=tiny):
            """The lines of the page from ``first`` to ``last``, as a program."""
            begin = page.index(first)
            begin = page.rindex("\n", 0, begin) + 1
            end = page.index("\n", page.index(last, begin) + len(last))
            code = textwrap.dedent(page[begin:end]).replace("Qwen/Qwen2.5-VL-7B-Instruct", model)
            code = code.replace("from transformers import", "from qvl import")
            code = code.replace(">>> ", "").replace("/path/to/video.mp4", clip)
            return re.sub(r"https?://\S+/pipeline-cat-chonk\.jpeg", picture, code)

        return block

    def test_pipeline(self, block):
        code = block("import torch\nfrom transformers import pipeline", "pipe(text=messages")
        names = {}
        exec(code.replace("pipe(text=", "answer = pipe(text="), names)
        assert isinstance(names["answer"][0]["generated_text"], str)

    def test_quantization(self, block, tmp_path):
        pytest.importorskip("torchao")
        sizes = {"hidden_size": 128, "intermediate_size": 256}
        rope = {"rope_type": "default", "mrope_section": [4, 6, 6]}
        wide = str(write_checkpoint(tmp_path, **sizes, rope_scaling=rope))
        names = {}
        exec(
            block("import torch\nfrom transformers import TorchAoConfig", "quantization_config\n)", wide),
            names,
        )
        layer = names["model"].language_model.layers[0]
        assert is_quantized(layer.mlp.gate_proj.weight) and is_quantized(layer.self_attn.q_proj.weight)

    def test_video_and_mixed_batch(self, block, capsys):
        names = {}
        exec(
            block(
                "    import torch\n    from transformers import Qwen2_5_VLFor",
                "add_generation_prompt=True, add_vision_id",
            ),
            names,
        )
        assert (names["prompt_without_id"], names["prompt_with_id"]) == (PLAIN, LABELLED)
        names["model"] = names["model"].float()  # half precision is slow on a processor
        exec(block("    conversation = [", "print(output_text)"), names)
        assert isinstance(names["output_text"][0], str)
        assert capsys.readouterr().out == f"{names['output_text']}\n"
        assert names["inputs"].video_grid_thw.shape == (1, 3)

    def test_pixels(self, block):
        for first, limits in (("224*224", (224 * 224, 2048 * 2048)), ("256*28*28", (256 * 784, 1024 * 784))):
            names = {}
            exec(
                "from qvl import AutoProcessor\n" + block(f"min_pixels = {first}", "max_pixels=max_pixels)"),
                names,
            )
            image = names["processor"].image_processor
            assert (image.min_pixels, image.max_pixels) == limits

    @pytest.mark.parametrize("model", ["Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLTextModel"])
    def test_configuration(self, block, model):
        names = {}
        with torch.device("meta"):
            exec(
                block(
                    f">>> from transformers import {model}, Qwen2_5_VLConfig", "configuration = model.config"
                ),
                names,
            )
        assert names["configuration"] is names["model"].config
        assert names["model"].num_parameters() > 70e9
