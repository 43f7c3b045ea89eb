"""The OpenAPI document under a client that knows nothing else: schemathesis writes requests from it.

No answer is a 5xx, each has a documented status and content type and fits its documented schema. The
operations are those of the document, so that a new route is tried without a line here. Who answers are real
servers of the fake engine. `OPENAPI_TEST_EXAMPLES=1000` asks for more examples of each operation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route

from tests.support.openapi_schema import APP, DOCUMENT, EXAMPLES, KINDS, SCHEMA, serve_kinds
from tests.support.server_process import Server

NUM_EXAMPLES = int(os.environ.get("OPENAPI_TEST_EXAMPLES", "10"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
METHODS = ("get", "post", "put", "patch", "delete")
# Paths that the document leaves out on purpose: itself and the pages for people.
UNDOCUMENTED = ("/openapi.json", "/docs", "/docs/{name}", "/ui", "/ui/{name}")


@pytest.fixture(scope="module", params=["one model", "models of every kind"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    kinds = KINDS[:1] if request.param == "one model" else KINDS
    server = Server(*serve_kinds(*kinds), INFINITY_HOME=str(tmp_path_factory.mktemp("home")))
    try:
        yield server.wait_until_listening()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@pytest.mark.slow
@SCHEMA.parametrize()
@settings(max_examples=NUM_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_the_document_says(
    case: schemathesis.Case[Any], server: Server, session: requests.Session
) -> None:
    case.call_and_validate(base_url=server.url, session=session, checks=CHECKS)


@pytest.mark.parametrize(("path", "media_type", "body"), EXAMPLES)
@pytest.mark.parametrize("server", ["models of every kind"], indirect=True)
def test_every_example_is_served_by_some_model(
    path: str, media_type: str, body: dict[str, Any], server: Server, session: requests.Session
) -> None:
    """As it is written, or with the name of a model of the right kind."""
    bodies = [body, *({**body, "model": kind} for kind in KINDS)]
    headers = {"content-type": media_type}
    answers = [session.post(server.url + path, json=each, headers=headers) for each in bodies]
    assert 200 in [answer.status_code for answer in answers], [answer.text for answer in answers]


def test_every_operation_that_takes_a_body_has_an_example() -> None:
    taking = {path for path, methods in DOCUMENT["paths"].items() if "requestBody" in methods.get("post", {})}
    assert taking == {example.values[0] for example in EXAMPLES}


def test_every_route_is_in_the_document_or_left_out_on_purpose() -> None:
    documented = {
        (method.upper(), path)
        for path, methods in DOCUMENT["paths"].items()
        for method in methods
        if method in METHODS
    }
    served = {
        (method, route.path_format)
        for route in APP.router.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    twins = {(method, path) for method, path in served if (method, path.removeprefix("/v1")) in documented}
    on_purpose = {
        ("GET", "/"),
        *(("GET", path) for path in UNDOCUMENTED),
        ("POST", "/openai/deployments/{deployment}/embeddings"),
        ("POST", "/openai/v1/embeddings"),
        *(("GET", f"/openai{base}/models{name}") for base in ("", "/v1") for name in ("", "/{model_id}")),
        ("POST", "/invocations"),
        *(("POST", f"/api/{task}") for task in ("generate", "chat")),
    }
    assert documented <= served
    assert served - documented - twins == on_purpose
