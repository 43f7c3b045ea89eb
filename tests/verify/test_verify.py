"""`verify` finds no difference where there is none, and every one that there is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.base.modules import Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from infinity_emb import cli
from infinity_emb.backends.accuracy import find_bound
from infinity_emb.backends.registry import load_reference
from infinity_emb.cli import commands
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.embedding import EmbeddingService
from infinity_emb.errors import BackendFailed, StartupError
from infinity_emb.items import Float32Array
from infinity_emb.types import EmbeddingDtype
from infinity_emb.verify import cases as verification_cases
from infinity_emb.verify import verify as verification
from infinity_emb.verify.verify import Check, format_row, format_verdict, verify
from tests.support.small_models import (
    HIDDEN_SIZE,
    save_network,
    save_pipeline,
    save_small_classifier,
    save_small_late_interaction,
    save_small_m3,
    save_small_model,
    save_small_splade,
    save_small_yes_no_reranker,
)
from tests.support.small_models.media import save_clap, save_clip

pytestmark = [
    pytest.mark.model,
    # transformers' default configurations name start and end tokens outside of the small vocabularies.
    pytest.mark.filterwarnings("ignore"),
]

WAYS = ("one by one", "in one list", "all at once")
EMBEDS = ["embed", "embed as query", "embed as document"]
NUM_TEXTS = 7
LIBRARY = f"sentence-transformers {'.'.join(metadata.version('sentence-transformers').split('.')[:2])}"
EQUAL = f"equal to {LIBRARY} up to rounding: "
VECTORS_EQUAL = f"{EQUAL}<= 2e-05, cosine >= 0.99999"


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the long and the awkward ones, so that a test takes seconds."""
    monkeypatch.setattr(verification_cases, "NUM_TEXTS", NUM_TEXTS)


def args_of(path: Path, **options: Any) -> EngineArgs:
    options = {"device": "cpu", "model_warmup": False} | options
    return EngineArgs(model_name_or_path=str(path), **options)


def verified(path: Path, **options: Any) -> tuple[list[Check], list[str]]:
    """The checks, and the lines that were told."""
    told: list[str] = []
    checks = verify(args_of(path, **options), write_line=told.append)
    lines = "\n".join(told).split("\n")
    assert max(map(len, lines[1:])) <= 80, "the first line is the model's name"
    return checks, lines


def save_bert(folder: Path) -> Path:
    return save_small_model(folder, "bert", prompts={"query": "word1 ", "document": "word2 word3 "})


def save_router(folder: Path) -> Path:
    """Queries and documents go different ways, and no other text goes any."""
    parts: dict[str, Any] = {
        name: [
            Transformer(str(save_network(folder / name, "bert"))),
            Pooling(HIDDEN_SIZE, pooling_mode=mode),
        ]
        for name, mode in (("query", "mean"), ("document", "cls"))
    }
    return save_pipeline(folder / "model", [Router(parts, allow_empty_key=False), Normalize()])


@pytest.mark.parametrize(
    ("save", "names"),
    [
        (save_bert, [*EMBEDS, "rerank"]),
        (lambda folder: save_small_model(folder, "mpnet"), [*EMBEDS, "rerank"]),
        (lambda folder: save_small_splade(folder, "bert"), [*EMBEDS, "rerank"]),
        (lambda folder: save_small_late_interaction(folder, "bert"), [*EMBEDS, "rerank"]),
        (save_clip, [*EMBEDS, "rerank", "embed image"]),
        (save_clap, [*EMBEDS, "rerank", "embed audio"]),
    ],
    ids=["packed", "padded", "sparse", "late interaction", "images", "sounds"],
)
def test_vectors_are_found_equal(save: Callable[[Path], Path], names: list[str], tmp_path: Path) -> None:
    checks, lines = verified(save(tmp_path))
    assert [(check.name, check.mode) for check in checks] == [(name, way) for name in names for way in WAYS]
    assert all(check.is_passed for check in checks)
    assert lines[-1] == VECTORS_EQUAL
    assert len(lines) == 3 + len(checks) + 1


@pytest.mark.parametrize(
    ("save", "names"),
    [
        (lambda folder: save_small_classifier(folder, "bert", num_labels=3), ["classify", "classify pairs"]),
        (lambda folder: save_small_classifier(folder, "bert", num_labels=1), ["rerank"]),
        (lambda folder: save_small_yes_no_reranker(folder / "a-reranker", "qwen3"), ["rerank"]),
    ],
    ids=["classifier", "reranker", "language model"],
)
def test_scores_are_found_equal(save: Callable[[Path], Path], names: list[str], tmp_path: Path) -> None:
    checks, lines = verified(save(tmp_path))
    assert [(check.name, check.mode) for check in checks] == [(name, way) for name in names for way in WAYS]
    assert all(check.min_cosine is None for check in checks)
    assert lines[-1] == f"{EQUAL}<= 1e-05"


