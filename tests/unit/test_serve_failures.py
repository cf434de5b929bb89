"""Every error as a status and a body in OpenAI's shape; nobody outside reads what nobody expected."""

import json
from typing import Any

import pytest

from qvl import errors
from qvl.serve import errors as serve_errors
from qvl.serve.protocol.body import MOST_VALUES
from qvl.serve.protocol.failures import failure, path
from support.serving import client, fake_backend

KEYS = {"message", "type", "param", "code"}
STATUS = {
    serve_errors.UnknownModelError: (404, "model_not_found"),
    serve_errors.RefusedError: (403, "not_allowed"),
    serve_errors.QueueFullError: (429, "queue_full"),
    serve_errors.DrainingError: (503, "shutting_down"),
    serve_errors.NoWorkerError: (503, "no_media_worker"),
    serve_errors.OutOfTimeError: (408, "timeout"),
    serve_errors.RequestError: (400, "invalid_value"),
    errors.PromptTooLongError: (400, "context_length_exceeded"),
    errors.MediaTooLargeError: (400, "media_too_large"),
    errors.MediaFetchError: (400, "media_unreachable"),
    errors.MediaNotFoundError: (400, "media_not_found"),
    errors.MediaDecodeError: (400, "invalid_media"),
    errors.MediaError: (400, "invalid_media"),
    errors.PromptError: (400, "invalid_value"),
    errors.GenerationError: (400, "invalid_value"),
    errors.UnsupportedError: (400, "unsupported"),
    errors.MissingDependencyError: (400, "unsupported"),
    errors.InputTypeError: (400, "invalid_value"),
}


@pytest.mark.parametrize("kind", STATUS, ids=lambda kind: kind.__name__)
def test_errors_on_purpose_are_told(kind: type[Exception]) -> None:
    status, body = failure(kind("What is wrong."))
    assert (status, body["error"]["code"]) == STATUS[kind]
    assert body["error"]["message"] == "What is wrong." and body["error"].keys() == {
        "message",
        "type",
        "param",
        "code",
    }


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("secret"),
        OSError("secret"),
        KeyError("secret"),
        errors.NonFiniteError("secret"),
        errors.CheckpointError("secret"),
        errors.ConfigError("secret"),
        errors.CacheError("secret"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_others_are_not(error: Exception) -> None:
    status, body = failure(error)
    assert status == 500 and "secret" not in json.dumps(body) and body["error"]["type"] == "server_error"


def test_places() -> None:
    _, body = failure(errors.MediaDecodeError("messages[0].content[12].x: it is broken"))
    assert body["error"]["param"] == "messages[0].content[12].x"
    _, body = failure(serve_errors.RequestError("No.", "here", "some_code"))
    assert (body["error"]["param"], body["error"]["code"]) == ("here", "some_code")
    sent = {"messages": [{"role": "user", "content": [{"type": "text"}]}]}
    place = ("messages", 0, "user", "content", "list[...]", 0, "text", "text")
    assert path(place, sent, missing=True) == "messages[0].content[0].text"
    assert path(("messages", 5, "user"), {"messages": []}) == "messages[5]"


def test_messages_are_bounded() -> None:
    _, body = failure(errors.InputError("x" * 10**6))
    assert len(body["error"]["message"]) == 1000


def post(content: Any, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, dict[str, Any]]:
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
    with client(fake_backend("x", media=False, body=300_000)) as http:
        answer = http.post(path, content=content, headers={"content-type": "application/json", **headers})
    return answer.status_code, answer.json()


CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


def beside(field: bytes) -> bytes:
    """A good body with one more field."""
    return b'{"messages": [{"role": "user", "content": "x"}], ' + field + b"}"


HOSTILE = {
    "nothing": b"",
    "half": b'{"messages": [',
    "no json": b"\xff\xfe\x00",
    "a list": b"[]",
    "a text": b'"x"',
    "null": b"null",
    "NaN": beside(b'"temperature": NaN'),
    "infinity": beside(b'"logit_bias": {"1": -Infinity}'),
    "infinity in a tool": beside(
        b'"tools": [{"type": "function", "function": {"name": "f", "parameters": {"minimum": 1e999}}}]'
    ),
    "half a surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "half a surrogate as a key": beside(b'"metadata": {"\\udfff": 1}'),
    "an endless number": beside(b'"max_tokens": 1' + b"0" * 5000),
    "a large number": beside(b'"model": 1' + b"0" * 400),
    "deep": b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep metadata": beside(b'"metadata": ' + b'{"a":' * 200 + b"1" + b"}" * 200),
    "null bytes in names": beside(b'"a\\u0000b": 1'),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize"])
def test_hostile_bodies_are_told_so(name: str, path: str) -> None:
    status, body = post(HOSTILE[name], path)
    assert status == 400 and body["error"]["type"] == "invalid_request_error", body
    assert body["error"]["message"] and "Traceback" not in body["error"]["message"]


def test_too_many_values_are_not_read() -> None:
    with client(fake_backend("x", media=False)) as http:
        answer = http.post("/v1/completions", json={"prompt": [1] * (MOST_VALUES + 1)})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "too_large"


def test_what_cannot_fit_is_not_tokenized() -> None:
    backend = fake_backend("x", media=False, prompt_tokens=100)
    with client(backend) as http:
        answer = http.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": " " * 5000}]}
        )
    assert answer.json()["error"]["code"] == "context_length_exceeded" and "characters" in answer.text


def test_statuses_of_the_web() -> None:
    assert post({**CHAT, "x": "y" * 300_000})[0] == 413
    assert post(CHAT, **{"content-type": "text/plain"})[0] == 415
    with client(fake_backend("x", media=False)) as http:
        answers = [http.get("/v1/chat/completions"), http.get("/nothing"), http.delete("/v1/models")]
    assert [answer.status_code for answer in answers] == [405, 404, 405]
    for answer in answers:
        assert answer.json()["error"].keys() == KEYS
