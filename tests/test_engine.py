"""What each task means: its prompts, outputs, scores, number formats and errors, on the fake model."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import warnings
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest

from infinity_emb import engine as engine_module
from infinity_emb.backends import fake
from infinity_emb.backends.base import Encoded, Input, InputOptions, LoadedModel, Pair, Piece
from infinity_emb.config import EngineArgs
from infinity_emb.embedding import EmbedOptions, Span
from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.errors import (
    AudioCorruption,
    BackendFailed,
    BadInput,
    EngineNotReady,
    ImageCorruption,
    InputTooLong,
    MatryoshkaDimError,
    ModelNotDeployedError,
    Overloaded,
    StartupError,
)
from infinity_emb.pieces import MAX_PIECES
from infinity_emb.primitives import EmbeddingDtype, OutputName
from infinity_emb.prompts import MAX_PROMPT_CHARS

# Everything below is waited for by an event; a wait that takes this long has failed.
PATIENCE_S = 30.0
LONG = "x" * (fake.MAX_TOKENS + 1)
T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE_S))


def fake_engine(name: str = "", **options: Any) -> AsyncEmbeddingEngine:
    """Every value of a vector is the number of characters of its text."""
    args = EngineArgs(model_name_or_path=f"debug?{name}", engine="debugengine", **options)
    return AsyncEmbeddingEngine.from_args(args)


def call(engine: AsyncEmbeddingEngine, task: str, *args: Any, **kwargs: Any) -> Any:
    """One task of an engine that is started for it."""

    async def main() -> Any:
        async with engine:
            return await getattr(engine, task)(*args, **kwargs)

    return run(main())


def lengths_of(vectors: Sequence[npt.NDArray[Any]]) -> list[int]:
    return [int(vector[0]) for vector in vectors]


class Watched:
    """Engines of the fake model, and what was asked of their preprocessing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[list[Input], InputOptions]] = []
        self._monkeypatch = monkeypatch

    def engine(
        self, name: str = "", info: dict[str, Any] | None = None, **changes: Any
    ) -> AsyncEmbeddingEngine:
        """changes: of the loaded model; info: of what it says of itself."""

        def load(args: EngineArgs) -> LoadedModel:
            model = fake.load_model(args)
            changed: dict[str, Any] = {"prepare": self._prepare, **changes}
            return replace(model, info=replace(model.info, **(info or {})), **changed)

        with self._monkeypatch.context() as patch:
            patch.setattr(engine_module, "load_model", load)
            return fake_engine(name)

    def _prepare(self, inputs: Sequence[Input], options: InputOptions) -> list[Encoded]:
        self.asked.append((list(inputs), options))
        return fake.prepare(inputs, options)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where calibration rows are kept."""
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path))
    return tmp_path


# Vectors of texts


def test_vectors_come_in_the_order_of_the_texts() -> None:
    vectors, num_tokens = call(fake_engine(), "embed", ["four", "a", "seventh", "a"])

    assert lengths_of(vectors) == [4, 1, 7, 1]
    assert num_tokens == 13
    assert all(vector.shape == (13,) and vector.dtype == np.float32 for vector in vectors)


def test_an_empty_text_has_a_vector_where_the_tokenizer_allows_it() -> None:
    vectors, num_tokens = call(fake_engine(), "embed", [""])
    assert (lengths_of(vectors), num_tokens) == ([0], 0)


@pytest.mark.parametrize("dim", [1, 5, 13])
def test_fewer_dimensions_are_scaled_to_length_one(dim: int) -> None:
    vectors, _ = call(fake_engine(), "embed", ["four", "seventh"], matryoshka_dim=dim)

    assert [vector.shape for vector in vectors] == [(dim,)] * 2
    if dim < 13:
        assert np.allclose([np.linalg.norm(vector) for vector in vectors], 1)


def test_late_interaction_models_answer_an_array_per_text() -> None:
    vectors, _ = call(fake_engine("kind=multivector"), "embed", ["ab", "c"], matryoshka_dim=4)

    assert [vector.shape for vector in vectors] == [(2, 4), (1, 4)]
    assert np.allclose(np.linalg.norm(vectors[0], axis=1), 1)


def test_sparse_models_do_not_answer_arrays() -> None:
    with pytest.raises(
        ModelNotDeployedError, match=r"cannot answer \['dense'\]; its outputs are \['sparse'\]"
    ):
        call(fake_engine("kind=sparse"), "embed", ["a"])


def test_several_outputs_come_from_one_pass_of_each_text() -> None:
    async def main() -> None:
        async with fake_engine("kind=embedder") as engine:
            outputs: tuple[OutputName, ...] = ("sparse", "dense", "multivector", "dense")
            answer = await engine.encode(["aab", "c"], EmbedOptions(outputs=outputs, dimensions=2))
            assert engine.stats.num_items == 2
            assert answer.num_tokens == 4
            assert [vector.tolist() for vector in answer.dense or ()] == [[pytest.approx(0.5**0.5)] * 2] * 2
            assert [rows.shape for rows in answer.multivector or ()] == [(3, 2), (1, 2)]
            assert [(row.indices.tolist(), row.values.tolist()) for row in answer.sparse or ()] == [
                ([97, 98], [2, 1]),
                ([99], [1]),
            ]
            assert answer.spans is None

    run(main())


@pytest.mark.parametrize(
    ("kind", "first"), [("embedder", "dense"), ("sparse", "sparse"), ("multivector",) * 2]
)
def test_without_a_choice_the_answer_is_the_model_s_first_output(kind: str, first: str) -> None:
    answer = call(fake_engine(f"kind={kind}"), "encode", ["a"])
    assert [name for name in ("dense", "sparse", "multivector") if getattr(answer, name) is not None] == [
        first
    ]


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        ("auto", ("sparse",)),
        ("sparse", ("dense",)),
        ("multivector", ("dense", "multivector")),
        ("embedder", ("chunks",)),
    ],
)
def test_an_output_that_the_model_has_not_is_refused(kind: str, outputs: tuple[OutputName, ...]) -> None:
    with pytest.raises(ModelNotDeployedError, match=r"cannot answer .*; its outputs are"):
        call(fake_engine(f"kind={kind}"), "encode", ["a"], EmbedOptions(outputs=outputs))


def test_a_text_that_is_too_long_is_cut_or_refused_as_asked() -> None:
    async def main() -> None:
        async with fake_engine() as engine:
            vectors, num_tokens = await engine.embed([LONG])
            assert (lengths_of(vectors), num_tokens) == ([fake.MAX_TOKENS], fake.MAX_TOKENS)
            with pytest.raises(InputTooLong, match=r"input 2 has 8193 tokens, the limit is 8192"):
                await engine.embed(["a", "a", LONG], truncate=False)
            with pytest.raises(InputTooLong, match=r"input 1 "):
                await engine.encode(["a", LONG], EmbedOptions(truncation="off"))
            assert engine.overload_status() == (0, 0, 0)

    run(main())


@pytest.mark.parametrize("truncation", ["model", "left", "right", "off"])
def test_the_preprocessing_is_told_how_to_cut(truncation: Any, watched: Watched) -> None:
    call(watched.engine(), "encode", ["a"], EmbedOptions(truncation=truncation))
    [(_, options)] = watched.asked
    assert options.truncation == truncation


# Prompts and input types


@pytest.mark.parametrize(
    ("given", "text", "task"),
    [
        ({}, "", None),
        ({"prompt": "mine: "}, "mine: ", None),
        ({"prompt_name": "query"}, "query: ", None),
        ({"input_type": "query"}, "query: ", "query"),
        ({"input_type": "search_query"}, "query: ", "query"),
        ({"input_type": "document"}, "", "document"),
        ({"input_type": "RETRIEVAL_PASSAGE"}, "", "document"),
        ({"input_type": "query", "prompt": ""}, "", "query"),
        ({"input_type": "document", "prompt_name": "query"}, "query: ", "document"),
    ],
)
def test_prompts_and_tasks_are_those_that_were_chosen(
    given: dict[str, str], text: str, task: str | None, watched: Watched
) -> None:
    """The rules themselves are tested in test_prompts.py."""
    vectors, num_tokens = call(watched.engine("kind=embedder"), "embed", ["four", "a"], **given)
    answer = call(watched.engine("kind=embedder"), "encode", ["four", "a"], EmbedOptions(**given))

    assert lengths_of(vectors) == lengths_of(answer.dense) == [len(text) + 4, len(text) + 1]
    assert num_tokens == answer.num_tokens == 2 * len(text) + 5
    assert [(options.prompt, options.task) for _, options in watched.asked] == [(text, task)] * 2


def test_the_default_prompt_goes_before_texts_and_pairs_alike(watched: Watched) -> None:
    default = {"prompts": {"usual": "as usual: "}, "default_prompt_name": "usual"}

    assert lengths_of(call(watched.engine(info=default), "embed", ["four"])[0]) == [14]
    call(watched.engine("kind=classifier", default), "classify", sentences=["four"])
    call(watched.engine("kind=reranker", default), "rerank", query="q", docs=["d"])
    assert [options.prompt for _, options in watched.asked] == ["as usual: "] * 3


@pytest.mark.parametrize("given", [{"prompt_name": "poem"}, {"input_type": "poem"}])
def test_a_prompt_that_the_model_has_not_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(BadInput, match=r"'poem'.*'query'"):
        call(fake_engine("kind=embedder"), "embed", ["a"], **given)


# Number formats


@pytest.mark.parametrize("dtype", ["float16", "binary", "ubinary"])
def test_the_number_format_is_that_of_the_request_and_else_of_the_model(dtype: str) -> None:
    expected = {
        "float16": ([0.0] * 13, [4.0] * 13),
        "binary": ([-128, -128], [127, 120]),
        "ubinary": ([0, 0], [255, 248]),
    }[dtype]

    async def main() -> None:
        options = EmbedOptions(embedding_dtype=EmbeddingDtype(dtype))
        async with fake_engine(embedding_dtype=dtype) as served, fake_engine() as asked:
            for answer in (await served.encode(["", "four"]), await asked.encode(["", "four"], options)):
                assert [vector.tolist() for vector in answer.dense or ()] == list(expected)
            plain = EmbedOptions(embedding_dtype=EmbeddingDtype.float32)
            for engine in (served, asked):
                vectors = (await engine.encode(["four"], plain)).dense or ()
                assert [vector.dtype for vector in vectors] == [np.float32]
            assert (await served.embed(["four"]))[0][0].tolist() == expected[1]

    run(main())


@pytest.mark.parametrize(("dtype", "shift"), [("uint8", 0), ("int8", -128)])
@pytest.mark.parametrize("is_served_so", [True, False])
def test_ranges_of_small_integers_come_from_the_calibration_texts(
    dtype: str, shift: int, is_served_so: bool, cache: Path
) -> None:
    """Texts of 10 to 265 characters make steps of one character."""
    texts = cache / "texts.txt"
    texts.write_text("\n".join("x" * length for length in (265, 10, 99)))
    given = {"embedding_dtype": dtype} if is_served_so else {}

    async def main() -> None:
        async with fake_engine(calibration_file=str(texts), **given) as engine:
            num_calibrated = engine.stats.num_items
            answer = await engine.encode(
                ["x" * length for length in (0, 10, 11, 100, 265, 999)],
                EmbedOptions(embedding_dtype=None if is_served_so else EmbeddingDtype(dtype)),
            )
            assert lengths_of(answer.dense or ()) == [step + shift for step in (0, 0, 1, 90, 255, 255)]
            assert {vector.dtype for vector in answer.dense or ()} == {np.dtype(dtype)}
            assert num_calibrated == (3 if is_served_so else 0), "an engine that is served so starts warm"
            short = await engine.encode(
                ["a"], EmbedOptions(embedding_dtype=EmbeddingDtype(dtype), dimensions=2)
            )
            assert [vector.shape for vector in short.dense or ()] == [(2,)]

    run(main())


def test_an_accepted_request_finds_its_ranges_while_the_engine_stops(cache: Path) -> None:
    async def main() -> None:
        engine = fake_engine()
        await engine.astart()
        options = EmbedOptions(embedding_dtype=EmbeddingDtype.int8)
        request = asyncio.create_task(engine.encode(["four"], options))
        await asyncio.sleep(0)
        await engine.astop()
        assert [vector.dtype for vector in (await request).dense or ()] == [np.int8]

    run(main())


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_multi_vectors_have_no_ranges(dtype: str) -> None:
    with pytest.raises(BadInput, match=f"not available as {dtype}; ask for float32"):
        call(
            fake_engine("kind=multivector"),
            "encode",
            ["a"],
            EmbedOptions(embedding_dtype=EmbeddingDtype(dtype)),
        )


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_model_of_multi_vectors_is_not_served_in_a_format_that_needs_ranges(dtype: str) -> None:
    with pytest.raises(StartupError, match=f"--embedding-dtype {dtype} is not for model 'debug.kind=multi"):
        fake_engine("kind=multivector", embedding_dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "task", "given"),
    [
        ("reranker", "rerank", {"query": "a", "docs": ["b"]}),
        ("classifier", "classify", {"sentences": ["a"]}),
        ("sparse", "encode", {"sentences": ["a"]}),
    ],
)
def test_models_without_dense_vectors_look_for_no_ranges(
    kind: str, task: str, given: dict[str, Any], cache: Path
) -> None:
    """One option may stand for several models."""
    assert call(fake_engine(f"kind={kind}", embedding_dtype="int8"), task, **given)
    assert not list(cache.rglob("*.npy"))


def test_multi_vectors_come_in_the_other_formats() -> None:
    options = EmbedOptions(embedding_dtype=EmbeddingDtype.ubinary)
    [rows] = call(fake_engine("kind=multivector"), "encode", ["ab"], options).multivector
    assert rows.tolist() == [[255, 248]] * 2


# Texts over the limit, in pieces


def test_a_text_in_pieces_has_the_average_of_their_vectors_by_their_tokens() -> None:
    rest = 1000
    texts = ["four", "x" * (2 * fake.MAX_TOKENS + rest), ""]
    answer = call(fake_engine("kind=embedder"), "encode", texts, EmbedOptions(chunking=True))

    assert answer.num_tokens == sum(map(len, texts))
    weighted = 2 * fake.MAX_TOKENS**2 + rest**2
    assert [vector[0] for vector in answer.dense] == pytest.approx([4, weighted / len(texts[1]), 0], rel=1e-6)


def test_the_prompt_stands_before_every_piece() -> None:
    prompt, room = "query: ", fake.MAX_TOKENS - 7
    answer = call(
        fake_engine("kind=embedder"), "encode", ["x" * (room + 3)], EmbedOptions(chunking=True, prompt=prompt)
    )

    assert answer.num_tokens == room + 3 + 2 * len(prompt)
    expected = (fake.MAX_TOKENS * room + (3 + 7) * 3) / (room + 3)
    assert answer.dense[0][0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("changes", [{"split": None}, {"info": {"max_tokens": None}}])
def test_a_model_that_cannot_cut_a_text_or_need_not_embeds_it_whole(
    changes: dict[str, Any], watched: Watched
) -> None:
    texts = ["four", "x" * 9000]
    answer = call(watched.engine("kind=embedder", **changes), "encode", texts, EmbedOptions(chunking=True))
    assert lengths_of(answer.dense) == [4, fake.MAX_TOKENS]


def test_pieces_are_for_dense_vectors_alone() -> None:
    with pytest.raises(BadInput, match="chunking averages dense vectors"):
        call(fake_engine("kind=sparse"), "encode", ["a"], EmbedOptions(chunking=True))


def test_a_text_whose_piece_fails_is_named_by_its_own_place() -> None:
    """It was named by the number of the piece, which the caller knows nothing of."""
    texts = ["x" * 40_000, "a", "y" * 9000 + "poison"]
    with pytest.raises(BackendFailed, match=r"^input 2 gives NaN"):
        call(fake_engine("kind=embedder&nan_on=poison"), "encode", texts, EmbedOptions(chunking=True))


def test_pieces_take_room_in_the_queue() -> None:
    async def main() -> None:
        async with fake_engine("kind=embedder", max_queue_items=3) as engine:
            options = EmbedOptions(chunking=True)
            await engine.encode(["x" * 3 * fake.MAX_TOKENS], options)
            with pytest.raises(BadInput, match="4 inputs, more than the 3"):
                await engine.encode(["x" * 3 * fake.MAX_TOKENS, "a"], options)
            with pytest.raises(BadInput, match="4 inputs, more than the 3"):
                await engine.encode_passages(["x" * 8], chunk_size=2)
            assert engine.overload_status() == (0, 0, 0)

    run(main())


def test_a_request_cannot_be_cut_into_any_number_of_pieces() -> None:
    prompt = "p" * (fake.MAX_TOKENS - 1)
    with pytest.raises(BadInput, match=f"the limit is {MAX_PIECES}"):
        call(fake_engine("kind=embedder"), "encode", [LONG], EmbedOptions(chunking=True, prompt=prompt))
    with pytest.raises(BadInput, match=f"the limit is {MAX_PIECES}"):
        call(fake_engine("kind=embedder"), "encode_passages", ["x" * (MAX_PIECES + 1)], chunk_size=1)


# Passages of one text


def test_passages_are_read_as_one_text_and_have_a_vector_each(watched: Watched) -> None:
    texts = ["One. ", "Two and", "three\n", "four"]
    answer = call(watched.engine("kind=embedder"), "encode_passages", texts, EmbedOptions(input_type="query"))

    whole = "One. Two and three\nfour"
    [([passages], options)] = watched.asked
    assert "".join(passages.texts) == whole
    assert (options.prompt, options.task, options.outputs) == ("query: ", "query", ("chunks",))
    assert lengths_of(answer.dense) == [5, 8, 6, 4]
    assert [whole[start:end] for start, end in answer.spans] == ["One. ", "Two and ", "three\n", "four"]
    assert answer.num_tokens == len("query: ") + len(whole)


def test_passages_can_be_cut_by_size_instead() -> None:
    answer = call(fake_engine("kind=embedder"), "encode_passages", ["x" * 7, "y" * 9], chunk_size=5)

    assert answer.spans == [Span(0, 5), Span(5, 10), Span(10, 15), Span(15, 17)]
    assert lengths_of(answer.dense) == [5, 5, 5, 2]


def test_vectors_of_passages_come_in_the_format_that_is_asked_for() -> None:
    options = EmbedOptions(dimensions=4, embedding_dtype=EmbeddingDtype.ubinary)
    answer = call(fake_engine("kind=embedder"), "encode_passages", ["a", "b"], options)
    assert [vector.tolist() for vector in answer.dense] == [[240], [240]]


@pytest.mark.parametrize("kind", ["auto", "sparse", "multivector"])
def test_passages_need_a_model_that_averages_its_tokens(kind: str) -> None:
    with pytest.raises(ModelNotDeployedError, match="late chunking averages token vectors"):
        call(fake_engine(f"kind={kind}"), "encode_passages", ["a", "b"])


def test_passages_over_the_limit_are_refused_together() -> None:
    with pytest.raises(InputTooLong, match="8197 tokens with all passages, the limit is 8192"):
        call(fake_engine("kind=embedder"), "encode_passages", ["a", LONG, "b"])


def test_a_text_over_the_limit_is_refused_before_it_is_cut_small(watched: Watched) -> None:
    sizes: list[int] = []

    def split(text: str, *, prompt: str, max_tokens: int, is_alone: bool = True) -> list[Piece]:
        sizes.append(max_tokens)
        return fake.split(text, prompt=prompt, max_tokens=max_tokens, is_alone=is_alone)

    with pytest.raises(InputTooLong, match=r"^input 0 has 8193 tokens, the limit is 8192"):
        call(watched.engine("kind=embedder", split=split), "encode_passages", [LONG], chunk_size=1)
    assert sizes == [fake.MAX_TOKENS]


@pytest.mark.parametrize("texts", [[], "one text", ["a", 5]])
def test_passages_are_a_list_of_texts(texts: Any) -> None:
    with pytest.raises(BadInput, match="sentences"):
        call(fake_engine("kind=embedder"), "encode_passages", texts)


# Reranking


def ranked(answer: Any) -> list[tuple[str, float, int]]:
    return [(each.document, each.relevance_score, each.index) for each in answer[0]]


def test_a_reranker_s_documents_come_best_first_and_equal_ones_in_their_order() -> None:
    """The fake reranker scores by length; its activation halves."""
    docs = ["one", "seven c", "two", "seven c", ""]
    expected = [("seven c", 7, 1), ("seven c", 7, 3), ("one", 3, 0), ("two", 3, 2), ("", 0, 4)]
    engine = fake_engine("kind=reranker")

    raw = call(engine, "rerank", query="q", docs=docs, raw_scores=True)
    assert ranked(raw) == expected
    assert raw[1] == sum(len("q") + 1 + len(doc) for doc in docs), "a pair has a token in its middle"
    activated = call(engine, "rerank", query="q", docs=docs)
    assert ranked(activated) == [(document, score / 2, index) for document, score, index in expected]
    for top_n, num_documents in ((None, 5), (0, 5), (1, 1), (3, 3), (9, 5)):
        answer = call(engine, "rerank", query="q", docs=docs, top_n=top_n)
        assert ranked(answer) == ranked(activated)[:num_documents]
        assert answer[1] == raw[1], "all of them were read"


def test_a_reranker_is_given_pairs_and_the_instruction(watched: Watched) -> None:
    call(
        watched.engine("kind=reranker"),
        "rerank",
        query="q",
        docs=["d", "d", "e"],
        prompt="judge: ",
        truncation="left",
    )
    [(inputs, options)] = watched.asked
    assert inputs == [Pair("q", "d"), Pair("q", "e")]
    assert (options.prompt, options.truncation) == ("judge: ", "left")
    with pytest.raises(BadInput, match="'poem'"):
        call(fake_engine("kind=reranker"), "rerank", query="q", docs=["d"], prompt_name="poem")


class Directions:
    """A backend whose vectors are not all of one direction: how long a text is, and its first character."""

    num_in_flight = 1
    shares_device = False

    def prepare_thread(self) -> None:
        pass

    def free_memory(self) -> None:
        pass

    def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> Any:
        rows = [self.vector(fake._decode(item)) for item in batch]
        return fake.FakeLaunched({"dense": np.array(rows, dtype=np.float32)})

    @staticmethod
    def vector(text: str) -> list[float]:
        return [len(text), ord(text[0]) - 110, 1.0] if text else [0.0, 0.0, 0.0]


def test_an_embedder_reranks_by_the_cosine_of_its_vectors(watched: Watched) -> None:
    docs = ["zebra", "a", "", "nut", "zebra"]
    answer = call(watched.engine("kind=embedder", replicas=[Directions()]), "rerank", query="zoo", docs=docs)

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
    assert sorted((options.task, tuple(inputs)) for inputs, options in watched.asked) == [
        ("document", ("zebra", "a", "", "nut")),
        ("query", ("zoo",)),
    ]


def test_a_sparse_model_reranks_by_the_dot_product() -> None:
    """The fake one counts characters."""
    docs = ["banana", "", "query", "xyz"]
    answer = call(fake_engine("kind=sparse"), "rerank", query="an", docs=docs, top_n=3)

    asked = Counter("query: an")
    scores = [sum(asked[char] * count for char, count in Counter(doc).items()) for doc in docs]
    order = sorted(range(4), key=lambda index: -scores[index])[:3]
    assert [(each.index, each.relevance_score) for each in answer[0]] == [(i, scores[i]) for i in order]


def test_a_late_interaction_model_scores_documents_where_the_vectors_are(watched: Watched) -> None:
    """The documents' token vectors never leave the device; the query's go there with each document."""
    docs = ["banana", "a", "banana", "seven c"]
    answer = call(watched.engine("kind=multivector"), "rerank", query="an", docs=docs)

    assert ranked(answer) == [("seven c", 7, 3), ("banana", 6, 0), ("banana", 6, 2), ("a", 1, 1)]
    assert answer[1] == len("query: an") + sum(map(len, docs))
    (asked, first), (told, second) = watched.asked
    assert (asked, first.prompt, first.task, first.outputs) == (["an"], "query: ", "query", ("multivector",))
    assert (told, second.prompt, second.task, second.outputs) == (
        ["banana", "a", "seven c"],
        "",
        "document",
        ("maxsim",),
    )
    assert second.query_rows is not None
    assert second.query_rows[:, 0].tolist() == list(map(ord, "query: an"))


@pytest.mark.parametrize("kind", ["reranker", "embedder", "sparse", "multivector"])
def test_a_document_to_blame_is_named_by_its_place(kind: str) -> None:
    docs = ["a", "a", "b", LONG, LONG]
    with pytest.raises(InputTooLong, match=r"^input 3 has 8\d+ tokens"):
        call(fake_engine(f"kind={kind}"), "rerank", query="q", docs=docs, truncation="off")


@pytest.mark.parametrize("kind", ["embedder", "sparse", "multivector"])
def test_a_query_to_blame_is_not_taken_for_a_document(kind: str) -> None:
    """It was called input 0, which is the first document."""
    with pytest.raises(InputTooLong, match=r"^query has 8200 tokens") as raised:
        call(fake_engine(f"kind={kind}"), "rerank", query=LONG, docs=["a"], truncation="off")
    assert raised.value.position is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"query": "q", "docs": []}, "docs is empty"),
        ({"query": "q", "docs": "a text"}, "docs must be a list of texts"),
        ({"query": "q", "docs": ["a", None]}, r"docs\[1\] is NoneType"),
        ({"query": None, "docs": ["a"]}, "query is NoneType, not a text"),
    ],
)
def test_what_cannot_be_ranked_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        call(fake_engine("kind=reranker"), "rerank", **arguments)


# Classifying


def test_all_labels_of_a_text_come_best_first() -> None:
    """The fake classifier's logits are the number of characters, and 0."""
    engine = fake_engine("kind=classifier")

    raw, num_tokens = call(engine, "classify", sentences=["four", "", "four"], raw_scores=True)
    assert num_tokens == 8
    assert raw == [
        [{"label": "characters", "score": 4}, {"label": "none", "score": 0}],
        [{"label": "characters", "score": 0}, {"label": "none", "score": 0}],
        [{"label": "characters", "score": 4}, {"label": "none", "score": 0}],
    ]
    activated, _ = call(engine, "classify", sentences=["four"])
    assert activated == [[{"label": "characters", "score": 2}, {"label": "none", "score": 0}]]


