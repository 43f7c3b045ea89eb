from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest

from infinity_emb.backends.base import LoadedModel, check_outputs
from infinity_emb.backends.fake import EMBEDDING_DIMENSION, LABELS, MAX_TOKENS, encode, load_model, split
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import InputTooLong, StartupError
from infinity_emb.items import (
    AudioInput,
    BatchOutputs,
    Encoded,
    Float32Array,
    ForwardSpec,
    ImageInput,
    Input,
    InputOptions,
    LateChunkingInput,
    Pair,
    number_inputs,
)
from infinity_emb.types import Capability, ModelKind


def load(faults: str = "", **options: object) -> LoadedModel:
    return load_model(EngineArgs(model_name_or_path=f"debug{faults}", engine="debugengine", **options))


def answer(
    model: LoadedModel, inputs: Sequence[Input], *, full_precision: bool = False, **how: Any
) -> BatchOutputs:
    batch = model.encode(number_inputs(inputs), InputOptions(**how))
    backend = model.replicas[0]
    backend.prepare_thread()
    return backend.launch(batch, full_precision=full_precision).result()


def compute(model: LoadedModel, *inputs: Input, full_precision: bool = False) -> Float32Array:
    rows = answer(model, inputs, full_precision=full_precision)["dense"]
    assert isinstance(rows, np.ndarray)
    return rows


def ids_of(*inputs: Input, **how: Any) -> list[list[int]]:
    return [each.token_ids.tolist() for each in encode(number_inputs(inputs), InputOptions(**how))]


def test_a_row_says_how_many_characters_its_text_has() -> None:
    rows = compute(load(), "four", "", "日本", "😀")

    assert (rows.shape, rows.dtype) == ((4, EMBEDDING_DIMENSION), np.float32)
    assert rows.tolist() == [[length] * EMBEDDING_DIMENSION for length in (4, 0, 2, 1)]


@pytest.mark.parametrize("kind", ModelKind)
def test_what_is_said_about_each_kind_of_model_is_true(kind: ModelKind) -> None:
    """A server's tests would otherwise show that something works which no model does."""
    model = load(f"?kind={kind}")
    info = model.info
    is_scoring = kind in (ModelKind.reranker, ModelKind.classifier)

    assert info.kind is (ModelKind.embedder if kind is ModelKind.auto else kind)
    assert info.max_tokens == MAX_TOKENS
    assert set(info.capabilities) <= set(get_args(Capability))
    for name in ["dense"] if is_scoring else info.outputs:
        batch = model.encode(number_inputs(["four", ""]), InputOptions(outputs=(name,)))
        answers = model.replicas[0].launch(batch).result()
        check_outputs(answers, batch)
        assert answers.keys() == {name}
    if is_scoring:
        assert (info.outputs, info.embedding_dimension, info.activation) == ((), 0, "halving")
        assert compute(model, "four").shape[1] == max(1, len(info.labels))
        assert model.activate(compute(model, "four"))[0, 0] == compute(model, "four")[0, 0] / 2
    else:
        assert info.embedding_dimension == EMBEDDING_DIMENSION


def test_the_kind_can_be_given_as_an_option_too() -> None:
    assert load(model_kind="reranker").info.kind is ModelKind.reranker
    assert load("?kind=sparse", model_kind="reranker").info.kind is ModelKind.sparse
    assert load().info.capabilities == ("embed",)


def test_a_reranker_scores_by_the_length_of_the_document() -> None:
    rows = compute(load("?kind=reranker"), Pair("a long query", "doc"), Pair("q", ""), Pair("", "four"))
    assert rows.tolist() == [[3], [0], [4]]


def test_a_classifier_has_a_score_for_each_label() -> None:
    model = load("?kind=classifier")
    assert model.info.labels == LABELS
    assert compute(model, "four", "a").tolist() == [[4, 0], [1, 0]]


def test_a_sparse_row_counts_code_points() -> None:
    outputs: Any = answer(load("?kind=sparse"), ["banana"], outputs=("sparse",))
    (row,) = outputs["sparse"]
    counts = Counter(map(ord, "banana"))
    assert row.indices.tolist() == sorted(counts)
    assert row.values.tolist() == [counts[index] for index in sorted(counts)]


def test_a_token_row_says_which_character_it_is() -> None:
    rows: Any = answer(load("?kind=multivector"), ["ab", ""], outputs=("multivector",))["multivector"]
    assert [each.shape for each in rows] == [(2, EMBEDDING_DIMENSION), (0, EMBEDDING_DIMENSION)]
    assert rows[0][:, 0].tolist() == [97, 98]


