"""OpenAI's own client against a live server with the bundled model."""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict

from support.serving import MODEL, LiveServer, bundled_model, bundled_processor, live_server

KEY = "a-key-for-tests"


@pytest.fixture(scope="module")
def picture() -> Path:
    """A 4, a 0 and a 7."""
    return Path(__file__).parents[2] / "examples" / "pictures" / "digits.png"


@pytest.fixture(scope="module")
def question(picture: Path) -> dict[str, Any]:
    """The model and a question about the picture."""
    return asking(with_picture(data_uri(picture)))


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(api_keys=(KEY,), fetch_hosts=("127.0.0.1",), repetition_tokens=0) as live:
        yield live


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


def alone(content: Any, most: int = 12) -> str:
    """What the model says without a server."""
    model, processor = bundled_model(), bundled_processor()
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    ids = model.generate(**inputs, max_new_tokens=most)
    return str(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def asking(content: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}]}


def with_picture(url: str) -> list[dict[str, Any]]:
    return [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What number is written here?"},
    ]


def as_input(path: Path) -> list[Any]:
    """The same question in the form of responses."""
    return [
        {"type": "input_image", "image_url": data_uri(path), "detail": "auto"},
        {"type": "input_text", "text": "What number is written here?"},
    ]


def data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def test_chat(client: openai.OpenAI) -> None:
    said = client.chat.completions.create(**asking("Hello"))
    assert said.choices[0].message.content == alone("Hello", 1024)
    assert said.choices[0].finish_reason == "stop" and said.model == MODEL
    assert said.usage and said.usage.prompt_tokens_details
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens


def test_streaming(client: openai.OpenAI, question: dict[str, Any]) -> None:
    whole = client.chat.completions.create(**question)
    chunks = list(
        client.chat.completions.create(**question, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        == whole.choices[0].message.content
    )
    assert chunks[-1].usage and whole.usage and chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert [c.choices[0].finish_reason for c in chunks[-2:] if c.choices] == ["stop"]


def test_vision_by_data_uri(client: openai.OpenAI, picture: Path) -> None:
    content = with_picture(data_uri(picture))
    said = client.chat.completions.create(**asking(content)).choices[0].message.content
    assert said == alone(content, 1024) == "407"


def test_vision_by_url(client: openai.OpenAI, picture: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    files = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(picture.parent)))
    threading.Thread(target=files.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{files.server_port}/{picture.name}"
        by_url = client.chat.completions.create(**asking(with_picture(url)))
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**asking(with_picture(url + "x")))
    finally:
        files.shutdown()
        files.server_close()
    by_data = client.chat.completions.create(**asking(with_picture(data_uri(picture))))
    assert by_url.choices[0].message.content == by_data.choices[0].message.content
    assert caught.value.param == "messages[0].content[0]"
    assert by_data.usage and by_data.usage.prompt_tokens_details
    assert by_data.usage.prompt_tokens_details.cached_tokens, "the same picture was seen before"


def test_tools(client: openai.OpenAI) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "look_up",
            "parameters": {
                "type": "object",
                "properties": {"digit": {"enum": [1, 2]}},
                "required": ["digit"],
                "additionalProperties": False,
            },
        },
    }
    asked: dict[str, Any] = {**asking("Look it up"), "tools": [tool], "tool_choice": "required"}
    asked |= {"parallel_tool_calls": False}
    choice = client.chat.completions.create(**asked).choices[0]
    (call,) = choice.message.tool_calls or ()
    assert choice.finish_reason == "tool_calls" and call.function.name == "look_up"
    assert json.loads(call.function.arguments)["digit"] in (1, 2)
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed and streamed[0].function.arguments == call.function.arguments
    follow_up = [
        *asked["messages"],
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": "seven"},
    ]
    said = client.chat.completions.create(model=MODEL, messages=follow_up, tools=[tool], max_tokens=4)
    assert said.choices[0].finish_reason in ("length", "stop")


class Verdict(BaseModel):
    # As `parse` asks for it: where others are allowed, a small model invents them without end.
    model_config = ConfigDict(extra="forbid")

    kind: Literal["digit", "letter"]
    sure: bool
    name: None


def test_structured_output(client: openai.OpenAI) -> None:
    said = client.chat.completions.parse(**asking("Hello"), response_format=Verdict)
    assert isinstance(said.choices[0].message.parsed, Verdict)
    schema = {
        "type": "json_schema",
        "json_schema": {"name": "v", "strict": True, "schema": Verdict.model_json_schema()},
    }
    text = (
        client.chat.completions.create(**asking("Hello"), response_format=schema).choices[0].message.content
    )
    assert Verdict.model_validate_json(text or "") == said.choices[0].message.parsed


def test_logprobs(client: openai.OpenAI, question: dict[str, Any]) -> None:
    choice = client.chat.completions.create(**question, logprobs=True, top_logprobs=3).choices[0]
    assert choice.logprobs and choice.logprobs.content
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == choice.message.content
    assert all(t.logprob == t.top_logprobs[0].logprob and len(t.top_logprobs) == 3 for t in tokens)  # greedy
    assert b"".join(bytes(t.bytes or ()) for t in tokens).decode() == choice.message.content


