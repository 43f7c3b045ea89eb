from __future__ import annotations

import asyncio
import base64
import json

import numpy as np
import pytest

from infinity_emb.primitives import EmbeddingEncodingFormat
from infinity_emb.server import encode


def encoded(vectors: list[np.ndarray], encoding_format: EmbeddingEncodingFormat) -> list[dict[str, object]]:
    response = asyncio.run(
        encode.embeddings_response(vectors, encoding_format=encoding_format, model="m", num_tokens=1)
    )
    data: list[dict[str, object]] = json.loads(bytes(response.body))["data"]
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


@pytest.mark.parametrize("encoding_format", list(EmbeddingEncodingFormat))
def test_slices_make_one_list_with_running_indices(
    encoding_format: EmbeddingEncodingFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_rows(7, 4)
    whole = encoded(rows, encoding_format)
    monkeypatch.setattr(encode, "VALUES_PER_SLICE", 12)
    assert encoded(rows, encoding_format) == whole
    assert [each["index"] for each in whole] == list(range(7))


def test_other_work_gets_its_turn_while_a_long_answer_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "VALUES_PER_SLICE", 4)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        counting = asyncio.create_task(count_turns())
        await encode.embeddings_response(
            random_rows(10, 4), encoding_format=EmbeddingEncodingFormat.float, model="m", num_tokens=1
        )
        counting.cancel()

    asyncio.run(main())
    assert turns == 9
