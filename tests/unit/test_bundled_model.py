"""The small model inside qvl: what it says about pictures and films that it never saw."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from qvl import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from qvl.evaluate import Settings, evaluate
from qvl.hub import BUNDLED
from qvl.processing.rows import read_rows

NAME = "qvl/tiny"
EXAMPLES = Path(__file__).parents[2] / "examples"
PICTURES = EXAMPLES / "pictures"
SAID = {
    ("What number is written here?", "digits.png"): "407",
    ("Read the digits.", "two_digits.png"): "25",
    ("Which digit is this?", "one_digit.png"): "8",
    ("What does it say?", "sign.png"): "Bakery",
    ("What is the number of shapes?", "shapes.png"): "6",
    ("How many circles are there?", "shapes.png"): "3",
    ("When does the blue square appear?", "appears.mp4"): "4.0 seconds",
    ("Which way does the star move?", "moves.mp4"): "left",
    ("What does it cost?", "sign.png"): "I can't tell.",
}


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(NAME)


@pytest.fixture(scope="module")
def model():
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(NAME, dtype=torch.float32)


def ask(model, processor, messages, **options) -> str:
    inputs = processor.apply_chat_template(
        messages,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        **options,
    )
    generated = model.generate(**inputs, max_new_tokens=48)
    return processor.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def question(text: str, *media) -> list[dict]:
    """``media``: names of example files, or pictures, or frames."""
    parts = []
    for medium in media:
        kind = "video" if isinstance(medium, list) or str(medium).endswith("mp4") else "image"
        parts.append({"type": kind, kind: str(PICTURES / medium) if isinstance(medium, str) else medium})
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@pytest.mark.parametrize("asked", SAID, ids=lambda asked: asked[0])
def test_answers_about_the_example_pictures(model, processor, asked):
    assert ask(model, processor, question(*asked)) == SAID[asked]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_answers_in_half_precision(processor, dtype):
    half = Qwen2_5_VLForConditionalGeneration.from_pretrained(NAME, dtype=dtype)
    said = {asked: ask(half, processor, question(*asked)) for asked in SAID}
    assert said == SAID


def test_the_examination_in_files(model, processor):
    """``qvl eval qvl/tiny examples/exam/rows.jsonl``: six questions of every kind."""
    rows = list(read_rows(EXAMPLES / "exam" / "rows.jsonl"))
    report = evaluate(model, processor, rows, settings=Settings(max_new_tokens=56))
    assert len(rows) == 66 and report.total.errors == 0
    assert report.total.score >= 0.6
    assert all(task.score >= 0.8 for task in report.tasks if task.task in ("digits", "name", "motion"))


def test_other_input_is_answered_somehow(model, processor):
    """A photograph, a film, text alone: it was not trained for them, but nothing breaks."""
    generator = np.random.default_rng(0)
    photo = Image.fromarray(generator.integers(0, 256, (1200, 1600, 3), dtype=np.uint8))
    film = [Image.fromarray(generator.integers(0, 256, (120, 160, 3), dtype=np.uint8)) for _ in range(4)]
    assert isinstance(ask(model, processor, question("Describe it.", photo)), str)
    assert isinstance(ask(model, processor, question("What happens?", film), fps=2.0), str)
    assert isinstance(ask(model, processor, [{"role": "user", "content": "Grüße! 你好, how are you?"}]), str)


def test_large_pictures_are_made_small_and_small_ones_large(processor):
    for size in ((4000, 3000), (20, 30)):
        grid = processor.image_processor(Image.new("RGB", size), return_tensors="pt")["image_grid_thw"]
        assert 4 <= int(grid.prod()) // 4 <= 100


def test_folder_is_like_a_released_one_and_small():
    folder = BUNDLED[NAME]
    names = {path.name for path in folder.iterdir()}
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
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12_000_000
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    assert {name.split(".")[0] for name in names} == {"visual", "model"}
    assert "lm_head.weight" not in names  # tied


def test_architecture_is_the_whole_one():
    """Windows and whole frames, grouped queries, all three sections: nothing of Qwen2.5-VL is left out."""
    config = json.loads((BUNDLED[NAME] / "config.json").read_text())
    vision, text = config["vision_config"], config["text_config"]
    assert 0 < len(vision["fullatt_block_indexes"]) < vision["depth"]
    assert text["num_key_value_heads"] < text["num_attention_heads"]
    assert len(text["rope_scaling"]["mrope_section"]) == 3
