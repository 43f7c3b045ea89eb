"""What every engine promises, whatever computes: one suite for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from infinity_emb.items import Encoded, InputOptions, Pair, number_inputs
from tests.contract.conftest import Array, Contender

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]

# Of any number, as the issue states it for float32.
MAX_DIFFERENCE = 2e-5


def compute(contender: Contender, inputs: Sequence[Any], *, replica: int = 0) -> Array:
    """All inputs in one batch."""
    return launch(contender, contender.model.encode(number_inputs(inputs), InputOptions()), replica=replica)


def launch(contender: Contender, batch: list[Encoded], *, replica: int = 0) -> Array:
    rows = contender.model.replicas[replica].launch(batch).result()["dense"]
    assert isinstance(rows, np.ndarray)
    return rows


def assert_near(rows: Array, expected: Array) -> None:
    assert rows.shape == expected.shape
    assert np.abs(rows - expected).max() <= MAX_DIFFERENCE * max(1, np.abs(expected).max())
    assert len(expected) == 1 or np.ptp(expected, axis=0).max() > 1e-3, "the reference's rows are all alike"


def pairs_of(texts: Sequence[str]) -> list[Pair]:
    return [Pair(texts[0], text) for text in texts]


def test_a_batch_of_mixed_lengths_has_the_reference_s_rows_in_order(
    embedder: Contender, texts: list[str]
) -> None:
    assert_near(compute(embedder, texts), embedder.expected(texts))


def test_pairs_of_mixed_lengths_have_the_reference_s_scores_in_order(
    reranker: Contender, texts: list[str]
) -> None:
    assert_near(compute(reranker, pairs_of(texts)), reranker.expected(pairs_of(texts)))


def test_there_is_a_row_for_each_item_in_float32(embedder: Contender, texts: list[str]) -> None:
    for count in (1, 2, 7, len(texts)):
        rows = compute(embedder, texts[:count])
        assert rows.shape == (count, embedder.model.info.embedding_dimension)
        assert rows.dtype == np.float32


def test_order_is_kept_whatever_the_lengths(embedder: Contender, texts: list[str]) -> None:
    assert_near(compute(embedder, texts[::-1]), embedder.expected(texts)[::-1])


def test_one_item_is_what_it_is_in_company(embedder: Contender, texts: list[str]) -> None:
    together = compute(embedder, texts)
    for at in (0, 5, len(texts) - 1):
        assert np.abs(compute(embedder, [texts[at]])[0] - together[at]).max() <= MAX_DIFFERENCE


def test_a_text_that_fills_the_limit_is_computed(embedder: Contender) -> None:
    limit = embedder.model.info.max_tokens
    assert limit is not None
    longest = " ".join(["word5"] * limit)
    (item,) = embedder.model.encode(number_inputs([longest]), InputOptions())
    assert item.num_tokens == limit
    expected = embedder.expected([longest[:limit]] if limit == 8192 else [longest])
    assert_near(launch(embedder, [item]), expected)


def test_an_item_twice_in_a_batch_has_the_same_row_twice(embedder: Contender, texts: list[str]) -> None:
    rows = compute(embedder, [texts[1], texts[2], texts[1]])
    assert np.abs(rows[0] - rows[2]).max() <= MAX_DIFFERENCE


@pytest.mark.parametrize("full_precision", [False, True])
def test_a_batch_that_cannot_be_computed_raises_and_the_next_one_is_computed(
    embedder: Contender, texts: list[str], full_precision: bool
) -> None:
    backend = embedder.model.replicas[0]
    good = embedder.model.encode(number_inputs([texts[3]]), InputOptions())
    with pytest.raises(Exception):  # noqa: B017, PT011 - each library has its own
        backend.launch([*good, embedder.broken], full_precision=full_precision).result()
    assert_near(launch(embedder, good), embedder.expected([texts[3]]))


def test_what_is_computed_alone_in_full_precision_is_the_same(embedder: Contender, texts: list[str]) -> None:
    batch = embedder.model.encode(number_inputs(texts[:4]), InputOptions())
    rows = embedder.model.replicas[0].launch(batch, full_precision=True).result()["dense"]
    assert_near(np.asarray(rows), embedder.expected(texts[:4]))


def test_replicas_answer_alike(embedder: Contender, texts: list[str]) -> None:
    assert len(embedder.model.replicas) == 2
    assert_near(compute(embedder, texts[:6], replica=1), embedder.expected(texts[:6]))


def test_32_clients_at_once_each_get_their_own_rows(embedder: Contender, texts: list[str]) -> None:
    expected = embedder.expected(texts)

    async def client(number: int) -> None:
        for _ in range(3):
            both = [number % len(texts), (number + 1) % len(texts)]
            vectors, _ = await embedder.served.engine.embed([texts[at] for at in both])
            assert_near(np.array(vectors), expected[both])

    async def all_clients() -> None:
        await asyncio.gather(*(client(number) for number in range(1, 33)))

    embedder.served.wait_for(all_clients())


def test_usage_counts_the_tokens_that_were_computed(embedder: Contender, texts: list[str]) -> None:
    _, num_tokens = embedder.served.wait_for(embedder.served.engine.embed(texts))
    assert num_tokens == sum(
        item.num_tokens for item in embedder.model.encode(number_inputs(texts), InputOptions())
    )
