"""The pipeline beside transformers' own, both over the same tiny weights and the same processor.

transformers' processor needs torchvision, which the pipeline itself does not ask for; so its pipeline is
given qvl's processor, and what is compared is everything that a pipeline does.
"""

import copy
import inspect

import pytest
import torch
from PIL import Image

from support.checkpoint import write_checkpoint

pytestmark = pytest.mark.oracle

NOISE = torch.Generator().manual_seed(0)
CAT, DOG = (
    Image.fromarray(torch.randint(0, 256, (h, w, 3), generator=NOISE, dtype=torch.uint8).numpy())
    for h, w in ((60, 90), (84, 56))
)
MARK = "<|vision_start|><|image_pad|><|vision_end|>"


def user(*content):
    return {"role": "user", "content": list(content)}


def text(words):
    return {"type": "text", "text": words}


def picture(image=None):
    return {"type": "image"} if image is None else {"type": "image", "image": image}


CHAT = [user(picture(CAT), text("What is this?"))]
BARE = [user(picture(), text("What is this?"), picture(), text("And this?"))]
PREFIX = {"role": "assistant", "content": [text("There is")]}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    import transformers
    from transformers.pipelines import ImageTextToTextPipeline

    import qvl

    folder = write_checkpoint(tmp_path_factory.mktemp("tiny"))
    ours = qvl.pipeline("image-text-to-text", model=str(folder), device="cpu", max_new_tokens=6)
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    theirs = ImageTextToTextPipeline(model=model, processor=ours.processor, device="cpu", task=ours.task)
    return ours, theirs


CALLS = {
    "conversation": {"text": CHAT},
    "new text only": {"text": CHAT, "return_full_text": False},
    "conversation by place": {"images": CHAT},
    "two conversations": {"text": [CHAT, [user(text("Hello"))]]},
    "images beside the messages": {"text": BARE, "images": [CAT, DOG]},
    "an OpenAI entry": {"text": [user({"type": "image_url", "image_url": {"url": "PATH"}})]},
    "a final message to continue": {"text": [*CHAT, PREFIX]},
    "a final message not to continue": {"text": [*CHAT, PREFIX], "continue_final_message": False},
    "plain text": {"text": "Once upon a time"},
    "plain texts": {"text": ["Once upon", "a time"]},
    "text with an image": {"images": CAT, "text": f"{MARK}What?"},
    "texts with images": {
        "images": [CAT, DOG],
        "text": [f"{MARK}What?", f"{MARK}And what is this here?"],
        "padding_side": "left",  # transformers goes wrong after padding on the right
    },
    "a dict": {"images": {"images": [CAT], "text": f"{MARK}What?"}},
    "special tokens shown": {"text": CHAT, "skip_special_tokens": False},
    "settings": {"text": CHAT, "generate_kwargs": {"num_beams": 2, "min_new_tokens": 3}},
    "token ids": {"text": "Once upon a time", "return_tensors": True},
}


def test_the_arguments_stand_where_transformers_has_them():
    import transformers

    import qvl

    def order(function):
        named = inspect.signature(function).parameters.values()
        return [(p.name, p.default) for p in named if p.name != "kwargs"]

    expected = order(transformers.pipeline)
    assert order(qvl.pipeline)[: len(expected)] == expected


@pytest.mark.parametrize("name", CALLS)
def test_same_records(pipelines, name, tmp_path):
    CAT.save(tmp_path / "cat.png")
    call = copy.deepcopy(CALLS[name])
    if name == "an OpenAI entry":
        call["text"][0]["content"][0]["image_url"]["url"] = str(tmp_path / "cat.png")
    ours, theirs = pipelines
    mine = ours(**copy.deepcopy(call), max_new_tokens=6)
    reference = theirs(**copy.deepcopy(call), max_new_tokens=6)
    assert plain(mine) == plain(reference)


def plain(value):
    """Pictures and tensors as values that compare."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return (value.size, value.tobytes()) if isinstance(value, Image.Image) else value