def test_texts_and_pairs_can_be_classified_side_by_side(watched: Watched) -> None:
    sentences = ["four", ("a", "b"), "x", ("", "six"), ("a", "b")]
    raw, num_tokens = call(
        watched.engine("kind=classifier"),
        "classify",
        sentences=sentences,
        raw_scores=True,
        truncation="right",
    )

    assert [labels[0]["score"] for labels in raw] == [4, 3, 1, 4, 3]
    assert num_tokens == 15
    assert {tuple(inputs) for inputs, _ in watched.asked} == {
        ("four", "x"),
        (Pair("a", "b"), Pair("", "six")),
    }
    assert {options.truncation for _, options in watched.asked} == {"right"}


@pytest.mark.parametrize(
    ("sentences", "position"),
    [
        (["a", LONG], 1),
        (["a", ("b", "c"), LONG], 2),
        ([("a", "b"), "a", ("a", LONG)], 2),
        (["a", (LONG, "a")], 1),
    ],
)
def test_what_cannot_be_classified_is_named_by_its_place(sentences: list[Any], position: int) -> None:
    """In a request of texts and pairs it was named by its place among those of its kind."""
    with pytest.raises(InputTooLong, match=rf"^input {position} has 8\d+ tokens"):
        call(fake_engine("kind=classifier"), "classify", sentences=sentences, truncation="off")


