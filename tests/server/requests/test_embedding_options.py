from __future__ import annotations

from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError

from infinity_emb.engine.results import EmbedOptions
from infinity_emb.server.requests.embedding_options import (
    check_media_fields,
    read_dimensions,
    read_options,
)
from infinity_emb.server.schemas.embeddings import EmbeddingRequest
from infinity_emb.types import EmbeddingDtype


def parse(**fields: Any) -> EmbeddingRequest:
    return EmbeddingRequest.model_validate({"input": ["a"], **fields})


def test_a_request_without_options_uses_the_defaults() -> None:
    assert read_options(parse(), input_type=None) == EmbedOptions()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": "p: "}, {"prompt": "p: "}),
        ({"prompt_name": "query"}, {"prompt_name": "query"}),
        ({"input_type": "query"}, {"input_type": "query"}),
        ({"task": "query"}, {"input_type": "query"}),
        ({"dimensions": 4}, {"dimensions": 4}),
        ({"output_dimension": 4, "dimensions": 0, "modality": "text"}, {"dimensions": 4}),
        ({"output_dtype": "float"}, {"embedding_dtype": EmbeddingDtype.float32}),
        ({"embedding_type": ["int8"]}, {"embedding_dtype": EmbeddingDtype.int8}),
        ({"embedding_type": "base64"}, {}),
        ({"embed_dtype": "bfloat16"}, {"embedding_dtype": EmbeddingDtype.float32}),
        ({"outputs": ["sparse", "dense"]}, {"outputs": ("sparse", "dense")}),
        ({"return_multivector": True}, {"outputs": ("multivector",)}),
        ({"truncate": False}, {"truncation": "off"}),
        ({"truncation": "START"}, {"truncation": "left"}),
        ({"truncate_prompt_tokens": 7}, {"max_tokens": 7}),
        ({"truncate_prompt_tokens": -1}, {}),
        ({"chunking": True}, {"chunking": True}),
    ],
)
def test_each_field_sets_its_option(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read_options(parse(**fields), input_type=None) == EmbedOptions(**expected)


def test_the_input_type_of_the_model_name_is_used_unless_the_body_has_one() -> None:
    assert read_options(parse(), input_type="query").input_type == "query"
    assert read_options(parse(task="document"), input_type="query").input_type == "document"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"late_chunking": True, "chunking": True}, "late_chunking"),
        ({"late_chunking": True, "outputs": ["sparse"]}, "late_chunking"),
        ({"late_chunking": {"chunk_size": 8}, "input": ["a", "b"]}, "late_chunking"),
        ({"embed_dtype": "float16", "output_dtype": "int8"}, "embed_dtype"),
        ({"return_multivector": True, "outputs": ["dense"]}, "return_multivector"),
    ],
)
def test_options_that_contradict_each_other_are_rejected(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestValidationError) as caught:
        read_options(parse(**fields), input_type=None)
    assert caught.value.errors()[0]["loc"] == ["body", field]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"dimensions": None}, None),
        ({"dimensions": 0}, 0),
        ({"dimensions": 0, "modality": "text"}, None),
        ({"dimensions": 5}, 5),
    ],
)
def test_0_dimensions_mean_all_for_infinity_client_alone(
    fields: dict[str, Any], expected: int | None
) -> None:
    assert read_dimensions(parse(**fields)) == expected


def test_options_of_texts_are_rejected_for_images() -> None:
    check_media_fields(parse(modality="image", chunking=False))
    with pytest.raises(RequestValidationError, match="is not supported with modality 'image'"):
        check_media_fields(parse(modality="image", chunking=True))


def test_a_field_that_is_left_out_is_no_option() -> None:
    """Bodies without options are recognized by the fields that they have."""
    defaults = {name: field.default for name, field in EmbeddingRequest.model_fields.items()}
    assert {name for name, default in defaults.items() if default is not None} == {"input"}


def test_options_count_beside_fields_that_are_none() -> None:
    plain = read_options(parse(model="m", user="u"), input_type="query")
    assert plain == EmbedOptions(input_type="query")
    with_option = read_options(parse(model="m", dimensions=3), input_type=None)
    assert with_option == EmbedOptions(dimensions=3)
