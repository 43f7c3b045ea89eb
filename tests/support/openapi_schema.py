"""The server's OpenAPI document: its operations, random requests to them, and its examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis

from infinity_emb.config.server_config import ServerConfig
from infinity_emb.server.app import build_app
from tests.support.server_process import FAKE

KINDS = ("embedder", "reranker", "classifier", "sparse", "multivector")
APP = build_app(lambda: pytest.fail("no model is needed for the document"), ServerConfig())
DOCUMENT: dict[str, Any] = APP.openapi()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
# Other methods are answered 405, which is HTTP's own word and stands in no document.
SCHEMA.config.phases.coverage.unexpected_methods = set()
# A request asks for 504 itself, with a `timeout` that is too short.
SCHEMA.config.checks.not_a_server_error.expected_statuses = ["2xx", "4xx", "504"]


@SCHEMA.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Most texts name no model; with these, requests get past the choice of one."""
    if isinstance(body, dict) and isinstance(name := body.get("model"), str) and len(name) < len(KINDS):
        return {**body, "model": KINDS[len(name)]}
    return body


def serve_kinds(*kinds: str) -> list[str]:
    """Return the arguments of a server with a fake model of each kind."""
    models = [word for kind in kinds for word in ("--model-id", f"{kind}?kind={kind}")]
    names = [word for kind in kinds for word in ("--served-model-name", kind)]
    return [*FAKE, *models, *names]


def _examples() -> Iterator[Any]:
    for path, methods in DOCUMENT["paths"].items():
        for media_type, content in methods.get("post", {}).get("requestBody", {}).get("content", {}).items():
            for name, example in content.get("examples", {}).items():
                yield pytest.param(path, media_type, example["value"], id=f"{path} {name}")


EXAMPLES = list(_examples())
