"""Encoded inputs, outputs and errors cross to another process and are what they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infinity_emb import errors
from infinity_emb.cli.front_ends.encoding import (
    pack_error,
    pack_items,
    pack_outputs,
    unpack_error,
    unpack_items,
    unpack_outputs,
)
from infinity_emb.items import Encoded, ForwardSpec, SparseVector
from tests.support.frames import send


def ids(*values: int) -> Any:
    return np.array(values, dtype=np.int32)


def assert_equal(first: Any, second: Any) -> None:
    """Compare what may hold arrays."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_equal(first[name], second[name])
    elif isinstance(first, list):
        assert len(first) == len(second)
        list(map(assert_equal, first, second))
    elif isinstance(first, np.ndarray):
        assert (first.dtype, first.tolist()) == (second.dtype, second.tolist())
    else:
        assert first == second


QUERY = np.ones((2, 3), dtype=np.float32)
ITEMS = [
    Encoded(ids(1, 2, 3)),
    Encoded(ids(4), type_ids=ids(1), position=7, num_attended_tokens=1),
    Encoded(ids(), spec=ForwardSpec("image", None, 0, ("dense", "multivector")), media_tokens=50,
            features={"pixels": np.ones((1, 3, 2), dtype=np.float16), "sizes": [(2, 3)], "name": ["x"],
                      "more": [{"a": ids(5), "b": None}]}),
    Encoded(ids(5, 6), spec=ForwardSpec("text", "query", 1), spans=((0, 1), (1, 2)), query_vectors=QUERY),
    Encoded(ids(7), query_vectors=QUERY),
]  # fmt: skip


def test_encoded_inputs_keep_every_field() -> None:
    received = list(unpack_items(send(*pack_items(ITEMS))))
    for sent, got in zip(ITEMS, received, strict=True):
        for name in Encoded.__slots__:
            if name != "features":
                assert_equal(getattr(sent, name), getattr(got, name))
    assert received[2].features is not None
    assert received[2].features["sizes"] == [[2, 3]]
    assert_equal(received[2].features["pixels"], ITEMS[2].features["pixels"])  # type: ignore[index]
    assert_equal(received[2].features["more"], ITEMS[2].features["more"])  # type: ignore[index]


def test_an_array_that_inputs_share_is_sent_once() -> None:
    _, arrays = pack_items(ITEMS[3:])
    assert sum(array is QUERY for array in arrays) == 1


def test_features_that_are_no_data_are_refused_with_the_way_out() -> None:
    item = Encoded(ids(), features={"image": [object()]})
    with pytest.raises(errors.BackendFailed, match="--api-servers 1"):
        pack_items([item])


def test_outputs_of_every_form_keep_their_values() -> None:
    outputs: dict[Any, Any] = {
        "dense": np.arange(6, dtype=np.float32).reshape(3, 2),
        "multivector": [np.full((length, 2), length, dtype=np.float32) for length in (2, 0, 1)],
        "sparse": [SparseVector(ids(*range(n)), np.ones(n, dtype=np.float32)) for n in (0, 3, 1)],
    }
    packed, arrays = pack_outputs(outputs)
    received: dict[Any, Any] = unpack_outputs(packed, send({}, arrays).arrays)
    assert_equal(received["dense"], outputs["dense"])
    assert_equal(received["multivector"], outputs["multivector"])
    for sent, got in zip(outputs["sparse"], received["sparse"], strict=True):
        assert_equal(list(sent), list(got))


@pytest.mark.parametrize("name", [name for name in vars(errors) if isinstance(vars(errors)[name], type)])
def test_every_error_crosses_with_its_class_and_text(name: str) -> None:
    cls = vars(errors)[name]
    if not issubclass(cls, errors.ServingError):
        return
    for position in (None, 3, errors.QUERY_POSITION):
        sent = cls("is bad", position=position)
        got = unpack_error(send({"error": pack_error(sent)}, []).header["error"])
        assert (type(got), str(got), got.position) == (cls, str(sent), sent.position)


def test_the_time_to_retry_crosses() -> None:
    got = unpack_error(pack_error(errors.Overloaded("full", retry_after_s=17)))
    assert isinstance(got, errors.Overloaded)
    assert got.retry_after_s == 17
