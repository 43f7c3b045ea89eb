"""Write the page on the REST API from the OpenAPI document of a server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.server.app import build_app
from infinity_emb.types import InferenceEngine

_INTRODUCTION = """\
# REST API

Generated from the OpenAPI document, which a running server has at `/openapi.json`; its page `/docs` lets
you try each route. The routes of the first section also answer under `/v1`. [Requests](../requests.md)
explains the fields with examples, and [clients](../clients.md) says which client uses which route.

`null` is the same as leaving a field out. Unknown fields are ignored, except that a misspelt field, and one
that would change the result, are refused by name. [Requests](../requests.md#errors) describes errors.
"""

Schema = Mapping[str, Any]


def write_rest_page() -> str:
    """Return the page as Markdown: routes by tag, then the objects that they take and return."""
    document = build_document()
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            route = "\n".join(_describe_route(method, path, operation))
            by_tag.setdefault(operation["tags"][0], []).append(route)
    parts = [_INTRODUCTION]
    for tag, routes in by_tag.items():
        parts += [f"## {tag}\n", *routes]
    parts.append("## Objects\n")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts.append("\n".join(_describe_object(name, schema)))
    return "\n".join(parts)


def build_document() -> Mapping[str, Any]:
    """Return the OpenAPI document of a server with every route."""
    engine_args = EngineArgs(model_name_or_path="debug", engine=InferenceEngine.debugengine)
    config = ServerConfig(admin_key="only-for-the-document")
    return build_app(AsyncEngineArray.from_args([engine_args]), config).openapi()


def _describe_route(method: str, path: str, operation: Schema) -> Iterator[str]:
    yield f"### `{method.upper()} {path}`\n"
    yield f"{operation['summary']}. {operation.get('description', '')}".strip() + "\n"
    for parameter in operation.get("parameters", ()):
        yield f"- {parameter['in']} parameter `{parameter['name']}`: {_name_type(parameter['schema'])}"
    body = _find_schema(operation.get("requestBody", {}))
    answers = operation["responses"]
    if body:
        yield f"- body: {_name_type(body)}"
    if answer := _find_schema(answers.get("200", {})):
        yield f"- response: {_name_type(answer)}"
    errors = ", ".join(status for status in sorted(answers) if not status.startswith("2"))
    yield f"- errors: {errors}\n" if errors else ""


def _find_schema(content: Schema) -> Schema:
    types = content.get("content", {})
    return types.get("application/json", {}).get("schema", {})  # type: ignore[no-any-return]


def _describe_object(name: str, schema: Schema) -> Iterator[str]:
    yield f"### {name}\n"
    if "description" in schema:
        yield f"{schema['description']}\n"
    if "enum" in schema:
        yield f"One of {_name_type(schema)}.\n"
    members = schema.get("properties", {})
    if not members:
        return
    required = schema.get("required", ())
    yield "| member | type | default | meaning |"
    yield "|---|---|---|---|"
    for member, details in members.items():
        default = "required" if member in required else _quote_default(details)
        meaning = details.get("description", "").replace("\n", " ").replace("|", "\\|")
        yield f"| `{member}` | {_name_type(details)} | {default} | {meaning} |"
    yield ""


def _quote_default(schema: Schema) -> str:
    default = schema.get("default")
    return "" if default is None else f"`{json.dumps(default)}`"


def _name_type(schema: Schema) -> str:
    """Return a type in words; objects are links, and null is left out."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if kinds := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        names = dict.fromkeys(_name_type(kind) for kind in kinds if kind.get("type") != "null")
        return " or ".join(names)
    if values := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{json.dumps(value)}`" for value in values)
    return _name_plain_type(schema)


def _name_plain_type(schema: Schema) -> str:
    kind = schema.get("type", "any")
    if kind == "array":
        inner = _name_type(schema.get("items", {}))
        return f"list of ({inner})" if " or " in inner else f"list of {inner}"
    if kind == "object" and isinstance(values := schema.get("additionalProperties"), Mapping) and values:
        return f"object of {_name_type(values)}"
    limits = [f"from {schema['minimum']:g}"] if "minimum" in schema else []
    limits += [f"above {schema['exclusiveMinimum']:g}"] if "exclusiveMinimum" in schema else []
    limits += [f"to {schema['maximum']:g}"] if schema.get("maximum", 2**31) < 2**31 - 1 else []
    return " ".join([str(kind), *limits])
