from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from infinity_emb.engine.results import Embeddings
from infinity_emb.items import SparseVector
from infinity_emb.server.responses import json_vectors as encode
from infinity_emb.server.responses import sliced
from infinity_emb.server.responses.encoding import Encoding
from infinity_emb.types import EmbeddingEncodingFormat
from tests.support.responses import read_body

JSON_FORMATS = [EmbeddingEncodingFormat.float, EmbeddingEncodingFormat.base64]


def encoded(vectors: list[np.ndarray], encoding_format: EmbeddingEncodingFormat) -> list[dict[str, object]]:
    response = encode.embeddings_response(
        Embeddings(num_tokens=1, dense=vectors), encoding=Encoding(format=encoding_format), model="m"
    )
    data: list[dict[str, object]] = json.loads(read_body(response))["data"]
    return data


def random_rows(num_rows: int, dim: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).standard_normal((num_rows, dim)).astype(np.float32))


def test_floats_read_back_as_the_same_float32() -> None:
    rows = random_rows(5, 384)
    read = [
        np.array(each["embedding"], dtype=np.float32) for each in encoded(rows, EmbeddingEncodingFormat.float)
    ]
    np.testing.assert_array_equal(read, rows)


def test_base64_is_little_endian_float32() -> None:
    [row] = encoded([np.array([1.0, -2.5], dtype=np.float32)], EmbeddingEncodingFormat.base64)
    assert base64.b64decode(str(row["embedding"])) == bytes.fromhex("0000803f000020c0")


def test_rows_of_a_cut_matrix_are_encoded_as_they_are() -> None:
    rows = list(np.arange(12, dtype=np.float32).reshape(3, 4)[:, :2])
    assert [each["embedding"] for each in encoded(rows, EmbeddingEncodingFormat.float)] == [
        [0.0, 1.0],
        [4.0, 5.0],
        [8.0, 9.0],
    ]


@pytest.mark.parametrize("encoding_format", JSON_FORMATS)
def test_slices_make_one_list_with_running_indices(
    encoding_format: EmbeddingEncodingFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_rows(7, 4)
    whole = encoded(rows, encoding_format)
    monkeypatch.setattr(sliced, "VALUES_PER_SLICE", 12)
    assert encoded(rows, encoding_format) == whole
    assert [each["index"] for each in whole] == list(range(7))


@pytest.mark.parametrize("encoding_format", JSON_FORMATS)
@pytest.mark.parametrize("columns", [4, 3])
def test_a_matrix_is_encoded_in_slices_of_its_rows(
    encoding_format: EmbeddingEncodingFormat, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One text of 8,192 tokens was encoded in one go, which held the event loop."""
    matrix = np.arange(40_000, dtype=np.float32).reshape(-1, 4)[:, :columns]
    rows = [matrix, matrix[:1], matrix[:0]]
    whole = encoded(rows, encoding_format)
    for module in (encode, sliced):
        monkeypatch.setattr(module, "VALUES_PER_SLICE", 12)
    assert encoded(rows, encoding_format) == whole


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "i1", "u1"])
def test_every_number_format_keeps_its_own_bytes(dtype: str) -> None:
    row = np.array([0, 1, 2, 100], dtype=dtype)
    [as_text] = encoded([row], EmbeddingEncodingFormat.base64)
    [as_numbers] = encoded([row], EmbeddingEncodingFormat.float)
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(str(as_text["embedding"])), dtype), row)
    assert as_numbers["embedding"] == row.tolist()


@pytest.mark.parametrize("num_rows", [0, 1, 3])
def test_a_matrix_is_a_list_of_lists_or_the_bytes_of_its_rows_with_the_shape(num_rows: int) -> None:
    matrix = np.arange(num_rows * 4, dtype=np.float32).reshape(num_rows, 4)[:, :2]  # not contiguous
    [as_numbers] = encoded([matrix], EmbeddingEncodingFormat.float)
    [as_text] = encoded([matrix], EmbeddingEncodingFormat.base64)
    assert as_numbers["embedding"] == matrix.tolist()
    assert "shape" not in as_numbers
    assert as_text["shape"] == [num_rows, 2]
    flat = np.frombuffer(base64.b64decode(str(as_text["embedding"])), "<f4")
    np.testing.assert_array_equal(flat.reshape(num_rows, 2), matrix)


def test_sparse_entries_read_back_as_the_same_numbers() -> None:
    values = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    rows = [
        SparseVector(np.arange(0, 100, 2, dtype=np.int32), values),
        SparseVector(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)),
        SparseVector(np.array([30_521], dtype=np.int32), np.array([1e-30], dtype=np.float32)),
    ]
    read = json.loads(read_body(encode.sparse_response(rows)))
    assert [list(entry) for entry in read[0][:1]] == [["index", "value"]]
    for entries, row in zip(read, rows, strict=True):
        assert [entry["index"] for entry in entries] == row.indices.tolist()
        np.testing.assert_array_equal(np.array([entry["value"] for entry in entries], np.float32), row.values)


def test_a_column_that_is_not_contiguous_can_be_sparse() -> None:
    row = SparseVector(np.arange(6, dtype=np.int32)[::2], np.arange(6, dtype=np.float32)[::2])
    assert json.loads(read_body(encode.sparse_response([row]))) == [
        [{"index": 0, "value": 0.0}, {"index": 2, "value": 2.0}, {"index": 4, "value": 4.0}]
    ]
