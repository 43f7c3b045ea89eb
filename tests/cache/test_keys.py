"""Compute keys that are equal exactly when the outputs are."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_emb.cache.keys import KEY_SIZE_BYTES, MAX_INLINE_CHARS, compute_keys, is_cacheable, is_quick
from infinity_emb.items import AudioInput, Input, InputOptions, LateChunkingInput, Pair, TokenIdsInput

# Lone surrogates too: the tokenizer refuses them, after this.
TEXTS = st.text(st.characters())
INPUTS = st.one_of(
    TEXTS,
    st.builds(Pair, TEXTS, TEXTS),
    st.builds(TokenIdsInput, st.lists(st.integers(0, 300)).map(tuple)),
)
OTHER_OPTIONS = {
    "prompt": "query: ",
    "task": "query",
    "truncation": "left",
    "max_tokens": 7,
    "outputs": ("dense", "sparse"),
    "query_vectors": np.zeros((1, 2), dtype=np.float32),
}


@given(st.lists(INPUTS, min_size=1, max_size=30))
def test_keys_are_equal_when_inputs_are(inputs: list[Input]) -> None:
    keys = compute_keys("version", inputs, InputOptions())
    assert [len(key) for key in keys] == [KEY_SIZE_BYTES] * len(inputs)
    for one, one_key in zip(inputs, keys, strict=True):
        for other, other_key in zip(inputs, keys, strict=True):
            assert (one_key == other_key) is (type(one) is type(other) and one == other)


def test_pairs_of_the_same_letters_have_different_keys() -> None:
    inputs: list[Input] = [
        Pair("ab", "c"),
        Pair("a", "bc"),
        "abc",
        Pair("", "abc"),
        "pair 0 abc",
        TokenIdsInput((97,)),
    ]
    assert len(set(compute_keys("version", inputs, InputOptions()))) == len(inputs)


def test_every_option_and_the_version_change_the_key() -> None:
    """Whoever adds an option to `InputOptions` gets new keys for it without a change here."""
    assert OTHER_OPTIONS.keys() == {each.name for each in fields(InputOptions)}
    ways = [InputOptions()] + [
        replace(InputOptions(), **{name: value})
        for name, value in OTHER_OPTIONS.items()
        if name != "query_vectors"
    ]
    keys = [compute_keys(version, ["text"], how)[0] for how in ways for version in ("one", "other")]
    assert len(set(keys)) == len(keys)


def test_only_texts_pairs_and_token_ids_are_cacheable() -> None:
    clip = AudioInput(np.zeros(3, dtype=np.float32))
    assert is_cacheable(["a", TokenIdsInput((1,)), Pair("a", "b")], InputOptions())
    assert not is_cacheable([LateChunkingInput(("a",))], InputOptions())
    assert not is_cacheable([clip], InputOptions())
    rows = np.zeros((1, 2), dtype=np.float32)
    assert not is_cacheable(["a"], InputOptions(outputs=("maxsim",), query_vectors=rows))


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["short"] * 64, True),
        (["short"] * 65, False),
        (["x" * (MAX_INLINE_CHARS + 1)], False),
        ([Pair("x" * MAX_INLINE_CHARS, "y")], False),
        ([TokenIdsInput(tuple(range(MAX_INLINE_CHARS + 1)))], False),
    ],
)
def test_only_small_requests_are_hashed_on_the_event_loop(inputs: list[Input], expected: bool) -> None:
    assert is_quick(inputs) is expected
