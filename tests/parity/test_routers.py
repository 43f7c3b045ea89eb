"""Models in which queries and documents go different ways, against SentenceTransformer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router
from sentence_transformers.sentence_transformer.modules import (
    StaticEmbedding,
)

from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import load_embedder
from tests.parity.serving import Served, assert_same_vectors
from tests.support.small_models import (
    HIDDEN_SIZE,
    make_tokenizer,
    save_pipeline,
    save_small_model,
)

pytestmark = pytest.mark.model


def route(model: Path) -> list[torch.nn.Module]:
    return list(SentenceTransformer(str(model), device="cpu"))[:2]


def assert_routes_alike(served: Served, path: Path, texts: list[str]) -> None:
    model = load_embedder(path)
    encodes: dict[str | None, Any] = {
        None: model.encode,
        "query": model.encode_query,
        "document": model.encode_document,
    }
    expected = {task: references.vectors(encode, texts) for task, encode in encodes.items()}
    for task in encodes:
        assert_same_vectors(served.embed(texts, input_type=task), expected[task])
    assert np.abs(expected["query"] - expected["document"]).max() > 0.01
    cosines = (expected["query"][:1] * expected["document"]).sum(1)
    cosines /= np.linalg.norm(expected["query"][0]) * np.linalg.norm(expected["document"], axis=1)
    assert np.abs(served.scores(texts[0], texts) - cosines).max() <= 2e-5


@pytest.mark.parametrize("query_side", ["transformer", "static"])
def test_queries_and_documents_may_go_different_ways(
    query_side: str, bert: Path, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    static = StaticEmbedding(make_tokenizer("roberta")._tokenizer, embedding_dim=HIDDEN_SIZE)
    queries = [static] if query_side == "static" else route(bert)
    documents = route(save_small_model(tmp_path, "roberta", pooling_mode="cls"))
    router = Router.for_query_document(queries, documents)
    path = save_pipeline(tmp_path / "router", [router, Normalize()])

    served = serve(path)

    assert served.attention == "packed"
    assert served.reads_tokens
    assert served.engine.info.tasks == ("query", "document")
    assert_routes_alike(served, path, [text[:200] for text in texts[:12]])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_asym_folder(bert: Path, serve: Serve, texts: list[str], tmp_path: Path) -> None:
    """What routers were called before: other type names, and the config in `config.json`."""
    documents = route(save_small_model(tmp_path, "roberta", pooling_mode="cls"))
    path = save_pipeline(tmp_path / "asym", [Router.for_query_document(route(bert), documents), Normalize()])
    config = json.loads((path / "router_config.json").read_text())
    (path / "router_config.json").unlink()
    config["types"] = {
        name: f"sentence_transformers.models.{each.rpartition('.')[2]}"
        for name, each in config["types"].items()
    }
    config["parameters"] = {"allow_empty_key": True}
    (path / "config.json").write_text(json.dumps(config))
    modules = json.loads((path / "modules.json").read_text())
    modules[0]["type"] = "sentence_transformers.models.Asym"
    (path / "modules.json").write_text(json.dumps(modules))

    served = serve(path)

    assert served.attention == "packed"
    assert_routes_alike(served, path, texts[:12])
