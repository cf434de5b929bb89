"""`/v1/chat/completions`: what a request says reaches the engine, and what comes back is OpenAI's."""

import json
import socket
import time
from typing import Any

import pytest

from qvl.generation.config import GenerationConfig
from qvl.serve.protocol.body import IGNORED
from qvl.serve.protocol.chat import REFUSED, ChatRequest
from qvl.serve.routes import answering
from qvl.serve.sampling import sampling_params
from qvl.types import SamplingParams
from support.serving import VOCAB, bundled_generation, bundled_processor, client, fake_backend, live_server

USER = {"role": "user", "content": "Hi"}


def ask(said: Any = "You there", settings: Any = None, **body: Any) -> tuple[int, dict[str, Any]]:
    with client(fake_backend(said, **settings or {})) as http:
        answer = http.post("/v1/chat/completions", json={"messages": [USER], **body})
    return answer.status_code, answer.json()


def stream(said: Any = "You there", settings: Any = None, **body: Any) -> list[Any]:
    """The data of all events, the last one as text."""
    with client(fake_backend(said, **settings or {})) as http:
        answer = http.post("/v1/chat/completions", json={"messages": [USER], "stream": True, **body})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    lines = [line[6:] for line in answer.text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) if line.startswith("{") else line for line in lines]


def params(**body: Any) -> list[SamplingParams]:
    backend = fake_backend("x")
    with client(backend) as http:
        answer = http.post("/v1/chat/completions", json={"messages": [USER], **body})
    assert answer.status_code == 200, answer.text
    return [params for _, params, _ in backend.service._engine.added]


# Answers


def test_an_answer() -> None:
    status, answer = ask(model="qvl/tiny")
    (choice,) = answer["choices"]
    assert status == 200 and answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
    assert choice["message"] == {"role": "assistant", "content": "You there", "refusal": None}
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None and choice["index"] == 0
    assert answer["model"] == "qvl/tiny" and answer["system_fingerprint"].startswith("fp_")
    prompt = answer["usage"]["prompt_tokens"]
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 3,
        "total_tokens": prompt + 3,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.parametrize(
    "body, said, reason",
    [
        ({"max_tokens": 1}, "You", "length"),
        ({"max_completion_tokens": 1, "max_tokens": 2}, "You", "length"),
        ({"stop": " there"}, "You", "stop"),
        ({"stop": ["x", "ou t"]}, "Y", "stop"),
        ({"stop": [""]}, "You there", "stop"),
    ],
    ids=["max_tokens", "max_completion_tokens", "stop", "stops", "empty stop"],
)
def test_ends(body: dict[str, Any], said: str, reason: str) -> None:
    _, answer = ask(**body)
    assert answer["choices"][0]["message"]["content"] == said
    assert answer["choices"][0]["finish_reason"] == reason


def test_a_loop_is_cut_and_said_so() -> None:
    _, answer = ask("no " * 400, {"repetition_tokens": 32})
    assert answer["choices"][0]["finish_reason"] == "repetition"
    assert answer["usage"]["completion_tokens"] < 60


def test_events_of_a_stream() -> None:
    *chunks, done = stream(stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert [c["choices"][0]["delta"] for c in chunks[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "You"},
        {"content": " there"},
        {},
    ]
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None, None, None, "stop"]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 3
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert "usage" not in stream()[0]