def test_passages_are_read_as_one_text_and_each_has_a_row_that_says_its_length() -> None:
    passages = LateChunkingInput(("one ", "seventeen", "x"))
    (encoded,) = encode(number_inputs([passages]), InputOptions(prompt="p: ", outputs=("chunks",)))
    outputs: Any = answer(load("?kind=embedder"), [passages], prompt="p: ", outputs=("chunks",))
    (rows,) = outputs["chunks"]

    assert encoded.token_ids.tolist() == list(map(ord, "p: one seventeenx"))
    assert encoded.spans == ((3, 7), (7, 16), (16, 17))
    assert rows[:, 0].tolist() == [4, 9, 1]
    with pytest.raises(InputTooLong, match="with all passages, the limit is 8192"):
        encode(number_inputs([LateChunkingInput(("x" * MAX_TOKENS, "y"))]), InputOptions())


def test_an_image_is_as_long_as_it_is_high_and_a_clip_as_it_has_seconds() -> None:
    picture = ImageInput(np.zeros((5, 9, 3), dtype=np.uint8))
    clip = AudioInput(np.zeros(32_000, dtype=np.float32))
    assert compute(load("?kind=embedder"), picture)[0, 0] == 5
    assert compute(load("?kind=embedder"), clip)[0, 0] == 3


def test_inputs_of_different_outputs_can_share_a_batch() -> None:
    model = load("?kind=embedder")
    batch = [
        Encoded(np.array([97, 98], dtype=np.int32), spec=ForwardSpec(outputs=("dense",))),
        Encoded(np.array([99], dtype=np.int32), spec=ForwardSpec(outputs=("sparse", "multivector"))),
    ]
    answers = model.replicas[0].launch(batch).result()

    check_outputs(answers, batch)
    assert answers.keys() == {"dense", "sparse", "multivector"}
    assert all(len(column) == 2 for column in answers.values())


def test_a_token_is_a_code_point_and_a_prompt_is_part_of_the_text() -> None:
    (encoded,) = encode(number_inputs(["a😀"]), InputOptions(prompt="p", task="query", outputs=("sparse",)))
    assert (encoded.token_ids.dtype, encoded.token_ids.tolist()) == (np.int32, [112, 97, 0x1F600])
    assert encoded.spec == ForwardSpec(task="query", outputs=("sparse",))
    assert ids_of(Pair("q", "d"), prompt="p") == [[112, 113, 0, 100]]


def test_a_long_text_is_cut_on_the_side_that_is_asked_for_or_refused() -> None:
    long = "".join(chr(1 + number % 999) for number in range(MAX_TOKENS + 1))
    whole = list(map(ord, long))

    assert ids_of(long) == ids_of(long, truncation="right") == [whole[:-1]]
    assert ids_of(long, truncation="left") == [whole[1:]]
    assert ids_of(long[:-1], truncation="off") == [whole[:-1]]
    with pytest.raises(InputTooLong, match=r"input 1 has 8193 tokens, the limit is 8192;"):
        encode(number_inputs(["a", long]), InputOptions(truncation="off"))


@pytest.mark.parametrize("text", ["", "a", "abcdef", "x" * 100])
@pytest.mark.parametrize("prompt", ["", "p: "])
def test_pieces_cover_the_text_and_fit_the_limit(text: str, prompt: str) -> None:
    pieces = split(text, prompt=prompt, max_tokens=7)
    assert "".join(text[piece.start : piece.end] for piece in pieces) == text
    assert [piece.num_tokens for piece in pieces] == [piece.end - piece.start for piece in pieces]
    assert all(len(prompt) + piece.num_tokens <= 7 for piece in pieces)
    assert [piece.num_tokens for piece in split("x" * 9, prompt=prompt, max_tokens=7, is_alone=False)] == [
        7,
        2,
    ]


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


def test_it_can_be_told_to_answer_nan_unless_it_computes_in_full_precision() -> None:
    model = load("?nan_in_half_on=bad&nan_on=worse")
    texts = ("good", "bad", "worse")
    assert np.isnan(compute(model, *texts)).all(axis=1).tolist() == [False, True, True]
    rows = compute(model, *texts, full_precision=True)
    assert np.isnan(rows).all(axis=1).tolist() == [False, False, True]


def test_it_can_be_told_to_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    compute(load("?delay_s=0.25&fail_on=poison"), "a")
    compute(load(), "a")
    assert slept == [0.25]


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ("?fail_always=x", r"has no fault \['fail_always'\]; it has .*'fail_on'"),
        ("?delay_s=long", "delay_s='long'"),
        ("?delay_s=-1", "delay_s='-1'"),
        ("?delay_s=nan", "delay_s='nan'"),
        ("?delay_s=inf", "delay_s='inf'"),
        ("?kind=poet", r"has no kind 'poet'; use one of \['auto', 'embedder'"),
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
