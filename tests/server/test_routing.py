from __future__ import annotations

import pytest
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb.server.endpoints import API_ENDPOINTS
from infinity_emb.server.error_format import Failure, FormattedError
from infinity_emb.server.requests.call import Call
from infinity_emb.server.responses.error_docs import TASK_ERRORS, Errors, union_errors, with_error_model
from infinity_emb.server.routing import (
    Endpoint,
    Form,
    add_forms,
    api_prefixes,
    map_error_formats,
    select_form,
)
from infinity_emb.server.schemas.common import JsonBody, TaskRequest


class OtherError(BaseModel):
    """An error of another vendor."""

    detail: str


class OtherRequest(TaskRequest):
    """A request of another vendor."""

    input_field = "texts"


def format_error(failure: Failure) -> FormattedError:
    return FormattedError(failure.status, {"detail": failure.message})


async def handle(body: JsonBody, call: Call) -> Response:
    """Do nothing."""
    return Response()


OTHER_ERRORS = Errors(with_error_model({**TASK_ERRORS, 424: {"description": "x"}}, OtherError), format_error)
OWN = Form(handle, TaskRequest, None)
OTHER = Form(handle, OtherRequest, None, errors=OTHER_ERRORS, discriminators=frozenset({"texts"}))
BY_HEADER = Form(handle, TaskRequest, None, is_from=lambda request: "x-sdk" in request.headers)


def make_request(*headers: str) -> Request:
    return Request({"type": "http", "headers": [(header.encode(), b"") for header in headers]})


@pytest.mark.parametrize(
    ("fields", "headers", "form"),
    [
        ({}, [], OWN),
        ({"documents": []}, [], OWN),
        ({"texts": None}, [], OTHER),
        ({"documents": []}, ["x-sdk"], BY_HEADER),
        ({"texts": []}, ["x-sdk"], OTHER),
    ],
)
def test_a_form_is_selected_by_fields_then_headers(
    fields: dict[str, object], headers: list[str], form: Form
) -> None:
    assert select_form([OWN, OTHER, BY_HEADER], fields, make_request(*headers)) is form


@pytest.mark.parametrize(
    ("prefix", "prefixes"),
    [("", ["", "/v1"]), ("/api", ["/api", "/api/v1"]), ("/v1", ["/v1"]), ("/api/v1", ["/api/v1"])],
)
def test_prefixes_never_repeat_v1(prefix: str, prefixes: list[str]) -> None:
    assert api_prefixes(prefix) == prefixes


def test_an_endpoint_lists_its_paths() -> None:
    assert Endpoint("/rerank", [OWN]).list_paths("/api") == ["/api/rerank", "/api/v1/rerank"]
    assert Endpoint("/embed", [OWN], is_at_v1=False).list_paths("/api") == ["/api/embed"]
    assert Endpoint("/", [OWN], is_at_v1=False).list_paths("") == ["/"]
    assert Endpoint("/", [OWN], is_at_v1=False).list_paths("/api") == ["/api"]
    assert Endpoint("/health", [OWN], is_prefixed=False).list_paths("/api") == ["/health"]


def test_forms_are_added_to_the_endpoint_of_their_path() -> None:
    endpoints = [Endpoint("/rerank", [OWN]), Endpoint("/embed", [OTHER])]
    rerank, embed = add_forms(endpoints, {"/rerank": [OTHER]}, {"/rerank": [BY_HEADER]})
    assert rerank.forms == [OWN, OTHER, BY_HEADER]
    assert embed.forms == [OTHER]
    assert rerank.name == "handle"


def test_an_endpoint_of_two_dialects_documents_the_errors_of_both() -> None:
    docs = Endpoint("/rerank", [OWN, OTHER]).error_docs
    assert docs[424]["model"] is OtherError
    assert docs[503]["model"] == TASK_ERRORS[503]["model"] | OtherError
    assert union_errors(TASK_ERRORS, TASK_ERRORS) == TASK_ERRORS


def test_errors_before_the_body_is_read_have_the_format_of_the_first_form() -> None:
    endpoints = [Endpoint("/rerank", [OWN, OTHER]), Endpoint("/embed", [OTHER], is_at_v1=False)]
    assert map_error_formats(endpoints, "/api") == {"/api/embed": format_error}


def test_errors_name_the_field_of_the_inputs() -> None:
    assert OWN.error_context == (None, "input")
    assert OTHER.error_context == (format_error, "texts")
    assert Form(handle, None, None).error_context == (None, "input")


def test_every_path_and_operation_is_declared_once() -> None:
    keys = [(endpoint.method, endpoint.path) for endpoint in API_ENDPOINTS]
    names = [endpoint.name for endpoint in API_ENDPOINTS if endpoint.is_documented]
    assert len(set(keys)) == len(keys)
    assert len(set(names)) == len(names)


def test_forms_of_one_endpoint_have_different_discriminators() -> None:
    for endpoint in API_ENDPOINTS:
        seen: set[str] = set()
        for form in endpoint.forms[1:]:
            assert form.discriminators or form.is_from, endpoint.path
            assert seen.isdisjoint(form.discriminators), endpoint.path
            seen |= form.discriminators
