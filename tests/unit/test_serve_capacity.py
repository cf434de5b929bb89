"""Where memory for keys and values holds less than the model's context, the API counts with what it holds."""

import pytest

from support.serving import bundled_config, client, model_backend

TOKENS = 600


def bytes_of_one():
    """Of the keys and values of one token, in float32."""
    text = bundled_config().text_config
    width = text.hidden_size // text.num_attention_heads
    return text.num_hidden_layers * 2 * text.num_key_value_heads * width * 4


@pytest.fixture(scope="module")
def asking():
    with client(model_backend(kv_memory=TOKENS * bytes_of_one(), log_requests=False)) as testing:
        yield testing


def chat(text="Hello", **more):
    return {"messages": [{"role": "user", "content": text}], **more}


def test_the_context_is_what_memory_holds(asking):
    assert asking.get("/v1/models").json()["data"][0]["max_model_len"] == TOKENS
    assert asking.post("/tokenize", json=chat()).json()["max_model_len"] == TOKENS


def test_a_request_that_leaves_its_length_open_gets_what_is_left(asking):
    answer = asking.post("/v1/chat/completions", json=chat(ignore_eos=True))  # 1,024 tokens by default
    assert answer.status_code == 200
    usage = answer.json()["usage"]
    assert usage["prompt_tokens"] < usage["total_tokens"] <= TOKENS
    assert answer.json()["choices"][0]["finish_reason"] in ("length", "repetition")


def test_one_that_asks_for_more_is_told_so_in_the_terms_of_the_api(asking):
    answer = asking.post("/v1/chat/completions", json=chat(max_completion_tokens=TOKENS))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("max_completion_tokens", "context_length_exceeded")
    assert f"the context is {TOKENS}" in error["message"]


def test_a_prompt_that_is_too_long(asking):
    error = asking.post("/v1/chat/completions", json=chat("Hello " * TOKENS)).json()["error"]
    assert error["code"] == "context_length_exceeded"


def test_the_longest_that_fits_is_answered(asking):
    prompt = asking.post("/tokenize", json=chat()).json()["count"]
    body = chat(max_tokens=TOKENS - prompt, ignore_eos=True)
    assert asking.post("/v1/chat/completions", json=body).status_code == 200
