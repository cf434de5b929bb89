"""The small model inside qvl: it reads handwriting it never saw, in a folder like a released checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from qvl import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from qvl.hub import BUNDLED

ROOT = Path(__file__).parents[2]
FOLDER = BUNDLED["qvl/digits"]
PICTURES = {"digits.png": "407", "two_digits.png": "25", "one_digit.png": "8"}


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained("qvl/digits")


@pytest.fixture(scope="module")
def model():
    return Qwen2_5_VLForConditionalGeneration.from_pretrained("qvl/digits", dtype=torch.float32)


def ask(model, processor, messages, **options) -> str:
    inputs = processor.apply_chat_template(
        messages,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        **options,
    )
    generated = model.generate(**inputs, max_new_tokens=6)
    return processor.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def question(text: str, **medium) -> list[dict]:
    return [{"role": "user", "content": [medium, {"type": "text", "text": text}]}]


@pytest.mark.parametrize(("digits", "rate"), [(1, 0.97), (3, 0.90)])
def test_reads_held_out_scans(model, processor, digits, rate):
    """All held-out scans, as ``python -m examples.digits.evaluate`` shows them."""
    pytest.importorskip("sklearn")
    from examples.digits.data import load_scans
    from examples.digits.evaluate import cases, score

    _, held_out = load_scans()
    shown = list(cases(held_out, digits))
    right = score(model, processor, shown)
    assert right >= rate * len(shown)


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("text", ["What number is written here?", "Read the digits."])
def test_reads_the_example_pictures(model, processor, name, text):
    path = str(ROOT / "examples" / "pictures" / name)
    assert ask(model, processor, question(text, type="image", path=path)) == PICTURES[name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reads_in_half_precision(processor, dtype):
    half = Qwen2_5_VLForConditionalGeneration.from_pretrained("qvl/digits", dtype=dtype)
    path = str(ROOT / "examples" / "pictures" / "digits.png")
    assert ask(half, processor, question("What number is this?", type="image", path=path)) == "407"


def test_reads_a_second_picture_in_the_same_conversation(model, processor):
    first, second = (
        str(ROOT / "examples" / "pictures" / name) for name in ("two_digits.png", "one_digit.png")
    )
    messages = question("What number is this?", type="image", path=first)
    messages.append({"role": "assistant", "content": [{"type": "text", "text": "25"}]})
    messages += question("Which digit is this?", type="image", path=second)
    assert ask(model, processor, messages) == "8"


def test_other_input_is_answered_somehow(model, processor):
    """A photograph, a film, text alone: it was not trained for them, but nothing breaks."""
    generator = np.random.default_rng(0)
    photo = Image.fromarray(generator.integers(0, 256, (1200, 1600, 3), dtype=np.uint8))
    film = [Image.fromarray(generator.integers(0, 256, (120, 160, 3), dtype=np.uint8)) for _ in range(4)]
    assert isinstance(ask(model, processor, question("Describe it.", type="image", image=photo)), str)
    assert isinstance(
        ask(model, processor, question("What happens?", type="video", video=film), fps=2.0), str
    )
    assert isinstance(ask(model, processor, [{"role": "user", "content": "Grüße! 你好, how are you?"}]), str)


def test_large_pictures_are_made_small_and_small_ones_large(processor):
    for size in ((4000, 3000), (20, 30)):
        grid = processor.image_processor(Image.new("RGB", size), return_tensors="pt")["image_grid_thw"]
        assert 6 <= int(grid.prod()) // 4 <= 12


def test_folder_is_like_a_released_one_and_small():
    names = {path.name for path in FOLDER.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "chat_template.jinja",
        "README.md",
    } <= names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4_000_000
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    assert {name.split(".")[0] for name in names} == {"visual", "model"}
    assert "lm_head.weight" not in names  # tied


def test_architecture_is_the_whole_one():
    """Windows and whole frames, grouped queries, all three sections: nothing of Qwen2.5-VL is left out."""
    config = json.loads((FOLDER / "config.json").read_text())
    vision, text = config["vision_config"], config["text_config"]
    assert 0 < len(vision["fullatt_block_indexes"]) < vision["depth"]
    assert text["num_key_value_heads"] < text["num_attention_heads"]
    assert len(text["rope_scaling"]["mrope_section"]) == 3