@pytest.mark.parametrize(
    "sentences", [[], "a text", ["a", 5], [("a", 5)], [("a",)], [("a", "b", "c")], [(5, "a")]]
)
def test_what_is_neither_text_nor_pair_is_refused(sentences: Any) -> None:
    with pytest.raises(BadInput, match="sentences"):
        call(fake_engine("kind=classifier"), "classify", sentences=sentences)


# Images and audio


def picture(height: int, width: int = 9) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def sound(seconds: float, rate_hz: int = 8000) -> bytes:
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(int(seconds * rate_hz)), rate_hz, format="WAV")
    return stream.getvalue()


def data_uri(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def test_images_are_embedded_however_they_come() -> None:
    """A fake vector says how high an image is."""
    from PIL import Image

    images = [data_uri(picture(5), "image/png"), picture(7), Image.new("L", (4, 6)), picture(7)]
    vectors, num_tokens = call(
        fake_engine("kind=embedder"), "image_embed", images=images, matryoshka_dim=None
    )

    assert lengths_of(vectors) == [5, 7, 6, 7]
    assert num_tokens == 25
    [short] = call(fake_engine("kind=embedder"), "image_embed", images=[picture(5)], matryoshka_dim=3)[0]
    assert short.shape == (3,)


def test_sounds_are_embedded_however_they_come() -> None:
    """A fake vector says how many seconds a clip has, at the model's own rate, and one more."""
    audios = [data_uri(sound(1.5), "audio/wav"), sound(3.5, rate_hz=44_100)]
    vectors, num_tokens = call(fake_engine("kind=embedder"), "audio_embed", audios=audios)

    assert (lengths_of(vectors), num_tokens) == ([2, 4], 6)


def test_late_interaction_models_answer_an_array_per_image() -> None:
    [rows], _ = call(fake_engine("kind=multivector"), "image_embed", images=[picture(5)])
    assert rows.shape == (5, 13)


def test_images_are_documents_in_the_format_that_the_model_is_served_with(watched: Watched) -> None:
    call(watched.engine("kind=embedder"), "image_embed", images=[picture(5)])
    [(_, options)] = watched.asked
    assert (options.task, options.outputs) == ("document", ("dense",))
    [vector], _ = call(
        fake_engine("kind=embedder", embedding_dtype="ubinary"), "image_embed", images=[picture(5)]
    )
    assert vector.tolist() == [255, 248]


@pytest.mark.parametrize(
    ("task", "bad", "error"),
    [
        ("image_embed", {"images": [picture(5), b"no image"]}, ImageCorruption),
        ("audio_embed", {"audios": [sound(1), b"no sound"]}, AudioCorruption),
        ("image_embed", {"images": [picture(5), 5]}, BadInput),
        ("image_embed", {"images": [picture(5), "data:image/png;base64,!"]}, BadInput),
        ("audio_embed", {"audios": [sound(1), "file:///etc/passwd"]}, BadInput),
    ],
)
def test_what_cannot_be_read_is_named_by_its_place(task: str, bad: dict[str, Any], error: type) -> None:
    async def main() -> None:
        async with fake_engine("kind=embedder") as engine:
            with pytest.raises(error, match=r"^input 1 ") as raised:
                await getattr(engine, task)(**bad)
            assert raised.value.position == 1
            assert engine.overload_status() == (0, 0, 0)

    run(main())


@pytest.mark.parametrize("images", [[], "https://example.com/image.png", b"bytes", None, 5])
def test_images_are_a_list(images: Any) -> None:
    with pytest.raises(BadInput, match="images must be a list"):
        call(fake_engine("kind=embedder"), "image_embed", images=images)


def test_room_for_images_is_taken_before_they_are_fetched() -> None:
    async def main() -> None:
        async with fake_engine("kind=embedder", max_queue_items=3) as engine:
            first = asyncio.create_task(engine.image_embed(images=[picture(5)] * 2))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await engine.image_embed(images=[picture(5)] * 2)
            await first

    run(main())


# Bad input


@pytest.mark.parametrize(
    "sentences", [[], (), "one text", None, 5, {"a"}, ["a", 5], [None], b"bytes", [["a"]]]
)
def test_what_is_no_list_of_texts_is_refused(sentences: Any) -> None:
    async def main() -> None:
        async with fake_engine() as engine:
            with pytest.raises(BadInput, match="sentences"):
                await engine.embed(sentences)

    run(main())


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("p" * (MAX_PROMPT_CHARS + 1), "has 100001 characters, the limit is 100000"), (5, "is int, not a text")],
)
def test_prompts_have_a_limit(prompt: Any, words: str) -> None:
    async def main() -> None:
        async with fake_engine("kind=embedder") as engine:
            for task, arguments in (
                ("embed", {"sentences": ["a"]}),
                ("rerank", {"query": "q", "docs": ["a"]}),
            ):
                with pytest.raises(BadInput, match=f"prompt {words}"):
                    await getattr(engine, task)(**arguments, prompt=prompt)

    run(main())


