"""Repositories with a graph and no torch weights: served by whoever computes graphs, told by all others."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoModel, BertConfig, BertModel

from infinity_emb import AsyncEmbeddingEngine
from infinity_emb.backends.external.meta_network import empty_networks
from infinity_emb.backends.external.onnx_export import get_exported_graph
from infinity_emb.backends.registry import load_model
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.verify.verify import verify
from tests.parity.references import load_embedder, load_reranker
from tests.parity.serving import assert_same_scores, assert_same_vectors
from tests.support.engine_home import engine_home
from tests.support.small_models import (
    random_texts,
    save_small_classifier,
    save_small_late_interaction,
    save_small_model,
)

# transformers' default configurations name start and end tokens outside of the small vocabularies.
pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]

TEXTS = random_texts(6, max_words=40)


@pytest.fixture(scope="module")
def home(tmp_path_factory: Any) -> Iterator[Path]:
    with engine_home(tmp_path_factory) as folder:
        yield folder


def args_of(folder: Path, **options: Any) -> EngineArgs:
    options = {"engine": "onnx", "device": "cpu", "model_warmup": False, "threads": 1} | options
    return EngineArgs(model_name_or_path=str(folder), **options)


def without_weights(folder: Path, target: Path, network: Transformer, name: str = "model.onnx") -> Path:
    """A copy as people publish them for other runtimes: a graph, and the network's weights left out."""
    graph = get_exported_graph(network, args_of(folder), ModelFiles(folder, "folder", None)).ensure()
    shutil.copytree(folder, target)
    for path in (target, target / "0_Transformer"):
        (path / "model.safetensors").unlink(missing_ok=True)
    (target / "onnx").mkdir()
    onnx.save(onnx.load(graph), target / "onnx" / name)
    return target


@pytest.fixture(scope="module")
def embedder(home: Path, tmp_path_factory: Any) -> Path:
    return save_small_model(tmp_path_factory.mktemp("embedder"), "bert")


@pytest.fixture(scope="module")
def graph_alone(embedder: Path, tmp_path_factory: Any) -> Path:
    target = tmp_path_factory.mktemp("published") / "model"
    return without_weights(embedder, target, Transformer(str(embedder)))


async def _embed(args: EngineArgs) -> Any:
    async with AsyncEmbeddingEngine.from_args(args) as engine:
        return (await engine.embed(TEXTS))[0]


async def _rerank(args: EngineArgs) -> Any:
    async with AsyncEmbeddingEngine.from_args(args) as engine:
        ranked, _ = await engine.rerank(query=TEXTS[0], docs=TEXTS[1:])
        return [each.relevance_score for each in sorted(ranked, key=lambda each: each.index)]


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_an_embedder_without_weights_is_served_by_its_graph(
    embedder: Path, graph_alone: Path, engine: str
) -> None:
    expected = load_embedder(embedder).encode(TEXTS)
    assert_same_vectors(asyncio.run(_embed(args_of(graph_alone, engine=engine))), expected)


def test_a_projection_beside_the_graph_keeps_its_own_weights(home: Path, tmp_path: Path) -> None:
    """Modules around the network have files of their own, which the graph does not hold."""
    bare = save_small_model(tmp_path / "bare", "bert")
    network = Transformer(str(bare))
    size = network.get_embedding_dimension()
    assert size is not None
    folder = tmp_path / "whole"
    SentenceTransformer(modules=[network, Pooling(size), Dense(size, 8)]).save(str(folder))
    published = without_weights(folder, tmp_path / "published", network)
    assert list(published.rglob("2_Dense/model.safetensors"))
    assert_same_vectors(asyncio.run(_embed(args_of(published))), load_embedder(folder).encode(TEXTS))


def test_a_reranker_without_weights_is_served_by_its_graph(home: Path, tmp_path: Path) -> None:
    folder = save_small_classifier(tmp_path / "whole", "roberta", num_labels=1)
    reference = load_reranker(folder)
    network: Any = reference[0]
    published = without_weights(folder, tmp_path / "published", network)
    expected = reference.predict([(TEXTS[0], text) for text in TEXTS[1:]])
    assert_same_scores(asyncio.run(_rerank(args_of(published))), expected)