def test_the_head_says_what_is_compared(tmp_path: Path) -> None:
    path = save_small_model(tmp_path, "mpnet")
    _, lines = verified(path)
    assert lines[:2] == [
        str(path),
        "embedder by torch on cpu, float32, attention padded; reference in float32",
    ]
    assert lines[2].split() == ["check", "inputs", "difference", "limit", "cosine"]


def test_the_dense_output_of_three_is_compared_and_the_others_are_named(tmp_path: Path) -> None:
    checks, lines = verified(save_small_m3(tmp_path))
    assert [check.name for check in checks[::3]] == [*EMBEDS, "rerank"]
    assert " ".join(lines[-3:]) == (
        f"sparse and multivector are not compared: {LIBRARY} does not compute them {VECTORS_EQUAL}"
    )


def test_what_sentence_transformers_refuses_is_named_and_the_rest_compared(tmp_path: Path) -> None:
    checks, lines = verified(save_router(tmp_path))
    assert [check.name for check in checks[::3]] == ["embed as query", "embed as document", "rerank"]
    assert lines[3].startswith("embed is not compared: sentence-transformers refuses it: Could not determine")
    assert lines[-1] == VECTORS_EQUAL


def test_a_ranking_by_another_similarity_is_named(tmp_path: Path) -> None:
    backbone = save_network(tmp_path / "backbone", "bert")
    modules = [Transformer(str(backbone)), Pooling(HIDDEN_SIZE, pooling_mode="mean")]
    checks, lines = verified(save_pipeline(tmp_path / "model", modules, similarity_fn_name="dot"))
    assert [check.name for check in checks[::3]] == EMBEDS
    assert lines[-2] == "rerank is not compared: it uses cosine, but the model's files name dot"


def test_the_number_format_of_the_answers_does_not_hide_anything(tmp_path: Path) -> None:
    checks, _ = verified(save_bert(tmp_path), embedding_dtype=EmbeddingDtype.int8)
    assert all(check.is_passed for check in checks)


def test_no_text_s_answer_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One number of one text, wherever the text stands."""
    path = save_bert(tmp_path)
    for position in (0, 8, 11):  # the first, the one that is too long, the last
        with monkeypatch.context() as patch:
            spoil(patch, position, lambda rows: rows + np.eye(1, len(rows), 3, dtype=np.float32)[0] * 1e-4)
            checks, lines = verified(path)
        assert checks[0].num_inputs == 12
        assert [check.name for check in checks if not check.is_passed] == ["embed"] * 3
        assert lines[-1] == f"differs from {LIBRARY} in 3 of 12 checks: embed"
        assert sum(line.endswith("  DIFFERS") for line in lines) == 3


@pytest.mark.parametrize(
    "change",
    [lambda rows: rows * np.float32("nan"), lambda rows: rows[:-1]],
    ids=["not a number", "another width"],
)
def test_answers_that_cannot_be_compared_differ(
    change: Callable[[Float32Array], Float32Array], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 2, change)
    checks, _ = verified(save_bert(tmp_path))
    assert checks[0].max_difference == np.inf
    assert checks[0].min_cosine == -1
    assert not checks[0].is_passed


def spoil(patch: pytest.MonkeyPatch, position: int, change: Callable[[Float32Array], Float32Array]) -> None:
    """Change the reference's answer for the plain text at that position."""

    def load(args: EngineArgs) -> Any:
        reference: Any = load_reference(args)
        embed, asked = reference.embed, []

        def spoilt(text: str, task: str | None = None) -> Float32Array:
            rows: Float32Array = embed(text, task)
            asked.append(text)
            return change(rows) if len(asked) == position + 1 else rows

        reference.embed = spoilt
        return reference

    patch.setattr(verification, "load_reference", load)


def test_a_model_that_does_not_compute_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise BackendFailed("gives NaN", position=3)

    monkeypatch.setattr(EmbeddingService, "encode", fail)
    with pytest.raises(StartupError, match=r"model '.+' cannot be compared: input 3 gives NaN$"):
        verified(save_bert(tmp_path))


def test_an_engine_without_a_model_is_refused() -> None:
    with pytest.raises(StartupError, match="--engine debugengine has no model to compare"):
        verify(EngineArgs(model_name_or_path="debug", engine="debugengine"))


# What is written


def check(name: str = "embed", difference: float = 1e-7, *, dtype: str = "float32", **options: Any) -> Check:
    bound = find_bound("reference", dtype)
    values: dict[str, Any] = {
        "name": name,
        "mode": "in one list",
        "num_inputs": 48,
        "max_difference": difference,
        "limit": bound.max_difference,
        "min_cosine": 1.0,
        "cosine_limit": bound.min_cosine,
    }
    return Check(**(values | options))