@pytest.mark.parametrize("dim", [-1, 0, 14])
def test_dimensions_outside_the_model_are_refused(dim: int) -> None:
    async def main() -> None:
        async with fake_engine() as engine:
            with pytest.raises(MatryoshkaDimError, match=rf"dimensions={dim} .* between 1 and 13"):
                await engine.embed(["a"], matryoshka_dim=dim)

    run(main())


@pytest.mark.parametrize(
    ("kind", "task", "arguments", "able"),
    [
        ("auto", "rerank", {"query": "q", "docs": ["d"], "raw_scores": True, "top_n": 1}, "embed"),
        ("auto", "classify", {"sentences": ["a"], "raw_scores": True}, "embed"),
        ("auto", "image_embed", {"images": ["i"], "matryoshka_dim": 2}, "embed"),
        ("auto", "audio_embed", {"audios": ["a"], "matryoshka_dim": 2}, "embed"),
        ("reranker", "embed", {"sentences": ["a"]}, "rerank"),
        ("reranker", "classify", {"sentences": ["a"]}, "rerank"),
        ("classifier", "rerank", {"query": "q", "docs": ["d"]}, "classify"),
        ("multivector", "audio_embed", {"audios": ["a"]}, "embed, rerank, image_embed"),
    ],
)
def test_a_task_that_the_model_cannot_do_is_refused(
    kind: str, task: str, arguments: dict[str, Any], able: str
) -> None:
    engine = fake_engine(f"kind={kind}", served_model_name="mine")
    with pytest.raises(ModelNotDeployedError, match=f"'mine' does not support '{task}'; it supports {able}$"):
        call(engine, task, **arguments)