def test_that_nothing_could_be_compared_is_told(graph_alone: Path) -> None:
    info = load_model(args_of(graph_alone)).info
    assert info.dtype_reason == (
        "onnx/model.onnx (the repository's float32 file), no torch weights to compare with"
    )


def test_a_graph_of_another_format_alone_is_not_taken_unasked(
    embedder: Path, tmp_path: Path, home: Path
) -> None:
    network = Transformer(str(embedder))
    published = without_weights(embedder, tmp_path / "published", network, name="model_quantized.onnx")
    with pytest.raises(
        StartupError,
        match=r"no torch weights, and no float32 graph .* --graph-file, of: onnx/model_quantized\.onnx",
    ):
        load_model(args_of(published))
    assert load_model(args_of(published, dtype="int8")).info.dtype == "int8"
    assert load_model(args_of(published, graph_file="model_quantized.onnx")).info.dtype == "int8"


def test_a_broken_graph_alone_is_an_error(graph_alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(graph_alone, folder)
    (folder / "onnx" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(StartupError, match="cannot load"):
        load_model(args_of(folder))


@pytest.mark.parametrize("engine", ["torch", "ctranslate2"])
def test_engines_that_need_weights_name_those_that_do_not(graph_alone: Path, engine: str) -> None:
    with pytest.raises(StartupError, match=r"no torch weights, but onnx/model\.onnx; use --engine onnx or"):
        load_model(args_of(graph_alone, engine=engine))


def test_auto_takes_the_graph(graph_alone: Path) -> None:
    info = load_model(args_of(graph_alone, engine="auto")).info
    assert (info.engine, info.engine_reason) == (
        "optimum",
        "the repository has no torch weights to compare engines with",
    )


def test_weights_of_a_projection_are_not_taken_for_the_network_s(home: Path, tmp_path: Path) -> None:
    folder = save_small_late_interaction(tmp_path / "whole", "bert")
    published = without_weights(folder, tmp_path / "published", Transformer(str(folder)))
    assert list(published.rglob("*.safetensors"))
    assert load_model(args_of(published, engine="auto")).info.engine == "optimum"
    with pytest.raises(StartupError, match=r"no torch weights, but onnx/model\.onnx; use --engine onnx or"):
        load_model(args_of(published, engine="torch"))


def test_nothing_can_be_verified_without_weights(graph_alone: Path) -> None:
    with pytest.raises(StartupError, match="no torch weights, so there is nothing to compare it with"):
        verify(args_of(graph_alone))


def test_auto_says_why_nobody_can_serve_a_model_without_weights(
    graph_alone: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(graph_alone, folder)
    shutil.rmtree(folder / "onnx")
    with caplog.at_level(logging.ERROR), pytest.raises(StartupError) as caught:
        load_model(args_of(folder, engine="auto"))
    assert "the repository has no torch weights" in str(caught.value)
    assert "optimum: " in str(caught.value)
    assert "torch: " in str(caught.value)


def test_networks_with_weights_are_loaded_as_ever(embedder: Path) -> None:
    expected = AutoModel.from_pretrained(str(embedder)).state_dict()
    with empty_networks() as made:
        network = AutoModel.from_pretrained(str(embedder))
    assert not made
    assert all(torch.equal(found, expected[name]) for name, found in network.state_dict().items())


def test_a_name_on_the_hub_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of a model may load another network by its name; that is transformers' to find or to refuse."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with empty_networks() as made, pytest.raises(OSError, match="nobody/nothing") as caught:
        BertModel.from_pretrained("nobody/nothing", config=BertConfig())
    assert not isinstance(caught.value, FileNotFoundError)
    assert not made


def test_transformers_is_left_as_it_was(graph_alone: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), empty_networks():
        raise RuntimeError("stop")
    with pytest.raises(OSError, match="no file named"):
        AutoModel.from_pretrained(str(graph_alone))


def test_nothing_asks_an_empty_network(graph_alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any, **options: Any) -> None:
        raise AssertionError("an empty network computes")

    monkeypatch.setattr("transformers.models.bert.modeling_bert.BertModel.forward", fail)
    load_model(args_of(graph_alone))
