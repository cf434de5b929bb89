"""Answers held to schemas, expressions and grammars, and what is refused before it can explode."""

import json
import time
from typing import Any

import pytest
import torch

from qvl.serve.errors import RequestError
from qvl.serve.grammars import Grammars, check_depth, from_choice, from_regex, from_schema
from qvl.serve.settings import Limits
from support.serving import VOCAB, bundled_generation, bundled_processor, client, fake_backend

EOS = bundled_generation().eos_token_ids
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "label": {"enum": ["a", "b"]}},
    "required": ["x", "label"],
    "additionalProperties": False,
}


def grammars(**limits: int) -> Grammars:
    return Grammars(bundled_processor().tokenizer, EOS, Limits(**limits))


def drawn(constraint: Any, seed: int, most: int = 300) -> tuple[str, bool]:
    """A text drawn at random under a constraint, and whether the constraint was content with it."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    for _ in range(most):
        scores_1V = constraint.mask(torch.randn(1, VOCAB, generator=generator))
        token = int(scores_1V.argmax())
        assert scores_1V[0, token] > -torch.inf
        if token in EOS:
            return bundled_processor().tokenizer.decode(ids), True
        ids.append(token)
        if constraint.accept(token):
            return bundled_processor().tokenizer.decode(ids), True
    return bundled_processor().tokenizer.decode(ids), False


@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_model_wants_the_schema_holds(seed: int) -> None:
    made = grammars()
    compiled = made.compile(from_schema(made.schema(POINT)))
    text, complete = drawn(compiled.constraint(), seed)
    if complete:
        said = json.loads(text)
        assert isinstance(said["x"], int) and said["label"] in ("a", "b") and len(said) == 2
    else:
        assert text.lstrip().startswith("{")
    again, _ = drawn(compiled.constraint(), seed)
    assert again == text, "each answer begins at the beginning"


def test_space_between_parts_cannot_go_on_for_ever() -> None:
    made = grammars()
    compiled = made.compile(from_schema(made.schema({"type": "object"})))
    brace, space, line = (bundled_processor().tokenizer.encode(text)[0] for text in ("{", " ", "\n"))

    def most(first: int) -> int:
        constraint = compiled.constraint()
        constraint.accept(brace)
        token, count = first, 0
        while count < 200 and constraint.mask(torch.zeros(1, VOCAB))[0, token] == 0:
            constraint.accept(token)
            token, count = space, count + 1
        return count

    assert most(space) == 1 and 20 < most(line) < 40


def test_an_answer_may_end_exactly_where_the_grammar_may() -> None:
    made = grammars()
    constraint = made.compile(from_regex("1+")).constraint()
    one = bundled_processor().tokenizer.encode("1")[0]
    allowed = [constraint.mask(torch.zeros(1, VOCAB))[0, list(EOS)].tolist()]
    assert not constraint.accept(one)
    allowed.append(constraint.mask(torch.zeros(1, VOCAB))[0, list(EOS)].tolist())
    assert allowed == [[-torch.inf] * 2, [0.0] * 2]
    assert made.compile(from_regex("1")).constraint().accept(one), (
        "nothing may follow: the answer is complete"
    )


def test_what_lies_beyond_the_tokenizer_is_never_allowed() -> None:
    known = len(bundled_processor().tokenizer)
    control = bundled_processor().tokenizer.convert_tokens_to_ids("<|im_start|>")
    for width in (known, VOCAB, VOCAB + 88):
        made = grammars()
        scores_1V = made.compile(from_regex("(.|\n)*")).constraint().mask(torch.zeros(1, width))
        assert scores_1V.shape == (1, width) and bool((scores_1V[0, known:] == -torch.inf).all())
        assert scores_1V[0, 40] == 0.0 and scores_1V[0, control] == -torch.inf  # no control token is text


def test_a_choice() -> None:
    compiled = grammars().compile(from_choice(["yes", 'no, "never"']))
    assert {drawn(compiled.constraint(), seed)[0] for seed in range(20)} == {"yes", 'no, "never"'}
    with pytest.raises(RequestError):
        from_choice([])


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def doubling(count: int, how: str) -> dict[str, Any]:
    """Every definition holds the next one twice: 2 ** count texts if they were written out."""
    reference = {f"d{i}": {how: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**reference, f"d{count}": {"type": "string"}}}


BAD = {
    "deep": nested(40),
    "large": {"enum": ["x" * 80] * 1000},
    "refers to itself": {"$ref": "#"},
    "refers in a circle": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    },
    "from the network": {"$ref": "http://127.0.0.1:1/schema"},
    "from a file": {"$ref": "file:///etc/passwd"},
    "unknown keyword": {"not": {"type": "string"}},
    "contradiction": {"type": "integer", "minimum": 5, "maximum": 3},
    "nothing": {"anyOf": []},
    "look-ahead": {"type": "string", "pattern": "(?=a)b"},
    "wide": {
        "allOf": [
            {"anyOf": [{"properties": {f"p{i}{j}": {"type": "string"}}} for j in range(6)]} for i in range(12)
        ]
    },
}


@pytest.mark.parametrize("name", BAD)
def test_schemas_that_cannot_be(name: str) -> None:
    made = grammars()
    begun = time.monotonic()
    with pytest.raises(RequestError) as caught:
        made.compile(from_schema(made.schema(BAD[name], param="here")), "here")
    assert time.monotonic() - begun < 5 and caught.value.param == "here"
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


EXPLOSIVE = {
    "doubling": doubling(25, "anyOf"),
    "doubling, both": doubling(25, "allOf"),
    "repeats of repeats": {"type": "string", "pattern": "^(([a-z]+)*[0-9]{0,400}.*){1,300}$"},
    "far ahead": {"type": "string", "pattern": "^(.*a.{0,900})*$"},
    "a billion items": {"type": "array", "minItems": 10**9, "items": {"type": "string"}},
    "a long string": {"type": "string", "minLength": 10**7},
    "a large number": {"type": "integer", "minimum": 1, "maximum": 10**300},
    "many fields": {
        "type": "object",
        "properties": {f"p{i}": {"enum": [f"v{j}" for j in range(20)]} for i in range(150)},
    },
}


@pytest.mark.parametrize("name", EXPLOSIVE)
def test_schemas_that_explode_cost_little_or_are_refused(name: str) -> None:
    made = grammars()
    made.compile(from_regex("a"))  # the first one reads the vocabulary
    begun = time.monotonic()
    try:
        constraint = made.compile(from_schema(made.schema(EXPLOSIVE[name]))).constraint()
        compiled = time.monotonic()
        drawn(constraint, seed=0, most=40)
        assert (time.monotonic() - compiled) / 40 < 0.1, "seconds a token"
        begun += time.monotonic() - compiled
    except RequestError:
        pass
    assert time.monotonic() - begun < 3


def test_what_turns_out_too_complex_on_the_way_is_an_error_of_the_request() -> None:
    made = grammars()
    constraint = made.compile(from_regex("ab"), "here").constraint()
    with pytest.raises(RequestError, match="cannot be used") as caught:
        constraint.accept(bundled_processor().tokenizer.encode("z")[0])
        constraint.mask(torch.zeros(1, VOCAB))
    assert caught.value.param == "here"


def test_lenient_where_it_need_not_be_strict() -> None:
    made = grammars()
    schema = {"type": "integer", "not": {"const": 3}}
    made.compile(from_schema(made.schema(schema, strict=False)))
    with pytest.raises(RequestError, match="not"):
        made.compile(from_schema(made.schema(schema, strict=True)))


def test_nobody_sets_options_of_the_compiler() -> None:
    made = grammars()
    schema = made.schema({**POINT, "x-guidance": {"whitespace_pattern": ".*", "lenient": True}})
    assert schema["x-guidance"]["lenient"] is False and schema["x-guidance"]["whitespace_pattern"] != ".*"


def test_depth_is_counted_without_recursion() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RequestError, match="32 levels"):
        check_depth(deep, 32)
    check_depth([[["x"]]], 3)


# Over HTTP


def stubborn(prompt: Any) -> Any:
    """A model that never wants what it is asked for."""
    return bundled_processor().tokenizer.encode("no " * 200)


def ask(**body: Any) -> tuple[int, dict[str, Any]]:
    with client(fake_backend(stubborn)) as http:
        answer = http.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}], **body}
        )
    return answer.status_code, answer.json()


def schema_format(schema: Any, **more: Any) -> dict[str, Any]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **more}}
    }


FIXED = {
    "type": "object",
    "properties": {"x": {"const": 7}},
    "required": ["x"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "body, said",
    [
        (schema_format(FIXED, strict=True), {"x": 7}),
        (schema_format(FIXED), {"x": 7}),
        ({"guided_json": FIXED}, {"x": 7}),
        ({"guided_json": json.dumps(FIXED)}, {"x": 7}),
        ({"structured_outputs": {"json": FIXED}}, {"x": 7}),
        ({"structured_outputs": {"regex": "7{3}"}}, 777),
        ({"guided_choice": ["5"]}, 5),
        ({"structured_outputs": {"grammar": 'start: "[" "1" "]"'}}, [1]),
    ],
    ids=["strict", "not strict", "guided", "guided text", "structured", "regex", "choice", "grammar"],
)
def test_answers_in_a_form(body: dict[str, Any], said: Any) -> None:
    status, answer = ask(**body)
    assert status == 200, answer
    assert json.loads(answer["choices"][0]["message"]["content"]) == said
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_any_object() -> None:
    _, answer = ask(response_format={"type": "json_object"}, max_tokens=5)
    assert answer["choices"][0]["message"]["content"].startswith("{")


def test_each_of_several_answers_has_its_own_grammar() -> None:
    _, answer = ask(**schema_format(FIXED), n=3)
    assert [json.loads(choice["message"]["content"]) for choice in answer["choices"]] == [{"x": 7}] * 3


@pytest.mark.parametrize("name", BAD)
def test_bad_schemas_over_http(name: str) -> None:
    status, answer = ask(**schema_format(BAD[name], strict=True))
    assert status == 400 and answer["error"]["param"] == "response_format.json_schema.schema", answer
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        {"guided_json": FIXED, "guided_regex": "a"},
        {"guided_regex": "a", "response_format": {"type": "json_object"}},
        {"guided_regex": "a" * 70_000},
        {"guided_regex": "("},
        {"guided_grammar": "start: nothing"},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
        {"guided_json": "{"},
        {"guided_json": "[1]"},
        {"guided_json": FIXED, "ignore_eos": True},
        {"guided_json": FIXED, "min_tokens": 3},
    ],
    ids=[
        "two",
        "two forms",
        "long",
        "no regex",
        "no grammar",
        "no schema",
        "broken",
        "a list",
        "eos",
        "min_tokens",
    ],
)
def test_forms_that_cannot_be(body: dict[str, Any]) -> None:
    status, answer = ask(**body)
    assert status == 400 and answer["error"]["message"], answer