@pytest.mark.parametrize("task", ["encode", "encode_passages"])
@pytest.mark.parametrize("kind", ["reranker", "classifier"])
def test_a_model_that_scores_does_not_embed(kind: str, task: str) -> None:
    with pytest.raises(ModelNotDeployedError, match="does not support 'embed'"):
        call(fake_engine(f"kind={kind}"), task, ["a"])


# Starting and stopping; test_running_model.py has the rest


def test_an_engine_that_is_not_started_refuses_every_task() -> None:
    engine = fake_engine("kind=embedder")

    assert not engine.is_running
    assert not engine.is_dead
    for task, arguments in (
        ("embed", {"sentences": ["a"]}),
        ("encode_passages", {"texts": ["a"]}),
        ("rerank", {"query": "q", "docs": ["a"]}),
    ):
        with pytest.raises(EngineNotReady, match="not started"):
            run(getattr(engine, task)(**arguments))
    run(engine.astop())


def test_an_engine_can_be_stopped_and_started_again_on_other_event_loops() -> None:
    engine = fake_engine("kind=embedder")

    async def use() -> None:
        async with engine:
            assert lengths_of((await engine.embed(["aa", "b"]))[0]) == [2, 1]
            assert lengths_of((await engine.image_embed(images=[picture(5)] * 20))[0]) == [5] * 20
            with pytest.raises(EngineNotReady):
                await engine.astart()
        assert not engine.is_running
        with pytest.raises(EngineNotReady):
            await engine.embed(["a"])

    for _ in range(3):
        run(use())
    assert engine.stats.num_items == 66