def test_several_answers_of_one_seed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {**asking("Hello"), "n": 3, "temperature": 2.0, "max_tokens": 32, "seed": 5}
    said, again = (client.chat.completions.create(**asked, extra_body={"ignore_eos": True}) for _ in range(2))
    assert [choice.index for choice in said.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in said.choices]
    assert texts == [choice.message.content for choice in again.choices] and len(set(texts)) == 3
    alone = client.chat.completions.create(**asked | {"n": 1, "seed": 7}, extra_body={"ignore_eos": True})
    assert alone.choices[0].message.content == texts[2], "answer i has seed + i"


def test_completions(client: openai.OpenAI) -> None:
    said = client.completions.create(
        model=MODEL, prompt=["Which digit", "Hello"], max_tokens=4, logprobs=2, echo=False
    )
    assert [choice.index for choice in said.choices] == [0, 1]
    logprobs = said.choices[0].logprobs
    assert logprobs and "".join(logprobs.tokens or ()) == said.choices[0].text
    streamed = client.completions.create(model=MODEL, prompt="Which digit", max_tokens=4, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == said.choices[0].text


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "qvl"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_responses(client: openai.OpenAI, picture: Path) -> None:
    items = [{"role": "user", "content": as_input(picture)}]
    said = client.responses.create(model=MODEL, input=items, store=False)
    assert said.output_text == alone(with_picture(data_uri(picture)), 1024) and said.status == "completed"
    assert said.usage and said.usage.total_tokens == said.usage.input_tokens + said.usage.output_tokens
    short = client.responses.create(model=MODEL, input=items, max_output_tokens=1)
    assert short.status == "incomplete" and short.incomplete_details
    assert short.incomplete_details.reason == "max_output_tokens"
    plain = client.responses.create(model=MODEL, input="Hello")
    assert plain.output_text == alone("Hello", 1024) != "" and plain.output[0].type == "message"
    ended_at_once = {"logit_bias": {str(bundled_processor().tokenizer.eos_token_id): 100}}
    silent = client.responses.create(model=MODEL, input="Hello", extra_body=ended_at_once)
    assert silent.output_text == "" and silent.output[0].type == "message"


def test_responses_in_a_stream(client: openai.OpenAI, picture: Path) -> None:
    kinds: list[str] = []
    text = ""
    with client.responses.stream(
        model=MODEL, input=[{"role": "user", "content": as_input(picture)}]
    ) as stream:
        for event in stream:
            kinds.append(event.type)
            text += event.delta if event.type == "response.output_text.delta" else ""
        final = stream.get_final_response()
    assert final.output_text == text and final.status == "completed"
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_responses_with_instructions(client: openai.OpenAI, picture: Path) -> None:
    items = [{"role": "user", "content": as_input(picture)}]
    said = client.responses.create(model=MODEL, input=items, instructions="Be short.")
    system = {"role": "system", "content": "Be short."}
    messages = [system, *asking(with_picture(data_uri(picture)))["messages"]]
    chat = client.chat.completions.create(model=MODEL, messages=messages)
    assert said.output_text == chat.choices[0].message.content
    assert said.usage and chat.usage and said.usage.input_tokens == chat.usage.prompt_tokens


def test_responses_with_tools_and_schemas(client: openai.OpenAI) -> None:
    tool: Any = {
        "type": "function",
        "name": "look_up",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"digit": {"enum": [1, 2]}},
            "required": ["digit"],
            "additionalProperties": False,
        },
    }
    asked: dict[str, Any] = {"model": MODEL, "input": "Look", "tools": [tool], "tool_choice": "required"}
    asked |= {"parallel_tool_calls": False}
    (item,) = client.responses.create(**asked).output
    assert item.type == "function_call" and json.loads(item.arguments)["digit"] in (1, 2)
    with client.responses.stream(**asked) as stream:
        (streamed,) = stream.get_final_response().output
    assert streamed.type == "function_call" and streamed.arguments == item.arguments
    follow_up: list[Any] = [
        {"role": "user", "content": "Look"},
        item,
        {"type": "function_call_output", "call_id": item.call_id, "output": "seven"},
    ]
    assert client.responses.create(model=MODEL, input=follow_up, tools=[tool], max_output_tokens=3).output
    parsed = client.responses.parse(model=MODEL, input="Hello", text_format=Verdict)
    assert isinstance(parsed.output_parsed, Verdict)


def test_errors(client: openai.OpenAI, server: LiveServer) -> None:
    with pytest.raises(openai.NotFoundError) as wrong:
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hi"}])
    assert wrong.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="another-key", max_retries=0).models.list()
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(**asking("digit " * 40_000))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as broken:
        client.chat.completions.create(**asking(with_picture("data:image/png;base64,AAAA")))
    assert broken.value.param == "messages[0].content[0]" and broken.value.code == "invalid_media"
    with pytest.raises(openai.BadRequestError) as private:
        client.chat.completions.create(**asking(with_picture("http://169.254.169.254/latest")))
    assert private.value.param == "messages[0].content[0]"


def test_the_asynchronous_client_that_leaves_takes_its_answers_along(server: LiveServer) -> None:
    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            stream = await client.chat.completions.create(
                **asking("Hello"), stream=True, n=4, max_tokens=10_000, extra_body={"ignore_eos": True}
            )
            async for _ in stream:
                break
            await stream.close()
        for _ in range(200):
            if not server.backend.service.jobs:
                return
            await asyncio.sleep(0.02)

    asyncio.run(leave())
    assert server.backend.service.jobs == 0
