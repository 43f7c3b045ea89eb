from __future__ import annotations

import numpy as np
import pytest
import torch

from infinity_emb.server.responses.binary_vectors import ByteFormat
from infinity_emb.server.schemas.embeddings import EmbedDtype, Endianness

# What vLLM converts with, and the numpy type that it reads the bytes as.
REFERENCES: dict[EmbedDtype, tuple[torch.dtype, str]] = {
    "float32": (torch.float32, "u4"),
    "float16": (torch.float16, "u2"),
    "bfloat16": (torch.bfloat16, "u2"),
    "fp8_e4m3": (torch.float8_e4m3fn, "u1"),
    "fp8_e5m2": (torch.float8_e5m2, "u1"),
}


def numbers() -> np.ndarray:
    """From the smallest numbers of the formats to the largest of the smallest, ties and 0 among them."""
    exponents = np.arange(-26, 8, dtype=np.float32)
    magnitudes = np.concatenate([2**exponents * factor for factor in (1, 1.0625, 1.125, 1.1875, 1.5, 1.7)])
    sizes = np.concatenate([[0, 440], magnitudes, np.random.default_rng(0).random(1000)])
    return np.concatenate([sizes, -sizes]).astype(np.float32)


@pytest.mark.parametrize("endianness", ["native", "big", "little"])
@pytest.mark.parametrize("embed_dtype", REFERENCES)
def test_bytes_are_those_of_torch_in_the_order_that_is_asked_for(
    embed_dtype: EmbedDtype, endianness: Endianness
) -> None:
    torch_dtype, view = REFERENCES[embed_dtype]
    order = {"native": "=", "big": ">", "little": "<"}[endianness]
    converted = torch.from_numpy(numbers()).to(torch_dtype).view(torch.uint8).numpy().view(f"={view}")
    given = ByteFormat(embed_dtype=embed_dtype, endianness=endianness).make_converter()(numbers())
    assert given.tobytes() == converted.astype(f"{order}{view}").tobytes()


@pytest.mark.parametrize(
    ("embed_dtype", "largest"), [("float16", 65504), ("fp8_e4m3", 448), ("fp8_e5m2", 57344)]
)
def test_what_is_beyond_the_range_becomes_the_largest_number(embed_dtype: EmbedDtype, largest: float) -> None:
    given = ByteFormat(embed_dtype=embed_dtype).make_converter()(np.array([1e30, -1e30], dtype=np.float32))
    read = torch.frombuffer(bytearray(given.tobytes()), dtype=REFERENCES[embed_dtype][0])
    assert read.float().tolist() == [largest, -largest]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8"])
def test_a_vector_keeps_its_own_number_format_where_no_other_is_asked_for(dtype: str) -> None:
    vector = np.array([1, 2, 100], dtype=dtype)
    given = ByteFormat(endianness="big").make_converter()(vector)
    np.testing.assert_array_equal(np.frombuffer(given.tobytes(), np.dtype(dtype).newbyteorder(">")), vector)


def test_rows_that_are_not_contiguous_follow_one_another() -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)[:, :2]
    assert ByteFormat().make_converter()(matrix).data.tobytes() == matrix.tobytes()


@pytest.mark.parametrize(("embed_dtype", "name", "size"), [(None, "float32", 4), ("fp8_e5m2", "fp8_e5m2", 1)])
def test_each_row_is_described_by_its_place_among_the_bytes(
    embed_dtype: EmbedDtype | None, name: str, size: int
) -> None:
    rows = [np.zeros((2, 3), np.float32), np.zeros((0, 3), np.float32), np.zeros((1, 3), np.float32)]
    described = ByteFormat(embed_dtype=embed_dtype, endianness="big").describe(rows)
    assert described == [
        {
            "index": index,
            "embed_dtype": name,
            "endianness": "big",
            "start": start * size,
            "end": end * size,
            "shape": shape,
        }
        for index, (start, end, shape) in enumerate([(0, 6, (2, 3)), (6, 6, (0, 3)), (6, 9, (1, 3))])
    ]
