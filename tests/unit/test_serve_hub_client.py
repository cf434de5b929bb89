"""huggingface_hub's own client of the chat API, which shares no code with openai's, against a live server."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from support.media import data_uri, http_server, sends
from support.serving import live_server

PICTURES = Path(__file__).parents[2] / "examples" / "pictures"
QUESTION = "What number is written here?"
MODEL = "qvl/tiny"
KEY = "key-of-a-test"
SCHEMA = {
    "type": "object",
    "properties": {"number": {"enum": [1, 22, 333]}},
    "required": ["number"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server():
    """A live server, and the address of a picture that it may fetch."""
    with http_server({"/digits.png": sends((PICTURES / "digits.png").read_bytes())}) as (port, _):
        host = f"127.0.0.1:{port}"
        with live_server(fetch_hosts=(host,), api_keys=(KEY,), log_requests=False) as live:
            yield live.url, f"http://{host}/digits.png"


@pytest.fixture
def client(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it only talks to this machine
    return InferenceClient(base_url=server[0], api_key=KEY)


@pytest.fixture
def digits():
    """The picture as a data URI."""
    return data_uri((PICTURES / "digits.png").read_bytes(), "image/png")


def question(*urls, text=QUESTION):
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


def test_a_picture_as_data(client, digits):
    answer = client.chat_completion(question(digits), model=MODEL)
    assert answer.choices[0].message.content == "407"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == MODEL
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 4


def test_a_picture_by_address(client, server):
    answer = client.chat.completions.create(model=MODEL, messages=question(server[1]))
    assert answer.choices[0].message.content == "407"


def test_streaming(client, digits):
    chunks = list(
        client.chat_completion(
            question(digits), model=MODEL, stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert [text for text in deltas if text] == ["4", "0", "7"]
    assert [c.finish_reason for chunk in chunks for c in chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == 4


def test_four_streams_at_once(client, digits):
    def ask(_):
        stream = client.chat_completion(question(digits), model=MODEL, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == ["407"] * 4


def test_log_probabilities(client, digits):
    answer = client.chat_completion(question(digits), model=MODEL, logprobs=True, top_logprobs=2)
    first = answer.choices[0].logprobs.content[0]
    assert (first.token, len(first.top_logprobs)) == ("4", 2)
    assert first.logprob == max(entry.logprob for entry in first.top_logprobs) <= 0


def test_structured_output(client, digits):
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    answer = client.chat_completion(question(digits), model=MODEL, response_format=form)
    assert json.loads(answer.choices[0].message.content)["number"] in (1, 22, 333)


def test_structured_output_in_the_form_of_llama_server(client, digits):
    # huggingface_hub itself sends the schema as "value"; what is in extra_body goes as it is.
    form = {"response_format": {"type": "json_object", "schema": SCHEMA}}
    answer = client.chat_completion(question(digits), model=MODEL, extra_body=form)
    assert json.loads(answer.choices[0].message.content)["number"] in (1, 22, 333)


def test_tools(client, digits):
    tool = {"type": "function", "function": {"name": "report", "parameters": SCHEMA}}
    answer = client.chat_completion(question(digits), model=MODEL, tools=[tool], tool_choice="required")
    assert answer.choices[0].finish_reason == "tool_calls"
    (call, *_) = answer.choices[0].message.tool_calls
    assert call.function.name == "report"
    assert json.loads(call.function.arguments)["number"] in (1, 22, 333)


def test_several_answers_and_stop_texts(client, digits):
    answer = client.chat_completion(question(digits), model=MODEL, stop=["0"], temperature=0, n=2)
    assert [choice.message.content for choice in answer.choices] == ["4", "4"]


def test_errors_say_what_is_wrong(client):
    with pytest.raises(BadRequestError, match="temperature: input should be less than or equal to 2"):
        client.chat_completion(question(), model=MODEL, temperature=9)
    with pytest.raises(BadRequestError, match=r"messages\[0\].content\[0\]: a picture must be JPEG, PNG"):
        client.chat_completion(question(data_uri(b"nothing")), model=MODEL)


def test_without_the_key(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(HfHubHTTPError, match="401"):
        InferenceClient(base_url=server[0], api_key="another-key").chat_completion(question(), model=MODEL)
