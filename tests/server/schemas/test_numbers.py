from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from infinity_emb.server.endpoints import API_ENDPOINTS


def list_fields(schema: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the fields of a schema and of those inside it."""
    for name, info in schema.model_fields.items():
        yield f"{schema.__name__}.{name}", info
        for part in get_args(info.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from list_fields(part)


FIELDS = dict(
    field
    for endpoint in API_ENDPOINTS
    for form in endpoint.forms
    if form.schema is not None
    for field in list_fields(form.schema)
)


def test_fields_inside_other_fields_are_checked_too() -> None:
    assert "OllamaOptions.num_ctx" in FIELDS


@pytest.mark.parametrize("name", FIELDS)
def test_no_field_of_a_request_reads_true_as_a_number(name: str) -> None:
    """`"dimensions": true` was read as 1: a vector of one dimension."""
    info = FIELDS[name]
    kind: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    try:
        value = adapter.validate_python(True)
    except ValidationError:
        return
    assert type(value) not in (int, float)
