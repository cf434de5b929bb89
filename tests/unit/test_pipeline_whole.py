"""The pipeline with a real processor and a tiny checkpoint: pictures from everywhere, batches, the page."""

import base64
import functools
import http.server
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import qvl
from qvl.errors import MediaNotFoundError, PlaceholderMismatchError, PromptError
from support.checkpoint import write_checkpoint

PIXELS = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    Image.fromarray(PIXELS).save(folder / "cat.png")
    write_checkpoint(folder / "model")
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    return qvl.pipeline(task="image-text-to-text", model=str(folder / "model"), device=-1, dtype="float32")


@pytest.fixture(scope="module")
def url(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/cat.png"
    server.shutdown()


def chat(**source):
    content = [{"type": "image", **source}, {"type": "text", "text": "Describe this image."}]
    return [{"role": "user", "content": content}]


def answer(pipe, messages, **settings):
    (record,) = pipe(text=messages, max_new_tokens=8, return_full_text=False, **settings)
    return record["generated_text"]


def test_the_call_of_the_documentation_page(folder, url):
    pipe = qvl.pipeline(
        task="image-text-to-text", model=str(folder / "model"), device=0, dtype=torch.bfloat16
    )
    messages = chat(url=url)
    (record,) = pipe(text=messages, max_new_tokens=20, return_full_text=False)
    assert record["input_text"] == messages
    assert record["generated_text"] and isinstance(record["generated_text"], str)
    assert pipe.dtype == torch.bfloat16


def test_the_same_picture_from_everywhere(pipe, folder, url):
    path = folder / "cat.png"
    coded = base64.b64encode(path.read_bytes()).decode()
    sources = [
        {"image": Image.fromarray(PIXELS)},
        {"image": PIXELS},
        {"image": path.read_bytes()},
        {"image": str(path)},
        {"image": url},
        {"path": path},
        {"url": url},
        {"url": f"data:image/png;base64,{coded}"},
        {"base64": coded},
    ]
    answers = {answer(pipe, chat(**source)) for source in sources}
    answers |= {answer(pipe, chat(), images=images) for images in (str(path), url, [Image.fromarray(PIXELS)])}
    openai = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "Describe this image."},
    ]
    answers.add(answer(pipe, [{"role": "user", "content": openai}]))
    assert len(answers) == 1
    assert answers != {answer(pipe, chat(image=Image.new("RGB", (90, 60))))}


def test_a_batch_of_unlike_chats_gives_what_each_gives(pipe):
    chats = [
        chat(image=Image.fromarray(PIXELS)),
        [{"role": "user", "content": "Hello"}],
        chat(image=Image.new("RGB", (140, 60), "red")),
        [*chat(image=Image.fromarray(PIXELS)), {"role": "assistant", "content": "There is"}],
    ]
    together = pipe(text=chats, batch_size=4, max_new_tokens=8)
    assert together == [pipe(text=one, max_new_tokens=8) for one in chats]
    assert together[3][0]["generated_text"][-1]["content"].startswith("There is")
    ids = pipe(text=chats[0], max_new_tokens=8, return_tensors=True)[0]["generated_token_ids"]
    assert pipe.processor.decode(ids[-8:], skip_special_tokens=True) == answer(pipe, chats[0])


def test_settings_reach_the_model_and_the_processor(pipe):
    picture = Image.fromarray(PIXELS).resize((900, 600))

    def length(**settings):
        (record,) = pipe(text=chat(image=picture), max_new_tokens=2, return_tensors=True, **settings)
        return len(record["generated_token_ids"])

    assert length(max_pixels=56 * 56) < length(max_pixels=448 * 448)
    sampled = {"do_sample": True, "temperature": 2.0, "seed": 1}
    direct = answer(pipe, chat(image=picture), **sampled)
    assert direct == answer(pipe, chat(image=picture), generate_kwargs=sampled)
    assert direct != answer(pipe, chat(image=picture), **sampled | {"seed": 2})
    two = pipe(text=chat(image=picture), max_new_tokens=8, num_beams=2, num_return_sequences=2)
    assert len(two) == 2


def test_special_tokens_in_a_message_stay_text(pipe):
    message = [{"role": "user", "content": "a<|im_end|>b<|image_pad|>"}]
    ids = pipe(text=message, max_new_tokens=1, return_tensors=True)[0]["generated_token_ids"].tolist()
    tokenizer = pipe.tokenizer
    assert ids.count(tokenizer.convert_tokens_to_ids("<|image_pad|>")) == 0
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) <= 3  # the template's two, and one answer


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ({"text": chat(path="/no/such.png")}, MediaNotFoundError),
        ({"text": chat()}, PromptError),
        ({"text": "no placeholder", "images": Image.fromarray(PIXELS)}, PlaceholderMismatchError),
        ({"text": chat(image=PIXELS), "max_new_tokens": -1}, ValueError),
    ],
)
def test_wrong_calls(pipe, call, error):
    with pytest.raises(error):
        pipe(**{"max_new_tokens": 2, **call})
