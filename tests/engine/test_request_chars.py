"""Characters to tokenize per request: prompts count with each input, queries of rerankers with each document.

One request of 115 kB, a long prompt and 2,048 inputs, took minutes of tokenizing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from infinity_emb.backends import fake
from infinity_emb.engine.results import ClassifyOptions, EmbedOptions, RerankOptions
from infinity_emb.errors import BadInput
from infinity_emb.items import Encoded, InputOptions, Pair, RequestInput, count_request_chars, iterate_chunks
from infinity_emb.scheduling.fair_threads import MAX_SHORT_CHARS
from tests.support.event_loop import run
from tests.support.fake_engines import fake_engine, fake_parts, started


class CountingEncoder:
    """Encode as the fake model does, and record how many characters each call reads."""

    def __init__(self) -> None:
        self.num_chars: list[int] = []

    def __call__(self, inputs: Sequence[RequestInput], options: InputOptions) -> list[Encoded]:
        self.num_chars.append(count_request_chars([item.value for item in inputs], options.prompt))
        return fake.encode(inputs, options)


@pytest.mark.parametrize("side", ["model", "left", "right"])
def test_a_prompt_counts_with_each_input_and_nothing_is_tokenized(side: Any) -> None:
    encode = CountingEncoder()

    async def main() -> None:
        async with started(fake_parts("kind=embedder", encode=encode, max_request_chars=1000)) as parts:
            options = EmbedOptions(prompt="p" * 99, truncation=side)
            await parts.embedder.encode(["a", *"bcdefghij"], options)
            assert sum(encode.num_chars) == 1000
            encode.num_chars.clear()
            with pytest.raises(
                BadInput, match=r"has 1001 characters .* the limit is 1000; .*--max-request-chars"
            ):
                await parts.embedder.encode(["aa", *"bcdefghij"], options)

    run(main())
    assert encode.num_chars == []


def test_a_rerankers_query_counts_with_each_document() -> None:
    async def main() -> None:
        async with fake_engine("kind=reranker", max_request_chars=1000) as engine:
            await engine.rerank(query="q" * 99, docs=list("abcdefghij"))
            with pytest.raises(BadInput, match="has 1010 characters"):
                await engine.scorer.rerank("q" * 99, list("abcdefghij"), RerankOptions(prompt="p"))

    run(main())


def test_an_embedders_query_is_tokenized_once() -> None:
    async def main() -> None:
        async with fake_engine("kind=embedder", max_request_chars=1000) as engine:
            await engine.rerank(query="q" * 990, docs=list("abcdefghij"))
            with pytest.raises(BadInput, match="has 1001 characters"):
                await engine.rerank(query="q" * 991, docs=list("abcdefghij"))

    run(main())


def test_both_texts_of_a_pair_count() -> None:
    async def main() -> None:
        async with fake_engine("kind=classifier", max_request_chars=10) as engine:
            with pytest.raises(BadInput, match="has 11 characters"):
                await engine.scorer.classify([("abcd", "efgh"), "ijk"], ClassifyOptions())

    run(main())


def test_a_prompt_counts_with_each_piece_of_a_text_that_is_split() -> None:
    prompt = "p" * (fake.MAX_TOKENS - 1)  # leaves room for one character a piece

    async def main() -> None:
        async with fake_engine("kind=embedder", max_request_chars=10 * fake.MAX_TOKENS) as engine:
            options = EmbedOptions(prompt=prompt, chunking=True)
            await engine.encode(["x" * 10], options)
            with pytest.raises(BadInput, match=f"has {11 * fake.MAX_TOKENS} characters"):
                await engine.encode(["x" * 11], options)

    run(main())


def test_passages_of_late_chunking_have_one_prompt() -> None:
    async def main() -> None:
        async with fake_engine("kind=embedder", max_request_chars=30) as engine:
            options = EmbedOptions(prompt="p" * 20)
            await engine.encode_passages(list("abcdefghij"), options)
            with pytest.raises(BadInput, match="has 31 characters"):
                await engine.encode_passages(list("abcdefghijk"), options)

    run(main())


def test_long_texts_are_encoded_a_few_at_a_time() -> None:
    """So that the texts of another client get their turn in between."""
    encode = CountingEncoder()
    texts = [f"{number}" + "x" * (MAX_SHORT_CHARS // 3) for number in range(7)] + ["y" * 3 * MAX_SHORT_CHARS]

    async def main() -> None:
        async with started(fake_parts("kind=embedder", encode=encode)) as parts:
            await parts.embedder.encode(texts)

    run(main())
    assert sum(encode.num_chars) == sum(map(len, texts))
    *others, longest = sorted(encode.num_chars)
    assert longest == len(texts[-1])
    assert max(others) <= MAX_SHORT_CHARS


@pytest.mark.parametrize(
    ("num_chars", "expected"),
    [
        ([1], [1]),
        ([1, 1, 1, 1], [3, 1]),
        ([50, 50, 1], [2, 1]),
        ([200, 1, 1], [1, 2]),
        ([1, 200, 1], [1, 1, 1]),
    ],
)
def test_chunks_have_so_many_inputs_and_characters(num_chars: list[int], expected: list[int]) -> None:
    slices = list(iterate_chunks(num_chars, max_inputs=3, max_chars=100))
    assert [part.stop - part.start for part in slices] == expected
    assert [number for part in slices for number in num_chars[part]] == num_chars


def test_characters_of_every_kind_of_text_are_counted() -> None:
    assert count_request_chars(["abc", Pair("ab", "c")], "p" * 10) == 26
