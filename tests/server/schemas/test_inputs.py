from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic_core import PydanticCustomError

from infinity_emb.items import TokenIdsInput
from infinity_emb.server.schemas.inputs import (
    parse_documents,
    parse_inputs,
    parse_texts_or_ids,
    parse_texts_or_pairs,
)

Parse = Callable[[Any], list[Any]]


@pytest.mark.parametrize(
    ("parse", "value", "expected"),
    [
        (parse_inputs, "a", ["a"]),
        (parse_inputs, ["a", ""], ["a", ""]),
        (parse_texts_or_ids, "a", ["a"]),
        (parse_texts_or_ids, ["a", "b"], ["a", "b"]),
        (parse_texts_or_ids, [1, 2], [TokenIdsInput((1, 2))]),
        (parse_texts_or_ids, ["a", [1]], ["a", TokenIdsInput((1,))]),
        (parse_documents, ["a", {"text": "b", "title": 3}], ["a", "b"]),
        (parse_texts_or_pairs, "a", ["a"]),
        (parse_texts_or_pairs, ["a", ["b", "c"]], ["a", ("b", "c")]),
    ],
)
def test_each_form_becomes_a_list(parse: Parse, value: object, expected: list[object]) -> None:
    assert parse(value) == expected


@pytest.mark.parametrize(
    ("parse", "value", "message"),
    [
        (parse_inputs, None, "must be a text or a list of texts, not null"),
        (parse_inputs, 3, "must be a text or a list of texts, not a number"),
        (parse_inputs, [], "must have at least one text; the list is empty"),
        (parse_inputs, ["a", True], "must be a list of texts; item 1 is true or false"),
        (parse_inputs, [1, 2], "token ids are not accepted"),
        (parse_inputs, [[1, 2]], "token ids are not accepted"),
        (parse_texts_or_ids, ["a", [1.5]], "item 1 is a list"),
        (parse_documents, "a", "must be a list of texts, or of objects with a `text`, not a text"),
        (parse_documents, [{"text": 3}], "item 0 is an object"),
        (parse_texts_or_pairs, [["a", "b", "c"]], "item 0 is a list"),
        (parse_texts_or_pairs, [["a"]], "item 0 is a list"),
    ],
)
def test_anything_else_is_rejected_with_what_was_given(parse: Parse, value: object, message: str) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        parse(value)
    assert message in caught.value.message()
