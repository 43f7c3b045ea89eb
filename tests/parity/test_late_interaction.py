"""Late-interaction models, a vector per token, against MultiVectorEncoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import load_late_interaction
from tests.parity.serving import LONG, Served, assert_same_scores, assert_same_vectors
from tests.support.small_models import (
    HIDDEN_SIZE,
    TOKEN_DIM,
    make_tokenizer,
    save_network,
    save_small_late_interaction,
)

pytestmark = pytest.mark.model

PROMPTS = {"query": "word7 ", "document": "word8 "}
SKIPPED = ["word1", "word2", "word3", "[SEP]"]


def expansion(strategy: str, length: int, *, attend: bool, token: str | None = None) -> dict[str, Any]:
    return {"strategy": strategy, "length": length, "attend": attend, "token": token}


# Architecture, what is saved, and how the model runs.
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "plain": ("bert", {}, "packed"),
    "skiplist and lengths": (
        "modernbert",
        {"skiplist_words": SKIPPED, "query_length": 20, "document_length": 100, "prompts": PROMPTS},
        "packed",
    ),
    "fixed expansion": (
        "bert",
        {"query_expansion": expansion("fixed", 32, attend=False), "skiplist_words": SKIPPED},
        "packed",
    ),
    "fixed expansion, attended": (
        "bert",
        {"query_expansion": expansion("fixed", 32, attend=True), "prompts": PROMPTS},
        "packed",
    ),
    "expansion to a minimum": (
        "modernbert",
        {"query_expansion": expansion("min", 16, attend=False), "prompts": PROMPTS, "document_length": 60},
        "packed",
    ),
    "expansion to a minimum, attended": (
        "xlm-roberta",
        {"query_expansion": expansion("min", 40, attend=True, token="word50"), "query_length": 64},
        "packed",
    ),
    "padded": (
        "mpnet",
        {"query_expansion": expansion("fixed", 24, attend=False), "skiplist_words": SKIPPED},
        "padded",
    ),
    "pooled tokens": (
        "bert",
        {"last_modules": [HierarchicalTokenPooling(pool_factor=3)], "skiplist_words": SKIPPED},
        "packed",
    ),
}

Compared = tuple[Served, MultiVectorEncoder]


@pytest.fixture(scope="module", params=MODELS)
def compared(request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: Any) -> Compared:
    model_type, options, attention = MODELS[request.param]
    path = save_small_late_interaction(tmp_path_factory.mktemp("model"), model_type, **options)
    return served_alike(serve, path, attention)


def served_alike(serve: Serve, path: Path, attention: str = "packed") -> Compared:
    served = serve(path)
    assert served.engine.info.kind == "multivector"
    assert served.engine.info.outputs == ("multivector",)
    assert served.attention == attention, served.engine.info.attention_reason
    assert served.reads_tokens
    return served, load_late_interaction(path)


def assert_token_vectors(served: Served, model: MultiVectorEncoder, inputs: list[str]) -> None:
    for input_type, encode in (
        (None, model.encode),
        ("query", model.encode_query),
        ("document", model.encode_document),
    ):
        actual = served.multivector(inputs, input_type=input_type)
        assert_same_vectors(actual, references.token_vectors(encode, inputs))


def assert_maxsim(served: Served, model: MultiVectorEncoder, query: str, docs: list[str]) -> None:
    rows = [torch.from_numpy(each) for each in references.token_vectors(model.encode_document, docs)]
    asked = torch.from_numpy(references.token_vectors(model.encode_query, [query])[0])
    expected = model.similarity([asked], rows)[0].numpy()
    # A sum over all tokens of the query.
    assert_same_scores(served.scores(query, docs) / len(asked), expected / len(asked))


def test_token_vectors_equal_multi_vector_encoders(compared: Compared, texts: list[str]) -> None:
    assert_token_vectors(*compared, [*texts, LONG, texts[1], "word3 word5"])


def test_rerank_is_the_models_own_similarity(compared: Compared, texts: list[str]) -> None:
    for query in (texts[2], LONG, "word9"):
        assert_maxsim(*compared, query, [*texts, LONG])


def test_prompts_equal_multi_vector_encoders(compared: Compared, texts: list[str]) -> None:
    served, model = compared
    expected = references.token_vectors(model.encode_query, texts[:4], prompt="word9 word10 ")
    actual = served.multivector(texts[:4], input_type="query", prompt="word9 word10 ")
    assert_same_vectors(actual, expected)


def test_the_mean_of_the_similarities(serve: Serve, texts: list[str], tmp_path: Path) -> None:
    path = save_small_late_interaction(tmp_path, "bert")
    config_path = path / "config_sentence_transformers.json"
    config = json.loads(config_path.read_text()) | {"similarity_fn_name": "meanmaxsim"}
    config_path.write_text(json.dumps(config))
    served, model = served_alike(serve, path)
    rows = [torch.from_numpy(each) for each in references.token_vectors(model.encode_document, texts)]
    asked = torch.from_numpy(references.token_vectors(model.encode_query, [texts[2]])[0])
    assert_same_scores(served.scores(texts[2], texts), model.similarity([asked], rows)[0].numpy())


def with_marker_tokens(folder: Path) -> Any:
    """bert's tokenizer with the markers and the punctuation that ColBERT's folders need."""
    tokenizer = make_tokenizer("bert")
    tokenizer.add_tokens(["[unused0]", "[unused1]", "[Q] ", "[D] "])
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize(
    "extra", [{}, {"skiplist_words": SKIPPED, "attend_to_expansion_tokens": True}], ids=str
)
def test_a_folder_of_pylate(extra: dict[str, Any], serve: Serve, texts: list[str], tmp_path: Path) -> None:
    """Two modules, the second by PyLate's own name, and everything else in one file."""
    path = save_network(tmp_path / "model", "bert", vocab_size=520)
    with_marker_tokens(path)
    torch.manual_seed(0)
    (path / "1_Dense").mkdir()
    Dense(HIDDEN_SIZE, TOKEN_DIM, bias=False, activation_function=torch.nn.Identity()).save(
        str(path / "1_Dense")
    )
    dense_config = {
        "in_features": HIDDEN_SIZE,
        "out_features": TOKEN_DIM,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    (path / "1_Dense" / "config.json").write_text(json.dumps(dense_config))
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 120, "do_lower_case": False})
    )
    config: dict[str, Any] = {
        "model_type": "ColBERT",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
        "query_length": 24,
        "document_length": 120,
        "attend_to_expansion_tokens": False,
        "do_query_expansion": True,
    }
    (path / "config_sentence_transformers.json").write_text(json.dumps(config | extra))

    served, model = served_alike(serve, path)

    assert_token_vectors(served, model, [*texts, LONG])
    assert_maxsim(served, model, texts[2], texts)
    assert len(served.multivector(["word5"], input_type="query")[0]) == 24


def test_a_folder_of_stanford(serve: Serve, texts: list[str], tmp_path: Path) -> None:
    """The projection lies among the network's own weights; settings in `artifact.metadata`."""
    path = save_network(tmp_path / "model", "bert", vocab_size=520)
    with_marker_tokens(path)
    torch.manual_seed(0)
    weights = {f"bert.{name}": each for name, each in load_file(path / "model.safetensors").items()}
    weights["linear.weight"] = torch.randn(TOKEN_DIM, HIDDEN_SIZE)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text()) | {"architectures": ["HF_ColBERT"]}
    (path / "config.json").write_text(json.dumps(config))
    metadata = {
        "query_token_id": "[unused0]",
        "doc_token_id": "[unused1]",
        "query_maxlen": 32,
        "doc_maxlen": 100,
        "mask_punctuation": True,
        "attend_to_mask_tokens": False,
        "dim": TOKEN_DIM,
    }
    (path / "artifact.metadata").write_text(json.dumps(metadata))

    served, model = served_alike(serve, path)

    assert_token_vectors(served, model, [*texts, LONG])
    assert_maxsim(served, model, texts[2], texts)
