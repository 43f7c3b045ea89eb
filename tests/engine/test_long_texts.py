"""Embed texts over the limit in chunks, and passages of one text with late chunking."""

from __future__ import annotations

from typing import Any

import pytest

from infinity_emb.backends import fake
from infinity_emb.engine.results import EmbedOptions, Span
from infinity_emb.errors import (
    BackendFailed,
    BadInput,
    InputTooLong,
    ModelNotDeployedError,
)
from infinity_emb.items import LateChunkingInput, Piece
from infinity_emb.preprocessing.chunking import MAX_PIECES
from infinity_emb.types import EmbeddingDtype
from tests.support.event_loop import run
from tests.support.fake_engines import call, fake_engine, read_vector_lengths
from tests.support.recording_models import RecordingModels

LONG = "x" * (fake.MAX_TOKENS + 1)


def test_the_vector_of_a_chunked_text_is_the_token_weighted_mean_of_its_chunks() -> None:
    rest = 1000
    texts = ["four", "x" * (2 * fake.MAX_TOKENS + rest), ""]
    answer = call(fake_engine("kind=embedder"), "encode", texts, EmbedOptions(chunking=True))

    assert answer.num_tokens == sum(map(len, texts))
    weighted = 2 * fake.MAX_TOKENS**2 + rest**2
    assert [vector[0] for vector in answer.dense] == pytest.approx([4, weighted / len(texts[1]), 0], rel=1e-6)


def test_the_prompt_is_prepended_to_every_chunk() -> None:
    prompt, room = "query: ", fake.MAX_TOKENS - 7
    answer = call(
        fake_engine("kind=embedder"), "encode", ["x" * (room + 3)], EmbedOptions(chunking=True, prompt=prompt)
    )

    assert answer.num_tokens == room + 3 + 2 * len(prompt)
    expected = (fake.MAX_TOKENS * room + (3 + 7) * 3) / (room + 3)
    assert answer.dense[0][0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("changes", [{"split": None}, {"info": {"max_tokens": None}}])
def test_a_model_that_cannot_or_need_not_split_a_text_embeds_it_whole(
    changes: dict[str, Any], models: RecordingModels
) -> None:
    texts = ["four", "x" * 9000]
    answer = call(models.engine("kind=embedder", **changes), "encode", texts, EmbedOptions(chunking=True))
    assert read_vector_lengths(answer.dense) == [4, fake.MAX_TOKENS]


def test_chunking_requires_dense_vectors() -> None:
    with pytest.raises(BadInput, match="chunking averages dense vectors"):
        call(fake_engine("kind=sparse"), "encode", ["a"], EmbedOptions(chunking=True))


def test_an_error_in_a_chunk_names_the_position_of_its_text() -> None:
    """It was named by the number of the piece, which the caller knows nothing of."""
    texts = ["x" * 40_000, "a", "y" * 9000 + "poison"]
    with pytest.raises(BackendFailed, match=r"^input 2 gives NaN"):
        call(fake_engine("kind=embedder&nan_on=poison"), "encode", texts, EmbedOptions(chunking=True))


def test_chunks_take_room_in_the_queue() -> None:
    async def main() -> None:
        async with fake_engine("kind=embedder", max_queue_items=3) as engine:
            options = EmbedOptions(chunking=True)
            await engine.encode(["x" * 3 * fake.MAX_TOKENS], options)
            with pytest.raises(BadInput, match="4 inputs, the queue holds at most 3"):
                await engine.encode(["x" * 3 * fake.MAX_TOKENS, "a"], options)
            with pytest.raises(BadInput, match="4 inputs, the queue holds at most 3"):
                await engine.encode_passages(["x" * 8], chunk_size=2)
            assert engine.status().num_requests == 0

    run(main())


def test_the_number_of_chunks_is_limited() -> None:
    prompt = "p" * (fake.MAX_TOKENS - 1)
    with pytest.raises(BadInput, match=f"the limit is {MAX_PIECES}"):
        call(fake_engine("kind=embedder"), "encode", [LONG], EmbedOptions(chunking=True, prompt=prompt))
    with pytest.raises(BadInput, match=f"the limit is {MAX_PIECES}"):
        call(fake_engine("kind=embedder"), "encode_passages", ["x" * (MAX_PIECES + 1)], chunk_size=1)


def test_passages_are_read_as_one_text_and_have_a_vector_each(models: RecordingModels) -> None:
    texts = ["One. ", "Two and", "three\n", "four"]
    answer = call(models.engine("kind=embedder"), "encode_passages", texts, EmbedOptions(input_type="query"))

    whole = "One. Two and three\nfour"
    [([passages], options)] = models.encoded
    assert isinstance(passages, LateChunkingInput)
    assert "".join(passages.texts) == whole
    assert (options.prompt, options.task, options.outputs) == ("query: ", "query", ("chunks",))
    assert read_vector_lengths(answer.dense) == [5, 8, 6, 4]
    assert [whole[start:end] for start, end in answer.spans] == ["One. ", "Two and ", "three\n", "four"]
    assert answer.num_tokens == len("query: ") + len(whole)


def test_passages_can_be_split_by_size_instead() -> None:
    answer = call(fake_engine("kind=embedder"), "encode_passages", ["x" * 7, "y" * 9], chunk_size=5)

    assert answer.spans == [Span(0, 5), Span(5, 10), Span(10, 15), Span(15, 17)]
    assert read_vector_lengths(answer.dense) == [5, 5, 5, 2]


def test_vectors_of_passages_have_the_requested_dtype() -> None:
    options = EmbedOptions(dimensions=4, embedding_dtype=EmbeddingDtype.ubinary)
    answer = call(fake_engine("kind=embedder"), "encode_passages", ["a", "b"], options)
    assert [vector.tolist() for vector in answer.dense] == [[240], [240]]


@pytest.mark.parametrize("kind", ["auto", "sparse", "multivector"])
def test_late_chunking_requires_mean_pooling(kind: str) -> None:
    with pytest.raises(ModelNotDeployedError, match="late chunking averages token vectors"):
        call(fake_engine(f"kind={kind}"), "encode_passages", ["a", "b"])


def test_passages_over_the_limit_are_refused_together() -> None:
    with pytest.raises(InputTooLong, match="8197 tokens with all passages, the limit is 8192"):
        call(fake_engine("kind=embedder"), "encode_passages", ["a", LONG, "b"])


def test_a_text_over_the_limit_is_refused_before_it_is_split(models: RecordingModels) -> None:
    sizes: list[int] = []

    def split(text: str, *, prompt: str, max_tokens: int, is_alone: bool = True) -> list[Piece]:
        sizes.append(max_tokens)
        return fake.split(text, prompt=prompt, max_tokens=max_tokens, is_alone=is_alone)

    with pytest.raises(InputTooLong, match=r"^input 0 has 8193 tokens, the limit is 8192"):
        call(models.engine("kind=embedder", split=split), "encode_passages", [LONG], chunk_size=1)
    assert sizes == [fake.MAX_TOKENS]


@pytest.mark.parametrize("texts", [[], "one text", ["a", 5]])
def test_passages_must_be_a_list_of_texts(texts: Any) -> None:
    with pytest.raises(BadInput, match="sentences"):
        call(fake_engine("kind=embedder"), "encode_passages", texts)
