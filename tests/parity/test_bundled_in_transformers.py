"""The bundled checkpoint in transformers 4.57: it loads there as it is and gives the same answers."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration as Theirs
from transformers import Qwen2TokenizerFast, Qwen2VLImageProcessor

from qvl import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from qvl.hub import BUNDLED

pytestmark = pytest.mark.oracle

ROOT = Path(__file__).parents[2]
FOLDER = BUNDLED["qvl/tiny"]


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def models():
    ours = Qwen2_5_VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    theirs, report = Theirs.from_pretrained(FOLDER, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    return ours, theirs.eval()


@pytest.fixture(scope="module")
def inputs(processor):
    """Held-out lessons about one picture in one batch, as the public way makes them."""
    pytest.importorskip("sklearn", reason="scikit-learn ships the handwritten digits")
    pytest.importorskip("skimage", reason="scikit-image ships photographs for backgrounds")
    from examples.tiny.exam import questions

    try:
        rows = questions(0.05, ("text", "page", "digits", "name", "count", "find", "compare"))
        conversations = [row["messages"] for row in rows]
    except ImportError as missing:
        pytest.skip(str(missing))
    return processor.apply_chat_template(
        conversations,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )


def test_same_greedy_answers(models, inputs):
    ours, theirs = (
        model.generate(**inputs, max_new_tokens=24, do_sample=False, use_cache=True) for model in models
    )
    assert ours.tolist() == theirs.tolist()


def test_same_logits(models, inputs):
    with torch.no_grad():
        ours, theirs = (model(**inputs).logits[:, -1] for model in models)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_same_tokens_there(processor):
    theirs = Qwen2TokenizerFast.from_pretrained(FOLDER)
    content = [{"type": "image"}, {"type": "text", "text": "What is written here, s'il vous plaît?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert processor.tokenizer(text)["input_ids"] == theirs(text)["input_ids"]
    assert len(processor.tokenizer) == len(theirs)


def test_same_pixels_there(processor):
    theirs = Qwen2VLImageProcessor.from_pretrained(FOLDER)
    with Image.open(ROOT / "examples" / "pictures" / "digits.png") as picture:
        mine, other = (each(picture, return_tensors="pt") for each in (processor.image_processor, theirs))
    assert mine["image_grid_thw"].tolist() == other["image_grid_thw"].tolist()
    assert torch.equal(mine["pixel_values"], other["pixel_values"])