@pytest.mark.parametrize(
    ("dtype", "limits"),
    [
        ("float32", "<= 2e-05, cosine >= 0.99999"),
        ("float16", "<= 2e-02, cosine >= 0.999"),
        ("bfloat16", "<= 1e-01, cosine >= 0.99"),
    ],
)
def test_the_limits_are_those_of_the_number_format(dtype: str, limits: str) -> None:
    verdict = format_verdict([check(dtype=dtype), check("rerank", min_cosine=None)], "some-library 6.2")
    assert verdict == f"equal to some-library 6.2 up to rounding: {limits}"
    assert limits[3:8] in format_row(check(dtype=dtype))


@pytest.mark.parametrize(
    ("difference", "cosine", "is_passed"),
    [
        (2e-5, 0.99999, True),
        (2.1e-5, 1.0, False),
        (1e-6, 0.9999, False),
        (1e-6, None, True),
        (np.inf, -1.0, False),
        (np.nan, 1.0, False),
    ],
)
def test_both_limits_must_hold(difference: float, cosine: float | None, is_passed: bool) -> None:
    found = check(difference=difference, min_cosine=cosine)
    assert found.is_passed is is_passed
    assert format_row(found).endswith("DIFFERS") is not is_passed


def test_a_row_that_differs_fits_80_columns() -> None:
    longest = check("embed as document", np.inf, mode="all at once", min_cosine=-1.0)
    assert len(format_row(longest)) <= 80


def test_a_verdict_names_each_question_once() -> None:
    wrong: Sequence[Check] = [check(name, 1.0) for name in ("embed", "embed", "rerank")]
    assert (
        format_verdict([*wrong, check()], "it 1.0") == "differs from it 1.0 in 3 of 4 checks: embed, rerank"
    )


def test_no_checks_are_no_success() -> None:
    assert format_verdict([], "it 1.0") == "nothing could be compared with it 1.0"


# The command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs `infinity_emb verify` in this process; its exit code, and what it wrote."""
    monkeypatch.setattr(commands, "configure_logging", lambda level: None)

    def run(*arguments: str) -> tuple[int | str | None, str, str]:
        try:
            code: int | str | None = cli.main(["verify", "--device", "cpu", "--no-model-warmup", *arguments])
        except SystemExit as exc:
            code = exc.code
        return (code, *capsys.readouterr())

    return run


def test_several_models_have_a_table_each(command: Callable[..., Any], tmp_path: Path) -> None:
    embedder, reranker = save_bert(tmp_path), save_small_classifier(tmp_path / "reranker", "bert")
    code, out, error = command("--model-id", str(embedder), "--model-id", str(reranker))
    assert code == 0
    first, second = out.split("\n\n")
    assert first.startswith(f"{embedder}\nembedder by torch on cpu")
    assert first.endswith(f"\n{VECTORS_EQUAL}")
    assert second.startswith(f"{reranker}\nreranker by torch on cpu")
    assert second.endswith(f"\n{EQUAL}<= 1e-05\n")
    assert "error" not in error


def test_weights_that_differ_by_a_thousandth_are_found(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One matrix of one layer; and a model that is equal after it does not make it good."""
    path = save_bert(tmp_path)
    num_loaded = 0

    def load(args: EngineArgs) -> Any:
        nonlocal num_loaded
        num_loaded += 1
        reference: Any = load_reference(args)
        if num_loaded == 1:
            with torch.no_grad():
                reference._model[0].model.encoder.layer[1].output.dense.weight.mul_(1.001)
        return reference

    monkeypatch.setattr(verification, "load_reference", load)
    names = ("--served-model-name", "a", "--served-model-name", "b")
    code, out, _ = command("--model-id", str(path), "--model-id", str(path), *names)
    assert code == 1
    first, second = out.split("\n\n")
    assert first.count("  DIFFERS") >= 9
    assert "of 12 checks: embed, embed as query, embed as document" in " ".join(first.split())
    assert second.endswith(f"\n{VECTORS_EQUAL}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model-id", "./no-such-folder"], "error: "),
        (["--dtype", "fp8"], "error: --dtype fp8 has no fast path on CPUs"),
        (["--engine", "debugengine"], "error: --engine debugengine has no model to compare"),
        (["--engine", "neuron"], "error: --engine neuron is not available in this version"),
        (["--engine", "onnx", "--dtype", "fp8"], "error: --dtype fp8 is not for --engine optimum"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_exit_code_1(
    command: Callable[..., Any], arguments: list[str], message: str
) -> None:
    code, out, error = command(*arguments)
    assert code == 1
    assert out == ""
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_missing_sentence_transformers_is_one_line_that_names_the_extra(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "infinity_emb.backends.torch.reference", None)
    code, _, error = command()
    assert code == 1
    assert error.startswith("error: a comparison with sentence-transformers needs it (")
    assert error.endswith("install it with: pip install 'infinity-emb[torch]'\n")


def test_only_questions_that_are_refused_are_no_success(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "build_cases", lambda *_: iter(()))
    code, out, _ = command("--model-id", str(save_bert(tmp_path)))
    assert code == 1
    assert out.endswith(f"nothing could be compared with {LIBRARY}\n")
