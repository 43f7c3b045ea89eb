"""Rank documents with rerankers, embedders, sparse and late-interaction models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from infinity_emb.backends import fake
from infinity_emb.backends.base import FinishedBatch
from infinity_emb.errors import (
    QUERY_POSITION,
    BadInput,
    InputTooLong,
)
from infinity_emb.items import Encoded, Pair
from tests.support.fake_engines import call, fake_engine
from tests.support.recording_models import RecordingModels

LONG = "x" * (fake.MAX_TOKENS + 1)


def by_rank(answer: Any) -> list[tuple[str, float, int]]:
    return [(each.document, each.relevance_score, each.index) for each in answer[0]]


def test_documents_are_ranked_best_first_and_ties_keep_their_order() -> None:
    """The fake reranker scores by length; its activation halves."""
    docs = ["one", "seven c", "two", "seven c", ""]
    expected = [("seven c", 7, 1), ("seven c", 7, 3), ("one", 3, 0), ("two", 3, 2), ("", 0, 4)]
    engine = fake_engine("kind=reranker")

    raw = call(engine, "rerank", query="q", docs=docs, raw_scores=True)
    assert by_rank(raw) == expected
    assert raw[1] == sum(len("q") + 1 + len(doc) for doc in docs), "a pair has a token in its middle"
    activated = call(engine, "rerank", query="q", docs=docs)
    assert by_rank(activated) == [(document, score / 2, index) for document, score, index in expected]
    for top_n, num_documents in ((None, 5), (0, 5), (1, 1), (3, 3), (9, 5)):
        answer = call(engine, "rerank", query="q", docs=docs, top_n=top_n)
        assert by_rank(answer) == by_rank(activated)[:num_documents]
        assert answer[1] == raw[1], "all of them were read"


def test_a_reranker_is_given_pairs_and_the_instruction(models: RecordingModels) -> None:
    call(
        models.engine("kind=reranker"),
        "rerank",
        query="q",
        docs=["d", "d", "e"],
        prompt="judge: ",
        truncation="left",
    )
    [(inputs, options)] = models.encoded
    assert inputs == [Pair("q", "d"), Pair("q", "e")]
    assert (options.prompt, options.truncation) == ("judge: ", "left")
    with pytest.raises(BadInput, match="'poem'"):
        call(fake_engine("kind=reranker"), "rerank", query="q", docs=["d"], prompt_name="poem")


class Directions:
    """Compute vectors of different directions, from the length and the first character of each text."""

    num_in_flight = 1
    shares_device = False

    def prepare_thread(self) -> None:
        pass

    def free_memory(self) -> None:
        pass

    def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> Any:
        rows = [self.vector("".join(map(chr, item.token_ids))) for item in batch]
        return FinishedBatch({"dense": np.array(rows, dtype=np.float32)})

    @staticmethod
    def vector(text: str) -> list[float]:
        return [len(text), ord(text[0]) - 110, 1.0] if text else [0.0, 0.0, 0.0]


def test_an_embedder_ranks_by_cosine(models: RecordingModels) -> None:
    docs = ["zebra", "a", "", "nut", "zebra"]
    answer = call(models.engine("kind=embedder", replicas=[Directions()]), "rerank", query="zoo", docs=docs)

    query = np.array(Directions.vector("query: zoo"))
    vectors = [np.array(Directions.vector(doc)) for doc in docs]
    cosines = [
        float(vector @ query / (np.linalg.norm(vector) * np.linalg.norm(query))) if vector.any() else 0.0
        for vector in vectors
    ]
    order = sorted(range(5), key=lambda index: -cosines[index])
    assert [each.index for each in answer[0]] == order
    assert [each.relevance_score for each in answer[0]] == pytest.approx([cosines[index] for index in order])
    assert answer[1] == len("query: zoo") + sum(map(len, docs))
    assert sorted((options.task, tuple(inputs)) for inputs, options in models.encoded) == [
        ("document", ("zebra", "a", "", "nut")),
        ("query", ("zoo",)),
    ]


def test_a_sparse_model_ranks_by_dot_product() -> None:
    """The fake one counts characters."""
    docs = ["banana", "", "query", "xyz"]
    answer = call(fake_engine("kind=sparse"), "rerank", query="an", docs=docs, top_n=3)

    asked = Counter("query: an")
    scores = [sum(asked[char] * count for char, count in Counter(doc).items()) for doc in docs]
    order = sorted(range(4), key=lambda index: -scores[index])[:3]
    assert [(each.index, each.relevance_score) for each in answer[0]] == [(i, scores[i]) for i in order]


def test_a_late_interaction_model_scores_documents_on_the_device(models: RecordingModels) -> None:
    """The documents' token vectors never leave the device; the query's go there with each document."""
    docs = ["banana", "a", "banana", "seven c"]
    answer = call(models.engine("kind=multivector"), "rerank", query="an", docs=docs)

    assert by_rank(answer) == [("seven c", 7, 3), ("banana", 6, 0), ("banana", 6, 2), ("a", 1, 1)]
    assert answer[1] == len("query: an") + sum(map(len, docs))
    (asked, first), (told, second) = models.encoded
    assert (asked, first.prompt, first.task, first.outputs) == (["an"], "query: ", "query", ("multivector",))
    assert (told, second.prompt, second.task, second.outputs) == (
        ["banana", "a", "seven c"],
        "",
        "document",
        ("maxsim",),
    )
    assert second.query_vectors is not None
    assert second.query_vectors[:, 0].tolist() == list(map(ord, "query: an"))


@pytest.mark.parametrize("kind", ["reranker", "embedder", "sparse", "multivector"])
def test_an_error_names_the_position_of_the_document(kind: str) -> None:
    docs = ["a", "a", "b", LONG, LONG]
    with pytest.raises(InputTooLong, match=r"^input 3 has 8\d+ tokens"):
        call(fake_engine(f"kind={kind}"), "rerank", query="q", docs=docs, truncation="off")


@pytest.mark.parametrize("kind", ["embedder", "sparse", "multivector"])
def test_an_error_in_the_query_does_not_name_a_document(kind: str) -> None:
    """It was called input 0, which is the first document."""
    with pytest.raises(InputTooLong, match=r"^query has 8200 tokens") as raised:
        call(fake_engine(f"kind={kind}"), "rerank", query=LONG, docs=["a"], truncation="off")
    assert raised.value.position == QUERY_POSITION


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"query": "q", "docs": []}, "docs is empty"),
        ({"query": "q", "docs": "a text"}, "docs must be a list of texts"),
        ({"query": "q", "docs": ["a", None]}, r"docs\[1\] is NoneType"),
        ({"query": None, "docs": ["a"]}, "query is NoneType, not a text"),
    ],
)
def test_invalid_rerank_requests_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        call(fake_engine("kind=reranker"), "rerank", **arguments)
