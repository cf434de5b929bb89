"""`/v1/completions`: texts and token ids as they are, and the older form of log probabilities."""

import json
from typing import Any

import pytest

from support.serving import VOCAB, bundled_processor, client, fake_backend


def ask(**body: Any) -> tuple[int, dict[str, Any]]:
    with client(fake_backend("You there")) as http:
        answer = http.post("/v1/completions", json=body)
    return answer.status_code, answer.json()


def stream(**body: Any) -> list[dict[str, Any]]:
    with client(fake_backend("You there")) as http:
        text = http.post("/v1/completions", json={**body, "stream": True}).text
    assert text.endswith("data: [DONE]\n\n")
    return [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]


IDS = bundled_processor().tokenizer.encode("Hi")
SPECIAL = bundled_processor().tokenizer.convert_tokens_to_ids("<|im_start|>")


@pytest.mark.parametrize(
    "prompt, prompts",
    [("Hi", [IDS]), (["Hi", "Hi"], [IDS, IDS]), (IDS, [IDS]), ([IDS, [5]], [IDS, [5]])],
    ids=["text", "texts", "ids", "lists of ids"],
)
def test_prompts(prompt: Any, prompts: list[list[int]]) -> None:
    backend = fake_backend("You there")
    with client(backend) as http:
        answer = http.post("/v1/completions", json={"prompt": prompt}).json()
    assert [list(made.token_ids) for made, *_ in backend.service._engine.added] == prompts
    assert answer["object"] == "text_completion"
    assert [(c["index"], c["text"], c["finish_reason"]) for c in answer["choices"]] == [
        (i, "You there", "stop") for i in range(len(prompts))
    ]
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert answer["usage"]["completion_tokens"] == 3 * len(prompts)


def test_special_tokens_count_in_a_prompt() -> None:
    backend = fake_backend("x")
    with client(backend) as http:
        http.post("/v1/completions", json={"prompt": "<|im_start|>user\n"})
    assert backend.service._engine.added[0][0].token_ids[0] == SPECIAL


def test_several_answers_to_several_prompts() -> None:
    _, answer = ask(prompt=["Hi", "Read"], n=2, echo=True)
    assert [choice["text"] for choice in answer["choices"]] == ["HiYou there"] * 2 + ["ReadYou there"] * 2
    _, answer = ask(prompt=IDS, echo=True)
    assert answer["choices"][0]["text"] == "HiYou there"


def test_log_probabilities() -> None:
    _, answer = ask(prompt="Hi", logprobs=2)
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["You", " there"] and logprobs["text_offset"] == [0, 3]
    assert all(len(top) == 2 for top in logprobs["top_logprobs"])
    assert logprobs["top_logprobs"][0]["You"] == logprobs["token_logprobs"][0]
    assert ask(prompt="Hi", logprobs=0)[1]["choices"][0]["logprobs"]["top_logprobs"] == [{}, {}]
    assert ask(prompt="Hi")[1]["choices"][0]["logprobs"] is None


def test_a_stream() -> None:
    chunks = stream(prompt=["Hi", "Read"], echo=True, stream_options={"include_usage": True})
    texts = ["", ""]
    for chunk in chunks[:-1]:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
        assert chunk["usage"] is None
    assert texts == ["HiYou there", "ReadYou there"]
    assert chunks[-1]["usage"]["completion_tokens"] == 6 and chunks[-1]["choices"] == []
    offsets = [c["choices"][0]["logprobs"] for c in stream(prompt="Hi", logprobs=1)]
    assert [entry["text_offset"] for entry in offsets if entry] == [[0], [3]]


def test_a_form() -> None:
    _, answer = ask(prompt="Hi", guided_choice=["5"])
    assert answer["choices"][0]["text"] == "5"


@pytest.mark.parametrize(
    "body, param",
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [[5, VOCAB]]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "<|image_pad|>"}, "prompt"),
        ({"prompt": ["x"] * 9, "n": 2}, "prompt"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "best_of": 2}, "best_of"),
        ({"prompt": "x", "echo": True, "logprobs": 1}, "echo"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "model": "gpt"}, "model"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: str) -> None:
    status, answer = ask(**body)
    assert status == (404 if param == "model" else 400), answer
    assert answer["error"]["param"] == param, answer
