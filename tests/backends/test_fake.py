from __future__ import annotations

import time

import numpy as np
import pytest

from infinity_emb.backends.base import Batch, LoadedModel, Rows
from infinity_emb.backends.fake import EMBEDDING_DIMENSION, MAX_TOKENS, load_model, tokenize
from infinity_emb.config import EngineArgs
from infinity_emb.errors import InputTooLong, StartupError


def load(faults: str = "", **options: object) -> LoadedModel:
    return load_model(EngineArgs(model_name_or_path=f"debug{faults}", engine="debugengine", **options))  # type: ignore[arg-type]


def compute(model: LoadedModel, *texts: str) -> Rows:
    ids = model.tokenize(list(texts), truncate=True)
    backend = model.replicas[0]
    backend.prepare_thread()
    return backend.launch(Batch(np.concatenate(ids), [len(each) for each in ids])).collect()


def test_a_row_says_how_many_characters_its_text_has() -> None:
    rows = compute(load(), "four", "", "日本", "😀")

    assert (rows.shape, rows.dtype) == ((4, EMBEDDING_DIMENSION), np.float32)
    assert rows.tolist() == [[length] * EMBEDDING_DIMENSION for length in (4, 0, 2, 1)]


def test_what_is_said_about_the_model_is_true() -> None:
    model = load()
    info = model.info

    assert info.embedding_dimension == compute(model, "a").shape[1]
    assert info.max_tokens == MAX_TOKENS
    assert info.capabilities == ("embed",)


def test_a_token_is_a_code_point() -> None:
    (ids,) = tokenize(["a😀"], truncate=False)
    assert (ids.dtype, ids.tolist()) == (np.int32, [97, 0x1F600])


def test_a_long_text_is_cut_or_refused() -> None:
    long = "x" * (MAX_TOKENS + 1)

    assert len(tokenize([long], truncate=True)[0]) == MAX_TOKENS
    assert len(tokenize([long[:-1]], truncate=False)[0]) == MAX_TOKENS
    with pytest.raises(InputTooLong, match=r"input 1 has 8193 tokens, the limit is 8192;"):
        tokenize(["a", long], truncate=False)


def test_it_can_be_told_to_fail() -> None:
    model = load("?fail_on=poison")

    compute(model, "fine")
    with pytest.raises(RuntimeError, match="'poison'"):
        compute(model, "fine", "a poisonous text")


def test_it_can_be_told_to_die() -> None:
    with pytest.raises(SystemExit, match="'poison'"):
        compute(load("?die_on=poison"), "poison")


def test_it_can_be_told_to_miscount() -> None:
    model = load("?wrong_count_on=short")

    assert len(compute(model, "a", "b")) == 2
    assert len(compute(model, "a", "short", "b")) == 2


def test_it_can_be_told_to_answer_nan_for_one_text() -> None:
    rows = compute(load("?nan_on=bad"), "good", "bad", "good")
    assert np.isnan(rows).all(axis=1).tolist() == [False, True, False]


def test_it_can_be_told_to_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    compute(load("?delay_s=0.25&fail_on=poison"), "a")
    compute(load(), "a")
    assert slept == [0.25]


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ("?fail_always=x", r"knows no fault \['fail_always'\]; it knows .*'fail_on'"),
        ("?delay_s=long", "delay_s='long'"),
        ("?delay_s=-1", "delay_s='-1'"),
        ("?delay_s=nan", "delay_s='nan'"),
        ("?delay_s=inf", "delay_s='inf'"),
    ],
)
def test_a_fault_that_it_does_not_understand_is_no_start(faults: str, message: str) -> None:
    with pytest.raises(StartupError, match=message):
        load(faults)


def test_there_is_one_replica_for_each_device_that_is_named() -> None:
    assert len(load().replicas) == 1
    model = load(device_id=(0, 1, 2))
    assert len({id(replica) for replica in model.replicas}) == 3


def test_the_batch_size_in_tokens_can_be_given() -> None:
    assert load(max_batch_tokens=99).max_batch_tokens == 99
    assert load().max_batch_tokens > 0
