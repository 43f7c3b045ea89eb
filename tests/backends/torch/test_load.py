"""What is chosen when a torch model is loaded, and what is refused with which words."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from infinity_emb.backends.torch import half_precision
from infinity_emb.backends.torch.device import MAX_CPU_REPLICAS, Choice, choose_devices, choose_dtype
from infinity_emb.errors import StartupError
from infinity_emb.types import Dtype
from tests.support.small_models import (
    MAX_LENGTH,
    make_tokenizer,
    random_texts,
    save_pipeline,
    save_small_classifier,
    save_small_model,
)

pytestmark = pytest.mark.model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("bert"), "bert")


def load(path: Path, **options: Any) -> AsyncEmbeddingEngine:
    options = {"device": "cpu", "model_warmup": False} | options
    return AsyncEmbeddingEngine.from_args(EngineArgs(model_name_or_path=str(path), **options))


def embed(engine: AsyncEmbeddingEngine, texts: list[str]) -> npt.NDArray[np.float32]:
    async def run() -> npt.NDArray[np.float32]:
        async with engine:
            return np.array((await engine.embed(texts))[0])

    return asyncio.run(run())


def reference(path: Path, texts: list[str], **options: Any) -> npt.NDArray[np.float32]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path), device="cpu", **options)
    return model.float().encode(texts, show_progress_bar=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda"}, "--device cuda is not available"),
        ({"device": "tensorrt"}, "--device tensorrt is not for --engine torch"),
        ({"pooling_method": "cls", "model_kind": "reranker"}, "--pooling-method cls cannot be used"),
    ],
)
def test_what_cannot_be_served_is_named(bert: Path, options: dict[str, str], words: str) -> None:
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(StartupError, match=words):
        load(bert, **options)


def test_a_model_that_is_loaded_but_cannot_compute_is_one_readable_error(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that do not fit together load without a word, and fail deep in torch at the first request."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    def fail(*_: Any) -> None:
        raise IndexError("index out of range\n  in self")

    monkeypatch.setattr(Pooling, "forward", fail)
    with pytest.raises(
        StartupError, match="was loaded but cannot compute: IndexError: index out of range in"
    ):
        load(bert)


@pytest.mark.parametrize(
    ("num_labels", "kind", "capabilities", "labels"),
    [(1, "reranker", {"rerank"}, ()), (3, "classifier", {"classify"}, ("LABEL_0", "LABEL_1", "LABEL_2"))],
)
def test_what_is_said_of_a_model_that_scores(
    num_labels: int, kind: str, capabilities: set[str], labels: tuple[str, ...], tmp_path: Path
) -> None:
    engine = load(save_small_classifier(tmp_path, "bert", num_labels=num_labels))

    info = engine.info
    assert (info.kind, engine.capabilities, info.labels) == (kind, capabilities, labels)
    assert (info.outputs, info.embedding_dimension, info.pooling) == ((), 0, "none")
    assert info.activation == ("sigmoid" if num_labels == 1 else "softmax")
    assert info.max_tokens == MAX_LENGTH


def test_the_kind_that_is_asked_for_is_served_whatever_the_files_say(bert: Path) -> None:
    assert load(bert).info.kind == "embedder"
    info = load(bert, model_kind="sparse", allow_missing_weights=True).info  # it has no head
    assert (info.kind, info.outputs, info.capabilities[0]) == ("sparse", ("sparse",), "embed_sparse")


def test_half_precision_of_a_reranker_is_not_used_on_a_cpu(tmp_path: Path) -> None:
    info = load(save_small_classifier(tmp_path, "bert"), dtype="bfloat16").info
    assert (info.dtype, info.dtype_reason) == (
        "float32",
        "bfloat16 was requested, but CPUs compute it slower",
    )


def test_files_that_no_library_can_load_are_one_readable_error(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-architecture"}))
    with pytest.raises(StartupError, match="could not be loaded") as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value)


def test_code_that_comes_with_a_model_is_not_run_unless_asked_for(bert: Path, tmp_path: Path) -> None:
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(StartupError, match="--trust-remote-code"):
        load(tmp_path)


def test_a_cpu_has_a_replica_for_each_core_up_to_a_limit(bert: Path) -> None:
    assert len(choose_devices(EngineArgs(device="cpu", threads=3))) == 3
    assert len(choose_devices(EngineArgs(device="cpu", threads=64))) == MAX_CPU_REPLICAS
    assert len(choose_devices(EngineArgs(device="cpu", threads=64, device_id=(0, 1)))) == 2


def test_replicas_on_a_cpu_share_the_weights(bert: Path) -> None:
    model: Any = load(bert, device_id=(0, 1)).slot.model
    first, second = model.replicas
    assert first.torch_model.model is second.torch_model.model
    assert first.shares_device


def test_the_device_is_the_cpu_where_there_is_no_other() -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has another device")
    assert set(choose_devices(EngineArgs())) == {CPU}


def test_the_dtype_on_a_cpu_is_float32_unless_asked_for() -> None:
    assert choose_dtype(Dtype.auto, CPU).value == "float32"
    assert choose_dtype(Dtype.bfloat16, CPU) == Choice("bfloat16", "requested")
    with pytest.raises(
        StartupError, match="--dtype int16 is not supported by torch; use --engine ctranslate2"
    ):
        choose_dtype(Dtype.int16, CPU)


def test_half_precision_on_a_cpu_is_kept_only_where_it_measures_faster(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(faster: torch.dtype) -> Any:
        return lambda model: 1.0 if next(model.parameters()).dtype == faster else 2.0

    monkeypatch.setattr(half_precision, "measure_answer_s", seconds(torch.bfloat16))
    assert load(bert, dtype="bfloat16").info.dtype == "bfloat16"
    monkeypatch.setattr(half_precision, "measure_answer_s", seconds(torch.float32))
    info = load(bert, dtype="bfloat16").info
    assert info.dtype == "float32"
    assert "slower on this CPU" in info.dtype_reason


def test_half_precision_is_measured_for_real_and_answers_close_to_float32(bert: Path) -> None:
    texts = random_texts(20)
    vectors = embed(load(bert, dtype="bfloat16"), texts)
    assert (vectors * reference(bert, texts)).sum(axis=1).min() > 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_checkpoint_is_computed_in_float32_on_a_cpu(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    path = save_small_model(tmp_path, "bert", dtype=dtype)
    engine = load(path)
    assert engine.info.dtype == "float32"
    texts = random_texts(20)
    expected = reference(path, texts, model_kwargs={"dtype": torch.float32})
    assert np.abs(embed(engine, texts) - expected).max() <= 2e-5


@pytest.mark.parametrize(
    "pooling_mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
)
@pytest.mark.parametrize("model_type", ["bert", "mpnet"])
def test_every_pooling_mode_equals_sentence_transformers(
    model_type: str, pooling_mode: str, tmp_path: Path
) -> None:
    path = save_small_model(tmp_path, model_type, pooling_mode=pooling_mode, normalize=False)
    texts = random_texts(30)
    vectors, expected = embed(load(path), texts), reference(path, texts)
    assert np.abs(vectors - expected).max() <= 2e-5 * max(1, np.abs(expected).max())


def test_the_pooling_method_option_overrides_the_files(bert: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(bert), device="cpu")
    pooling: Any = model[1]
    pooling.pooling_mode = "cls"
    texts = random_texts(10)
    vectors = embed(load(bert, pooling_method="cls"), texts)
    assert np.abs(vectors - model.encode(texts, show_progress_bar=False)).max() <= 2e-5


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("model_type", ["bert", "mpnet"])
def test_the_default_prompt_is_applied(model_type: str, include_prompt: bool, tmp_path: Path) -> None:
    path = save_small_model(
        tmp_path,
        model_type,
        prompts={"query": "word5 word6 "},
        default_prompt_name="query",
        include_prompt=include_prompt,
    )
    texts = random_texts(30)
    engine = load(path)
    assert engine.info.default_prompt_name == "query"
    assert np.abs(embed(engine, texts) - reference(path, texts)).max() <= 2e-5


def test_truncate_dim_of_the_files_is_honoured(bert: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(bert), device="cpu", truncate_dim=8).save_pretrained(str(tmp_path / "short"))
    texts = random_texts(10)
    engine = load(tmp_path / "short")
    vectors = embed(engine, texts)
    expected = reference(tmp_path / "short", texts)
    assert vectors.shape == expected.shape
    assert engine.info.embedding_dimension == vectors.shape[1]
    assert np.abs(vectors - expected).max() <= 2e-5


def test_an_architecture_that_fails_the_comparison_is_padded(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that lets texts see each other must be noticed at start, and never be served."""
    from infinity_emb.backends.torch.packed_layout import Run

    def one_text(lengths: list[int]) -> list[Run]:
        return [Run(0, sum(lengths), 1)]

    monkeypatch.setattr("infinity_emb.backends.torch.packed_features.find_equal_runs", one_text)
    engine = load(bert)
    assert engine.info.attention == "padded"
    assert "to single texts" in engine.info.attention_reason
    texts = random_texts(20)
    assert np.abs(embed(engine, texts) - reference(bert, texts)).max() <= 2e-5


def test_warm_up_finds_a_batch_size(bert: Path) -> None:
    assert load(bert, model_warmup=True).max_batch_tokens in (512, 1024, 2048)
    assert load(bert, model_warmup=True, max_batch_tokens=77).max_batch_tokens == 77


@pytest.mark.parametrize(("options", "num_measured"), [({"model_warmup": True}, 2), ({}, 0)])
def test_warm_up_measures_from_how_many_tokens_on_two_cores_are_faster(
    bert: Path, options: dict[str, Any], num_measured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Any] = []
    monkeypatch.setattr(
        "infinity_emb.backends.torch.load.choose_min_tokens",
        lambda cores, replicas, samples: measured.extend(replicas),
    )
    load(bert, device_id=(0, 1), threads=2, **options)
    assert len(measured) == num_measured


def test_a_model_without_a_network_measures_no_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infinity_emb.backends.torch.load.choose_min_tokens", lambda *args: 1 / 0)
    static = StaticEmbedding(make_tokenizer("bert").backend_tokenizer, embedding_dim=8)
    pipeline = save_pipeline(tmp_path / "static", [static])
    load(pipeline, model_warmup=True, engine="torch", device_id=(0, 1), threads=2)
