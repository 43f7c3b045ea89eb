"""Outputs reach the host in the order of the batch, whatever the order and the form of the blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from infinity_emb.backends.torch.outputs import (
    BlockOutputs,
    ConcatenatedVectors,
    DenseOutput,
    MaskedVectors,
    SparseOutput,
    TorchInFlightBatch,
    read_outputs,
    split_token_embeddings,
)
from infinity_emb.errors import BackendFailed
from infinity_emb.items import BatchOutputs, Encoded

CPU = torch.device("cpu")


def collect(*blocks: BlockOutputs, num_items: int) -> BatchOutputs:
    return TorchInFlightBatch.start(blocks, num_items, CPU).result()


def test_blocks_return_to_the_order_of_the_batch() -> None:
    vectors = torch.arange(8.0).reshape(4, 2)
    outputs = collect(
        BlockOutputs([3, 0], {"dense": DenseOutput(vectors[[3, 0]])}),
        BlockOutputs([1, 2], {"dense": DenseOutput(vectors[[1, 2]])}),
        num_items=4,
    )
    assert np.array_equal(outputs["dense"], vectors.numpy())


def test_half_precision_becomes_float32() -> None:
    outputs = collect(
        BlockOutputs([0], {"dense": DenseOutput(torch.ones(1, 2, dtype=torch.bfloat16))}), num_items=1
    )
    assert outputs["dense"].dtype == np.float32  # type: ignore[union-attr]


def test_an_output_that_another_block_lacks_is_finite_there() -> None:
    outputs = collect(
        BlockOutputs([0], {"dense": DenseOutput(torch.ones(1, 2))}),
        BlockOutputs([1], {"tokens": ConcatenatedVectors(torch.ones(3, 2), [3])}),
        num_items=2,
    )
    assert np.array_equal(outputs["dense"], [[1, 1], [0, 0]])
    tokens: Any = outputs["tokens"]
    assert [entry.shape for entry in tokens] == [(0, 0), (3, 2)]


def test_concatenated_vectors_are_split_by_item() -> None:
    vectors = torch.arange(10.0).reshape(5, 2)
    entries = ConcatenatedVectors(vectors, [2, 0, 3]).copy_to_host().to_entries()
    assert [len(entry) for entry in entries] == [2, 0, 3]
    assert np.array_equal(np.concatenate(entries), vectors.numpy())


def test_a_wrong_number_of_vectors_is_an_error() -> None:
    with pytest.raises(BackendFailed, match="4 rows from the model for 5"):
        ConcatenatedVectors(torch.ones(4, 2), [2, 3]).to_entries()


def test_masked_vectors_are_those_that_the_mask_keeps() -> None:
    vectors = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [0, 0, 1]])
    first, second = MaskedVectors(vectors, mask).copy_to_host().to_entries()
    assert np.array_equal(first, vectors[0, :2])
    assert np.array_equal(second, vectors[1, 2:])


def test_sparse_vectors_are_the_nonzero_values_in_order() -> None:
    vectors = torch.tensor([[0, 0.5, 0, 2], [0, 0, 0, 0], [1, 0, 0, -3]])
    entries = SparseOutput(vectors).copy_to_host().to_entries()
    assert [entry.indices.tolist() for entry in entries] == [[1, 3], [], [0, 3]]
    assert [entry.values.tolist() for entry in entries] == [[0.5, 2], [], [1, -3]]
    assert all(entry.indices.dtype == np.int32 for entry in entries)


def test_outputs_are_read_from_the_features_of_their_names() -> None:
    features = {
        "scores": torch.ones(1, 1),
        "sparse_output": SparseOutput(torch.ones(1, 3)),
        "token_embeddings": torch.ones(1, 2, 4),
        "attention_mask": torch.ones(1, 2),
    }
    outputs = read_outputs(features, ("dense", "sparse", "multivector"), dense_name="scores")
    assert outputs["dense"] == DenseOutput(features["scores"])
    assert outputs["sparse"] is features["sparse_output"]
    assert isinstance(outputs["multivector"], MaskedVectors)


def test_a_sparse_model_writes_its_vectors_where_others_write_theirs() -> None:
    dense = torch.tensor([[0, 1.0]])
    for vectors in (dense, dense.to_sparse_coo()):
        outputs = read_outputs({"sentence_embedding": vectors}, ("sparse",), dense_name="sentence_embedding")
        (entry,) = outputs["sparse"].copy_to_host().to_entries()
        assert entry.indices.tolist() == [1]  # type: ignore[union-attr]


def test_token_embeddings_of_packed_and_padded_batches_are_split_alike() -> None:
    items = [Encoded(np.arange(length, dtype=np.int32)) for length in (1, 3)]
    flat = torch.arange(8.0).reshape(4, 2)
    padded = torch.zeros(2, 3, 2)
    padded[0, :1], padded[1] = flat[:1], flat[1:]
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    packed = split_token_embeddings({"token_embeddings": flat[None], "cu_seq_lens_q": mask}, items)
    unpadded = split_token_embeddings({"token_embeddings": padded, "attention_mask": mask}, items)
    assert all(torch.equal(*pair) for pair in zip(packed, unpadded, strict=True))
