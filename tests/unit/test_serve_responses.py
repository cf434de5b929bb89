"""`/v1/responses`: items of a conversation in, items of an answer out, and the events in between."""

import json
from dataclasses import replace
from typing import Any

import pytest

from support.pictures import FakeMedia, picture_uri
from support.serving import bundled_processor, client, fake_backend

CALL = '<tool_call>\n{"name": "clock", "arguments": {"zone": "CET"}}\n</tool_call>'
CLOCK = {
    "type": "function",
    "name": "clock",
    "description": "Tells the time",
    "parameters": {"type": "object"},
}


def backend(said: Any) -> Any:
    return replace(fake_backend(said, media=False), media=FakeMedia(pages=2))


def ask(said: Any = "You there", **body: Any) -> tuple[int, dict[str, Any]]:
    with client(backend(said)) as http:
        answer = http.post("/v1/responses", json=body)
    return answer.status_code, answer.json()


def events(said: Any = "You there", **body: Any) -> list[dict[str, Any]]:
    with client(backend(said)) as http:
        text = http.post("/v1/responses", json={"input": "Hi", **body, "stream": True}).text
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    found = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [head.removeprefix("event: ") for head, _ in blocks] == [event["type"] for event in found]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def prompt(path: str = "/v1/responses", **body: Any) -> list[int]:
    """What the model gets to read."""
    served = backend("x")
    with client(served) as http:
        answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return list(served.service._engine.added[0][0].token_ids)


def chat_prompt(**body: Any) -> list[int]:
    return prompt("/v1/chat/completions", **body)


def test_an_answer() -> None:
    status, answer = ask(input="Hi", max_output_tokens=50, store=True)
    (item,) = answer["output"]
    assert status == 200 and answer["object"] == "response" and answer["status"] == "completed"
    assert item["content"] == [
        {"type": "output_text", "text": "You there", "annotations": [], "logprobs": []}
    ]
    assert item["role"] == "assistant" and item["id"].startswith("msg_") and item["status"] == "completed"
    assert answer["store"] is False and answer["error"] is None and answer["incomplete_details"] is None
    assert answer["usage"]["output_tokens"] == 3 and answer["usage"]["input_tokens_details"] == {
        "cached_tokens": 0
    }
    assert answer["max_output_tokens"] == 50 and answer["text"] == {"format": {"type": "text"}}


def test_an_answer_that_is_cut() -> None:
    _, answer = ask(input="Hi", max_output_tokens=1)
    assert answer["status"] == "incomplete" and answer["incomplete_details"] == {
        "reason": "max_output_tokens"
    }
    assert answer["output"][0]["status"] == "incomplete"
    assert events(max_output_tokens=1)[-1]["type"] == "response.incomplete"


def test_a_conversation() -> None:
    items = [
        {"role": "user", "content": "One?"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Two."}]},
        {"type": "reasoning", "summary": []},
        {"role": "user", "content": [{"type": "input_text", "text": "Three?"}]},
    ]
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    assert prompt(input=items, instructions="Be short.") == chat_prompt(messages=messages)
    assert prompt(input="Hi") == chat_prompt(messages=[{"role": "user", "content": "Hi"}])


def test_pictures_and_files() -> None:
    url, pdf = picture_uri(), "data:application/pdf;base64,JVBERi0="
    parts = [
        {"type": "input_image", "image_url": url, "detail": "low", "min_pixels": 784},
        {"type": "input_file", "file_data": pdf, "filename": "a.pdf"},
        {"type": "input_text", "text": "?"},
    ]
    same = [
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}, "min_pixels": 784},
        {"type": "file", "file": {"file_data": pdf}},
        {"type": "text", "text": "?"},
    ]
    ours = prompt(input=[{"role": "user", "content": parts}])
    assert ours == chat_prompt(messages=[{"role": "user", "content": same}])
    assert ours.count(bundled_processor().image_token_id) > 8


def test_a_medium_is_named_by_its_place() -> None:
    with client(fake_backend("x")) as http:
        body = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,x"}]}]}
        answer = http.post("/v1/responses", json={**body, "instructions": "Be short."})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "input[0].content[0]"


