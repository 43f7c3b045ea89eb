"""Declare endpoints: a path, the request forms that it accepts, and their documentation.

An endpoint is reached at `{prefix}/...`, most also at `{prefix}/v1/...`, and documented once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property, reduce
from inspect import Parameter, getdoc
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from infinity_emb.server.error_format import ErrorContext, ErrorFormat
from infinity_emb.server.responses.error_docs import OWN_ERRORS, ErrorDocs, Errors, union_errors
from infinity_emb.server.schemas.common import JsonBody

# Takes `(body, call)`, or `(call)` for a form without a body.
Handler = Callable[..., Awaitable[Response]]


@dataclass(frozen=True)
class Form:
    """One kind of request that an endpoint accepts.

    schema: of the JSON body; None for a request without one.
    response: what FastAPI documents; handlers return responses of encoded bytes.
    discriminators: a body with any of these fields has this form, null values included.
    is_from: select this form by a request's headers, if no discriminator has selected another.
    needs_content_type: refuse a body with another content type than JSON's; of the default form.
    """

    handler: Handler
    schema: type[JsonBody] | None
    response: object
    examples: Mapping[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    errors: Errors = OWN_ERRORS
    discriminators: frozenset[str] = frozenset()
    is_from: Callable[[Request], bool] | None = None
    needs_content_type: bool = True

    @cached_property
    def error_context(self) -> ErrorContext:
        """The context that error handlers need."""
        return ErrorContext(self.errors.format, self.schema.input_field if self.schema else "input")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path of the API and the forms that it accepts.

    forms: the first is the default; its handler's name is the operation id, and its docstring the
        documentation: the first line is the summary, the rest the description.
    is_at_v1: reachable at `{prefix}/v1/...` too; clients of a dialect only know one path.
    is_prefixed: below the server's prefix; orchestrators and dialects without one expect fixed paths.
    parameters: of the path or the query.
    binary_types: media types of the response in addition to that of `response_class`.
    tag: the heading below which the documentation lists it.
    """

    path: str
    forms: Sequence[Form]
    _: KW_ONLY
    method: Literal["GET", "POST", "DELETE"] = "POST"
    is_at_v1: bool = True
    is_prefixed: bool = True
    is_deprecated: bool = False
    is_documented: bool = True
    parameters: Sequence[Parameter] = ()
    response_class: type[Response] = JSONResponse
    binary_types: Sequence[str] = ()
    tag: str = ""

    @property
    def name(self) -> str:
        """The operation id."""
        return getattr(self.forms[0].handler, "__name__", "")

    @property
    def summary(self) -> str:
        """A few words about the operation."""
        return self._docstring[0].removesuffix(".")

    @property
    def description(self) -> str:
        """The docstring without its first line."""
        return "\n".join(self._docstring[1:]).strip()

    @property
    def _docstring(self) -> list[str]:
        return (getdoc(self.forms[0].handler) or "").splitlines() or [""]

    @property
    def error_docs(self) -> ErrorDocs:
        """The documentation of the errors of all forms."""
        return reduce(union_errors, [form.errors.docs for form in self.forms])

    def list_paths(self, prefix: str) -> list[str]:
        """List the paths that lead to this endpoint; the first is documented."""
        if not self.is_prefixed:
            return [self.path]
        bases = api_prefixes(prefix) if self.is_at_v1 else [prefix]
        return [(base + self.path).rstrip("/") or "/" for base in bases]


def path_parameter(name: str, description: str) -> Parameter:
    """Document a parameter in the path."""
    annotation = Annotated[str, Path(description=description)]
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation)


def query_parameter(name: str, description: str) -> Parameter:
    """Document an optional parameter of the query."""
    annotation = Annotated[str | None, Query(description=description)]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def api_prefixes(prefix: str) -> list[str]:
    """Return `{prefix}` and `{prefix}/v1`, or the former alone if it ends in /v1 itself."""
    return [prefix] if prefix.endswith("/v1") else [prefix, f"{prefix}/v1"]


def tag_endpoints(tag: str, *endpoints: Endpoint) -> list[Endpoint]:
    """List the endpoints under one heading of the documentation."""
    return [replace(endpoint, tag=tag) for endpoint in endpoints]


def add_forms(endpoints: Iterable[Endpoint], *tables: Mapping[str, Sequence[Form]]) -> list[Endpoint]:
    """Add the forms of other dialects to the endpoints that share their paths."""
    return [
        replace(
            endpoint,
            forms=[*endpoint.forms, *(form for table in tables for form in table.get(endpoint.path, ()))],
        )
        for endpoint in endpoints
    ]


def select_form(forms: Sequence[Form], fields: Mapping[str, object], request: Request) -> Form:
    """Select the form of a request by its body's fields, then by its headers, else the first."""
    if len(forms) == 1:
        return forms[0]
    for form in forms:
        if not form.discriminators.isdisjoint(fields):
            return form
    return next((form for form in forms if form.is_from and form.is_from(request)), forms[0])


def map_error_formats(endpoints: Iterable[Endpoint], prefix: str) -> dict[str, ErrorFormat]:
    """Map paths to the error formats of their dialects; the server's own paths are left out."""
    return {
        path: endpoint.forms[0].errors.format
        for endpoint in endpoints
        if endpoint.forms[0].errors.format
        for path in endpoint.list_paths(prefix)
    }
