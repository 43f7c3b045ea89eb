"""Check that loaded tokenizers are those that a model's files describe.

transformers builds a tokenizer from the vocabulary in `tokenizer.json`, with the class that the files name or
that belongs to the network. If another class wrote the file, texts get other tokens; if the file is missing,
the tokenizer has special tokens only.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer
from tokenizers import Tokenizer

from infinity_emb.backends.probes import PARITY_TEXTS
from infinity_emb.backends.torch.st_introspection import find_transformers
from infinity_emb.backends.torch.vocabulary import count_embeddings
from infinity_emb.errors import StartupError
from infinity_emb.hub.detect import read_object
from infinity_emb.hub.modules import list_modules
from infinity_emb.preprocessing.fast_tokenizer import open_tokenizer

logger = logging.getLogger("infinity_emb")

_FILE = "tokenizer.json"
# Lower case without accents, so that no option of a tokenizer changes them.
_PLAIN_TEXTS = (
    "the quick brown fox jumps over the lazy dog 3 times.",
    "paris is the capital of france, and 2 + 2 = 4",
)
_NUM_VOCABULARY_WORDS = 40
_MIN_WORDS = 8
_MIN_WORD_LETTERS = 4
# Least share of the vocabulary's words that become their own tokens; without its merges, a tokenizer has
# none.
_MIN_KEPT_WORDS = 0.25
# With a smaller share of common tokens, it is another tokenizer; a space more or less at the start changes
# less.
_MIN_COMMON_TOKENS = 0.5
# A vocabulary is smaller than the embedding table by a few entries at most, unless it was cut off.
_MIN_VOCABULARY_SHARE = 0.75
_MAX_SHOWN = 12
_MAX_SHOWN_CHARS = 100


def check_tokenizers(model: BaseModel, folder: Path) -> None:
    """Raise StartupError for a tokenizer without vocabulary, or with other tokens than its file.

    Smaller differences are logged.
    """
    transformers = find_transformers(model)
    folders = [module.path for module in list_modules(folder) if module.class_name == "Transformer"]
    folders = folders or [folder]
    for transformer, path in zip(transformers, folders, strict=False):
        if transformer.tokenizer is None:
            continue
        _check_vocabulary(transformer, path)
        _check_words(transformer.tokenizer, path)
        if (path / _FILE).is_file() and hasattr(transformer.tokenizer, "backend_tokenizer"):
            _compare_with_file(transformer, path)


def _check_vocabulary(transformer: Transformer, folder: Path) -> None:
    tokenizer: Any = transformer.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python; its vocabulary may be all of Unicode
        has_words = tokenizer.vocab_size > len(tokenizer.all_special_ids)
    else:
        special = {*tokenizer.all_special_tokens, *tokenizer.added_tokens_encoder}
        names = set(backend.get_vocab(with_added_tokens=False)) - special
        has_words = any(character.isalnum() for name in names for character in name)
    if not has_words:
        raise StartupError(
            f"the tokenizer has special tokens only, so all texts would get the same tokens: {folder} has no"
            f" vocabulary; copy {_FILE} (or vocab.txt, or vocab.json with merges.txt) of the model into it"
        )
    num_embeddings = count_embeddings(transformer)
    if num_embeddings is not None and backend is not None:
        num_words = backend.get_vocab_size(with_added_tokens=False)
        if num_words > num_embeddings:
            logger.warning(
                "the tokenizer in %s has %d tokens, but the network %d: it may be another model's",
                folder,
                num_words,
                num_embeddings,
            )
    if num_embeddings is not None and len(tokenizer) < _MIN_VOCABULARY_SHARE * num_embeddings:
        logger.warning(
            "the tokenizer in %s has %d tokens, but the network %d: its vocabulary may be cut off",
            folder,
            len(tokenizer),
            num_embeddings,
        )


def _check_words(tokenizer: Any, folder: Path) -> None:
    """Raise StartupError if words that are in the vocabulary do not become their own tokens."""
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    words = [] if backend is None else _choose_words(backend)
    if backend is None or len(words) < _MIN_WORDS:
        return
    loaded = _prepare(Tokenizer.from_str(backend.to_str()))
    is_kept = [token_id in _encode(loaded, f" {word}") for word, token_id in words]
    if sum(is_kept) < _MIN_KEPT_WORDS * len(words):
        word = words[is_kept.index(False)][0]
        raise StartupError(
            f"the tokenizer in {folder}, a {type(tokenizer).__name__}, does not find its own words: {word!r}"
            f" becomes {_show(loaded, word)}; its files are incomplete, or of another class"
        )


def _choose_words(tokenizer: Tokenizer) -> list[tuple[str, int]]:
    """Return some words that the vocabulary has as one token at the start of a word, with their ids."""
    entries = tokenizer.get_vocab(with_added_tokens=False)
    mark = next((mark for mark in "▁Ġ" if any(name.startswith(mark) for name in entries)), "")
    words = sorted(
        (word, token_id)
        for name, token_id in entries.items()
        if name.startswith(mark)
        and len(word := name.removeprefix(mark).removesuffix("</w>")) >= _MIN_WORD_LETTERS
        and word.isascii()
        and word.isalpha()
        and word == word.lower()
    )
    return words[:: max(1, len(words) // _NUM_VOCABULARY_WORDS)][:_NUM_VOCABULARY_WORDS]


def _compare_with_file(transformer: Transformer, folder: Path) -> None:
    """Tokenize probe texts with the tokenizer in the file and with the one that was loaded."""
    tokenizer: Any = transformer.tokenizer
    by_file = _prepare(open_tokenizer(folder / _FILE))
    loaded = _prepare(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    name = type(tokenizer).__name__
    remedy = 'set "tokenizer_class" to "PreTrainedTokenizerFast" in tokenizer_config.json to use the file'
    plain_texts = [*_PLAIN_TEXTS, _join_words(by_file)]
    share = min(_share_tokens(_encode(by_file, text), _encode(loaded, text)) for text in plain_texts)
    if share < _MIN_COMMON_TOKENS:
        text = min(plain_texts, key=lambda each: _share_tokens(_encode(by_file, each), _encode(loaded, each)))
        raise StartupError(
            f"the loaded tokenizer, a {name}, is not the one that {folder / _FILE} describes: {text[:60]!r}"
            f" becomes {_show(loaded, text)} instead of {_show(by_file, text)}; {remedy}"
        )
    rich_texts = [text.lower() if transformer.do_lower_case else text for text in PARITY_TEXTS]
    for text in [*plain_texts, *rich_texts]:
        if _encode(by_file, text) != _encode(loaded, text):
            logger.warning(
                "the loaded tokenizer, a %s, differs from %s: %r becomes %s; %s",
                name,
                folder / _FILE,
                text[:60],
                _show_difference(loaded, by_file, text),
                remedy,
            )
            break
    _compare_special_tokens(tokenizer, by_file, loaded, folder)


def _compare_special_tokens(tokenizer: Any, by_file: Tokenizer, loaded: Tokenizer, folder: Path) -> None:
    """Warn of start and end tokens that the files request and texts do not get."""
    config = read_object(folder / "tokenizer_config.json")
    text = _PLAIN_TEXTS[0]
    ids = loaded.encode(text).ids
    for key, token_id, position in (
        ("add_bos_token", tokenizer.bos_token_id, 0),
        ("add_eos_token", tokenizer.eos_token_id, -1),
    ):
        if config.get(key) and token_id is not None and ids[position] != token_id:
            logger.warning(
                "%s says %s, but transformers does not add that token, so that vectors may differ from those"
                " that were published; add it to the template in %s",
                folder / "tokenizer_config.json",
                key,
                _FILE,
            )
            return
    is_chosen = "add_bos_token" in config or "add_eos_token" in config
    if not is_chosen and ids != by_file.encode(text).ids:
        logger.warning(
            "texts get other special tokens than %s describes: 'a' becomes %s",
            folder / _FILE,
            _show_difference(loaded, by_file, "a", add_special_tokens=True),
        )


def _prepare(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _join_words(tokenizer: Tokenizer) -> str:
    """Return a text of words from the vocabulary, which may not be of a natural language."""
    words = [name.strip("▁Ġ") for name in tokenizer.get_vocab(with_added_tokens=False)]
    words = sorted(word for word in words if word.isascii() and word.isalnum() and word == word.lower())
    return " ".join(words[:: max(1, len(words) // _NUM_VOCABULARY_WORDS)][:_NUM_VOCABULARY_WORDS])


def _share_tokens(expected: Sequence[int], ids: Sequence[int]) -> float:
    """Return the number of common tokens, relative to the longer sequence; 1 if both are empty."""
    if expected == ids:
        return 1.0
    num_common = sum((Counter(expected) & Counter(ids)).values())
    return num_common / max(len(expected), len(ids))


def _show(tokenizer: Tokenizer, text: str) -> str:
    return " ".join(tokenizer.encode(text, add_special_tokens=False).tokens[:_MAX_SHOWN])


def _show_difference(
    loaded: Tokenizer, by_file: Tokenizer, text: str, *, add_special_tokens: bool = False
) -> str:
    """Show the tokens from the first different one on, with their ids, as only these may differ."""
    ours, theirs = (each.encode(text, add_special_tokens=add_special_tokens) for each in (loaded, by_file))
    pairs = zip(ours.ids, theirs.ids, strict=False)
    start = next((place for place, (id_, other) in enumerate(pairs) if id_ != other), 0)
    shown = [
        " ".join(f"{token} ({id_})" for token, id_ in zip(each.tokens[start:], each.ids[start:], strict=True))
        for each in (ours, theirs)
    ]
    return f"{shown[0][:_MAX_SHOWN_CHARS]} instead of {shown[1][:_MAX_SHOWN_CHARS]}"
