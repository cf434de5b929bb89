"""`/tokenize` and `/v1/models`: what a request costs and what is served, without running anything."""

import json
from dataclasses import replace
from typing import Any

import pytest

from support.pictures import FakeMedia, picture_uri
from support.serving import bundled_processor, client, fake_backend

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


def picture(**options: Any) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": picture_uri(120, 90)}, **options},
        {"type": "text", "text": "?"},
    ]
    return {"messages": [{"role": "user", "content": parts}]}


def backend() -> Any:
    return replace(fake_backend("7", media=False), media=FakeMedia())


def ask(**body: Any) -> tuple[int, dict[str, Any]]:
    with client(backend()) as http:
        answer = http.post("/tokenize", json=body)
    return answer.status_code, answer.json()


def test_a_conversation() -> None:
    status, answer = ask(**CHAT)
    (ids,) = bundled_processor().apply_chat_template(
        CHAT["messages"], tokenize=True, add_generation_prompt=True
    )
    assert status == 200 and answer["tokens"] == ids
    assert (answer["count"], answer["max_model_len"], answer["left"]) == (len(ids), 32768, 32768 - len(ids))
    assert answer["media"] == []


def test_a_prompt() -> None:
    _, answer = ask(prompt="<|im_start|>Hi", return_token_strs=True)
    start = bundled_processor().tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert answer["tokens"][0] == start and answer["token_strs"][0] == "<|im_start|>"
    assert ask(prompt="Hi", return_tokens=False)[1]["tokens"] is None


def test_a_picture_costs_what_it_will_cost() -> None:
    served = fake_backend("7")  # with the real media service
    with client(served) as http:
        told = http.post("/tokenize", json=picture()).json()
        assert not served.service._engine.added, "nothing is run"
        ran = http.post("/v1/chat/completions", json=picture()).json()
    prompt = served.service._engine.added[0][0]
    assert told["tokens"] == list(prompt.token_ids) and told["count"] == ran["usage"]["prompt_tokens"]
    (medium,) = told["media"]
    assert medium["tokens"] == prompt.spans[0].length and medium["where"] == "messages[0].content[0]"
    assert (medium["width"], medium["height"], medium["kind"]) == (120, 90, "image")
    grid = prompt.media[0].grid
    assert (medium["resized_width"], medium["resized_height"]) == (grid.w * 14, grid.h * 14)


def test_sizes_count() -> None:
    small = ask(**picture(min_pixels=784, max_pixels=784 * 2))[1]["media"][0]["tokens"]
    assert small <= 2 < ask(**picture())[1]["media"][0]["tokens"]


def test_tools_count() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert ask(**CHAT, tools=tools)[1]["count"] > ask(**CHAT, tools=tools, tool_choice="none")[1]["count"]


def test_a_body_of_chat_completions_is_welcome() -> None:
    body = {"model": "qvl/tiny", "stream": True, "max_tokens": 5, "temperature": 1, "stop": "x", "n": 2}
    assert ask(**CHAT, **body, user="me", response_format={"type": "text"})[0] == 200


@pytest.mark.parametrize(
    "body, param",
    [
        ({}, "messages"),
        ({**CHAT, "prompt": "x"}, "messages"),
        ({"prompt": "x", "nose": 1}, "nose"),
        ({**CHAT, "model": "other"}, "model"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:,x"}]}]}, None),
    ],
    ids=["nothing", "both", "unknown", "model", "picture"],
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: Any) -> None:
    status, answer = ask(**body)
    assert status == (404 if param == "model" else 400)
    assert answer["error"]["param"] == param, answer


def test_models() -> None:
    with client(fake_backend("x", served_name="digits")) as http:
        listed, found = http.get("/v1/models").json(), http.get("/v1/models/digits").json()
        assert http.get("/v1/models/qvl/tiny").status_code == 200, "the checkpoint's own name"
        missing = http.get("/v1/models/gpt-4o")
        chat = http.post("/v1/chat/completions", json={**CHAT, "model": "digits"})
    assert listed["data"] == [found] and found["id"] == "digits" and found["max_model_len"] == 32768
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"
    assert chat.json()["model"] == "digits"


def test_the_description_of_the_api() -> None:
    with client(fake_backend("x")) as http:
        described = http.get("/openapi.json").json()
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize"):
        operation = described["paths"][path]["post"]
        assert operation["summary"] and {"400", "429", "503"} <= operation["responses"].keys()
    assert "min_pixels" in json.dumps(described)