def test_several_answers() -> None:
    backend = fake_backend("You there")
    with client(backend) as http:
        body = {"messages": [USER], "n": 3, "seed": 2**63 - 2, "temperature": 1}
        answer = http.post("/v1/chat/completions", json=body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 9
    added = backend.service._engine.added
    assert answer["usage"]["prompt_tokens"] == len(added[0][0].token_ids)
    assert len({params.seed for _, params, _ in added}) == 3
    *chunks, _ = stream(n=2)
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
    assert texts == ["You there"] * 2


def test_siblings_wait_for_the_first_ones_prompt() -> None:
    backend = fake_backend("You there")
    engine = backend.service._engine
    seen: list[int] = []
    engine.before_step = lambda: seen.append(len(engine.added))
    with client(backend) as http:
        http.post("/v1/chat/completions", json={"messages": [USER], "n": 3})
    assert seen[0] == 1 and seen[-1] == 3


def test_log_probabilities() -> None:
    _, answer = ask(logprobs=True, top_logprobs=2)
    first, second = answer["choices"][0]["logprobs"]["content"]
    assert (first["token"], second["token"]) == ("You", " there") and first["bytes"] == list(b"You")
    assert first["top_logprobs"][0]["token"] == "You" and len(first["top_logprobs"]) == 2
    assert first["logprob"] == first["top_logprobs"][0]["logprob"] < 0
    _, answer = ask(logprobs=True)
    assert answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    chunks = stream(logprobs=True)
    entries = [c["choices"][0]["logprobs"] for c in chunks[:-1]]
    assert "".join(e["content"][0]["token"] for e in entries if e) == "You there"


# Settings


def test_all_settings_reach_the_engine() -> None:
    (made,) = params(
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        seed=3,
        max_tokens=9,
        min_tokens=2,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.2,
        logit_bias={"5": -100, "6": 3.5, "7": 0},
        stop_token_ids=[40],
    )
    assert made == SamplingParams(
        max_new_tokens=9,
        min_new_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        seed=3,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.2,
        sequence_bias=(((5,), -100.0), ((6,), 3.5)),
        eos_token_ids=(*bundled_generation().eos_token_ids, 40),
    )


def test_ends_of_sequence_can_be_ignored() -> None:
    assert params(ignore_eos=True)[0].eos_token_ids == ()
    assert params(ignore_eos=True, stop_token_ids=[7])[0].eos_token_ids == (7,)
    assert params()[0].eos_token_ids == bundled_generation().eos_token_ids


def silent(**generation: Any) -> SamplingParams:
    """What a request gets that says nothing, from a checkpoint whose generation_config.json says this."""
    config = GenerationConfig.from_dict(generation)
    return sampling_params(ChatRequest.model_validate({"messages": [USER]}), config, VOCAB, 8)


def test_where_a_request_is_silent_the_checkpoint_speaks() -> None:
    released = {"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05, "eos_token_id": [1, 2]}
    made = silent(**released)
    assert (made.temperature, made.repetition_penalty, made.eos_token_ids) == (0.0, 1.05, (1, 2))
    assert (made.top_k, made.top_p, made.min_p) == (0, 1.0, 0.0), "not the defaults of transformers' class"
    asked = ChatRequest.model_validate({"messages": [USER], "temperature": 0.7, "repetition_penalty": 1.0})
    made = sampling_params(asked, GenerationConfig.from_dict(released), VOCAB, 8)
    assert (made.temperature, made.repetition_penalty) == (0.7, 1.0)
    assert silent().temperature == 1.0 and silent(do_sample=False).temperature == 0.0
    assert silent(top_k=20, top_p=0.8, min_p=0.1, do_sample=True).top_k == 20
    assert silent().seed != silent().seed, "answers of different requests do not share a generator"


def test_how_long_an_answer_may_be() -> None:
    assert params()[0].max_new_tokens == 1024
    with client(fake_backend("x", prompt_tokens=40)) as http:
        prompt = http.post("/tokenize", json={"messages": [USER]}).json()["count"]
    (ids,) = bundled_processor().apply_chat_template([USER], tokenize=True, add_generation_prompt=True)
    assert prompt == len(ids)
    left = 40 - prompt
    backend = fake_backend("x", prompt_tokens=40)
    with client(backend) as http:
        http.post("/v1/chat/completions", json={"messages": [USER]})
    assert backend.service._engine.added[0][1].max_new_tokens == left, "what is left of the context"
    status, answer = ask(settings={"prompt_tokens": 40}, max_tokens=left + 1)
    assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
    for number in (str(left + 1), f"{prompt} tokens", "40", str(left)):
        assert number in answer["error"]["message"]
    status, answer = ask(max_completion_tokens=20_000)
    assert status == 400 and answer["error"]["param"] == "max_completion_tokens"
    assert "16,384" in answer["error"]["message"]
    status, answer = ask(settings={"prompt_tokens": prompt - 1})
    assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
    status, answer = ask(settings={"prompt_tokens": prompt})
    assert status == 400 and answer["error"]["code"] == "context_length_exceeded"


def test_special_tokens_show_only_when_asked_for() -> None:
    said = bundled_processor().tokenizer.encode("7<|box_start|><|im_end|>")
    assert len(said) == 3
    assert ask(said)[1]["choices"][0]["message"]["content"] == "7"
    assert ask(said, skip_special_tokens=False)[1]["choices"][0]["message"]["content"] == "7<|box_start|>"


# What is not read


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_fields_that_change_nothing_are_ignored(name: str) -> None:
    assert ask(**{name: {"a": "b"}})[0] == 200


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_fields_that_would_change_the_answer_are_refused_by_name(name: str) -> None:
    status, answer = ask(**{name: "something"})
    assert status == 400 and answer["error"]["param"] == name and name in answer["error"]["message"]
    assert ask(**{name: None})[0] == 200, "nothing is asked for"


def test_null_is_nothing_said() -> None:
    silent, *_ = params(seed=1)
    left_out = [name for name in ChatRequest.model_fields if name not in ("messages", "seed")]
    assert params(seed=1, **dict.fromkeys(left_out)) == [silent]


@pytest.mark.parametrize(
    "body, param",
    [
        ({"temprature": 1}, "temprature"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
            "messages[0].content[0].text",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "nose"}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "input_audio",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "x", "detail": "?"}}],
                    }
                ]
            },
            "messages[0].content[0].image_url.detail",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
            "file_id",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]},
            "messages[0].content[0].file",
        ),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 1001}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"9999": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"seed": 2**63}, "seed"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"mm_processor_kwargs": {"max_pixel": 3}}, "mm_processor_kwargs.max_pixel"),
        ({"chat_template_kwargs": {"x": "<|im_end|>"}}, "chat_template_kwargs.x"),
        ({"response_format": {"type": "xml"}}, "response_format"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: str) -> None:
    status, answer = ask(**body)
    error = answer["error"]
    assert status == 400 and error["type"] == "invalid_request_error" and error["param"] == param, error
    assert error["message"].endswith(".") and "\n" not in error["message"]
    assert "pydantic" not in error["message"] and len(error["message"]) < 300