def test_calls_and_results() -> None:
    items = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": '{"zone": "CET"}'},
        {"type": "function_call", "call_id": "c2", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "12:00"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "13:00"}],
        },
    ]
    calls = [
        {"id": i["call_id"], "type": "function", "function": {"name": "clock", "arguments": i["arguments"]}}
        for i in items[2:4]
    ]
    messages = [
        items[0],
        {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
        {"role": "tool", "tool_call_id": "c2", "content": "13:00"},
    ]
    tool = {"type": "function", "function": {key: value for key, value in CLOCK.items() if key != "type"}}
    assert prompt(input=items, tools=[CLOCK]) == chat_prompt(messages=messages, tools=[tool])


def test_an_answer_that_calls() -> None:
    _, answer = ask(f"So:\n{CALL}\n{CALL}", input="Hi", tools=[CLOCK])
    text, first, second = answer["output"]
    assert (
        text["content"][0]["text"] == "So:"
        and [item["type"] for item in (first, second)] == ["function_call"] * 2
    )
    assert (first["name"], first["arguments"]) == ("clock", '{"zone": "CET"}')
    assert first["id"].startswith("fc_") and first["call_id"] != second["call_id"]


def test_events_of_a_text() -> None:
    found = events()
    assert [event["type"] for event in found] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert found[0]["response"]["status"] == "in_progress" and found[0]["response"]["output"] == []
    assert [event["delta"] for event in found[4:6]] == ["You", " there"] and found[6]["text"] == "You there"
    assert (
        found[-1]["response"]["output"] == [found[-2]["item"]]
        and found[-1]["response"]["usage"]["output_tokens"] == 3
    )
    assert len({event["item_id"] for event in found[3:8]}) == 1


def test_events_of_a_call() -> None:
    found = events(f"So:\n{CALL}", tools=[CLOCK])
    kinds = [
        event["type"] for event in found if "function_call" in event["type"] or "output_item" in event["type"]
    ]
    assert kinds[:3] == [
        "response.output_item.added",
        "response.output_item.done",
        "response.output_item.added",
    ]
    assert kinds[-2:] == ["response.function_call_arguments.done", "response.output_item.done"]
    deltas = [event["delta"] for event in found if event["type"] == "response.function_call_arguments.delta"]
    assert len(deltas) > 2 and "".join(deltas) == '{"zone": "CET"}' == found[-2]["item"]["arguments"]
    assert {event["output_index"] for event in found if "output_index" in event} == {0, 1}


def test_an_answer_that_breaks_off() -> None:
    ids = bundled_processor().tokenizer.encode("You there")
    found = events([*ids, RuntimeError("secret")])
    assert found[-1]["type"] == "response.failed" and found[-1]["response"]["status"] == "failed"
    assert found[-1]["response"]["error"]["code"] == "server_error" and "secret" not in json.dumps(found)


def test_a_schema() -> None:
    stubborn = bundled_processor().tokenizer.encode("no " * 50)
    schema = {
        "type": "object",
        "properties": {"x": {"const": 7}},
        "required": ["x"],
        "additionalProperties": False,
    }
    wanted = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    _, answer = ask(stubborn, input="Hi", text=wanted)
    assert json.loads(answer["output"][0]["content"][0]["text"]) == {"x": 7}
    assert answer["text"]["format"]["schema"] == schema


def test_log_probabilities() -> None:
    _, answer = ask(input="Hi", include=["message.output_text.logprobs"], top_logprobs=2)
    tokens = answer["output"][0]["content"][0]["logprobs"]
    assert [token["token"] for token in tokens] == ["You", " there"] and len(tokens[0]["top_logprobs"]) == 2
    streamed = events(top_logprobs=2)
    assert [e["logprobs"] for e in streamed if e["type"] == "response.output_text.delta"] == [
        [t] for t in tokens
    ]


@pytest.mark.parametrize(
    "body, param",
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": "x", "previous_response_id": "r"}, "previous_response_id"),
        ({"input": "x", "conversation": "c"}, "conversation"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "truncation": "auto"}, "truncation"),
        ({"input": "x", "max_tokens": 3}, "max_tokens"),
        ({"input": "x", "n": 2}, "n"),
        ({"input": "x", "include": ["file_search_call.results"]}, "include"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": [{"type": "item_reference", "id": "i"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input_image"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input_file"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input_audio"),
        ({"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "input[0].content[0]"),
        ({"input": "x", "model": "gpt"}, "model"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: str) -> None:
    status, answer = ask(**body)
    assert status == (404 if param == "model" else 400) and answer["error"]["param"] == param, answer