def test_an_engine_outlives_the_event_loop_that_started_it() -> None:
    engine = fake_engine("kind=embedder")
    run(engine.astart())
    for _ in range(2):
        assert lengths_of(run(engine.embed(["aa"]))[0]) == [2]
        assert lengths_of(run(engine.image_embed(images=[picture(5)] * 20))[0]) == [5] * 20
    run(engine.astop())


@pytest.mark.usefixtures("dies_for_good")
def test_an_engine_whose_thread_died_says_so_and_can_be_started_again() -> None:
    engine = fake_engine("die_on=poison")

    async def main() -> None:
        async with engine:
            with pytest.raises(EngineNotReady):
                await engine.embed(["poison"])
            assert engine.is_dead
        async with engine:
            assert engine.is_running
            assert not engine.is_dead
            await engine.embed(["fine"])

    run(main())


def test_no_thread_is_left_after_the_stop() -> None:
    before = set(threading.enumerate())
    call(fake_engine(device_id=(0, 1)), "embed", ["x" * 2000])
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), thread.name


# Making one


def test_the_constructor_warns_and_takes_the_same_options() -> None:
    with pytest.warns(DeprecationWarning, match="from_args"):
        engine = AsyncEmbeddingEngine("debug", engine="debugengine", batch_size=7)
    assert engine.engine_args == EngineArgs(model_name_or_path="debug", engine="debugengine", batch_size=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AsyncEmbeddingEngine.from_args(engine.engine_args)


def test_an_engine_tells_what_it_is() -> None:
    engine = fake_engine(served_model_name="mine", max_batch_tokens=77)

    assert repr(engine) == "AsyncEmbeddingEngine('mine', running=False)"
    assert engine.capabilities == {"embed"}
    assert engine.info.embedding_dimension == 13
    assert engine.max_batch_tokens == 77
    assert fake_engine().max_batch_tokens > 77