# Errors and ends that come from elsewhere


def test_an_error_of_the_engine_before_the_first_token_has_a_status() -> None:
    for streams in (False, True):
        with client(fake_backend([RuntimeError("secret")])) as http:
            answer = http.post("/v1/chat/completions", json={"messages": [USER], "stream": streams})
        assert answer.status_code == 500 and "secret" not in answer.text
        assert answer.json()["error"]["type"] == "server_error"


def test_an_error_in_mid_stream_is_the_last_event() -> None:
    ids = bundled_processor().tokenizer.encode("You there")
    events = stream([*ids, RuntimeError("secret")])
    assert events[1]["choices"][0]["delta"] == {"content": "You"}
    assert events[-1]["error"]["type"] == "server_error" and "secret" not in json.dumps(events)


def test_a_full_queue_and_a_late_answer() -> None:
    status, answer = ask(settings={"waiting": 0, "max_sequences": 0})
    assert status == 429 and answer["error"]["code"] == "queue_full"
    endless = bundled_processor().tokenizer.encode("no ") * 2000

    def slow() -> Any:
        backend = fake_backend(endless, request_seconds=0.1)
        backend.service._engine.pause = 0.01
        return backend

    with client(slow()) as http:
        late = http.post("/v1/chat/completions", json={"messages": [USER], "max_tokens": 1000})
    assert late.status_code == 408 and late.json()["error"]["code"] == "timeout"


def test_a_long_prompt_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(answering, "HEARTBEAT_SECONDS", 0.02)
    for path, body in (
        ("/v1/chat/completions", {"messages": [USER]}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
    ):
        backend = fake_backend("You")
        backend.service._engine.pause = 0.15
        with client(backend) as http:
            text = http.post(path, json={**body, "stream": True}).text
        assert text.count(": still here\n\n") >= 3 and '"You"' in text


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_goes_takes_its_answers_along(streams: bool) -> None:
    backend = fake_backend(bundled_processor().tokenizer.encode("no ") * 5000, repetition_tokens=0)
    backend.service._engine.pause = 0.005
    with live_server(backend) as live:
        port = int(live.url.rsplit(":", 1)[1])
        body = json.dumps({"messages": [USER], "stream": streams, "n": 3, "max_tokens": 5000}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            _until(lambda: backend.service.jobs == 3)
        _until(lambda: backend.service.jobs == 0)
        time.sleep(0.02)
        assert not backend.service._engine.has_work


def _until(condition: Any) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
