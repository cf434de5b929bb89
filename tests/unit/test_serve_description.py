"""Whatever the server's own description allows is answered, and never with an error of the server's.

schemathesis makes requests of ``/openapi.json``, such as fit and such as do not. The engine says what it is
told to; everything before and after it is real.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import booleans
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from qvl.serve.app import create_app
from support.serving import MODEL, fake_backend, live_server

NAMES = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
# Fields that a request can have whatever else it has.
KEPT = {
    *("messages", "prompt", "input", "instructions", "stream", "echo", "user", "metadata"),
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "min_tokens", "ignore_eos"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "skip_special_tokens"),
}
DESCRIPTION = create_app(fake_backend(media=False)).openapi()
OPERATIONS = sorted((path, method) for path, each in DESCRIPTION["paths"].items() for method in each)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live_server(fake_backend(log_requests=False, fetch=False, max_tokens=16)) as server:
        yield server.url


@pytest.fixture(scope="module")
def schema() -> Any:
    return schemathesis.openapi.from_dict(DESCRIPTION)


def make_servable(case: Any) -> None:
    """Takes back what the description allows and the server refuses: most would end at the first of it."""
    if "model" in (case.path_parameters or {}):
        case.path_parameters["model"] = MODEL
    body = case.body
    if not isinstance(body, dict):
        return
    for name in set(body) - KEPT:
        del body[name]
    body["model"], body["max_tokens"] = MODEL, 8
    if case.path == "/v1/responses":
        body["max_output_tokens"] = body.pop("max_tokens")
    if isinstance(body.get("prompt"), list) or case.path == "/tokenize":
        body["prompt"] = "Some text"
        body.pop("messages", None)


def checked(operation: Any, url: str, mode: GenerationMode, examples: int) -> Counter[int]:
    """Sends so many requests of one operation; how often it was answered with which status."""
    answered: Counter[int] = Counter()

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode), servable=booleans())
    def run(case: Any, servable: bool) -> None:
        if servable and mode is GenerationMode.POSITIVE:
            make_servable(case)
        response = case.call_and_validate(base_url=url, checks=[CHECKS.get_one(name) for name in NAMES])
        answered[response.status_code] += 1

    run()
    return answered


def check(operation: Any, url: str, method: str, examples: int) -> None:
    answered = checked(operation, url, GenerationMode.POSITIVE, examples)
    print(operation.path, answered)
    assert answered[200] > 0
    if method == "post":  # a request without a body cannot be wrong in many ways
        answered = checked(operation, url, GenerationMode.NEGATIVE, examples)
        print(operation.path, answered)
        assert answered[400] > 0


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=[" ".join(each) for each in OPERATIONS])
def test_no_request_of_the_description_breaks_it(schema, url, path, method):
    check(schema[path][method], url, method, examples=25)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=[" ".join(each) for each in OPERATIONS])
def test_no_request_of_very_many_breaks_it(schema, url, path, method):
    check(schema[path][method], url, method, examples=400 if method == "post" else 20)
