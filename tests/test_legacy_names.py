"""Names and calls of infinity_emb 0.0.77 that others use: LangChain, `embed`, UltraRAG, people's scripts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

import infinity_emb
from infinity_emb import args, errors, infinity_server, log_handler, primitives
from infinity_emb.config import engine_args as config
from infinity_emb.server.app import create_server
from tests.test_public_names import FOREIGN, run_script

DEBUG = {"engine": "debugengine", "model_name_or_path": "debug"}


# EngineArgs


@pytest.mark.parametrize(("given", "expected"), [("", False), (False, False), (True, True), ("/tmp/x", True)])
def test_a_disk_cache_may_be_given_by_its_path_or_by_yes_or_no(given: str | bool, expected: bool) -> None:
    engine_args = args.EngineArgs(vector_disk_cache_path=given)
    assert engine_args.vector_disk_cache is expected
    assert args.EngineArgs(**engine_args.to_dict()) == engine_args.copy() == engine_args


def test_a_loading_strategy_may_be_given_and_is_not_read() -> None:
    strategy = primitives.LoadingStrategy(
        device_mapping=["cpu"], loading_dtype="float32", quantization_dtype="float32"
    )
    for given in (None, strategy):
        assert args.EngineArgs(_loading_strategy=given) == args.EngineArgs()


@pytest.mark.parametrize(
    ("option", "enum"),
    [
        ("engine", primitives.InferenceEngine),
        ("device", primitives.Device),
        ("dtype", primitives.Dtype),
        ("embedding_dtype", primitives.EmbeddingDtype),
        ("pooling_method", primitives.PoolingMethod),
    ],
)
def test_a_choice_may_be_given_by_member_name_or_value(option: str, enum: type) -> None:
    for member in enum:  # type: ignore[attr-defined]
        for given in (member, member.name, member.value):
            assert getattr(args.EngineArgs(**{option: given}), option) is member


@pytest.mark.parametrize("given", ["0,1", [0, 1], primitives.DeviceID("0,1"), primitives.DeviceID([0, 1])])
def test_devices_may_be_given_as_text_list_or_device_id(given: object) -> None:
    assert args.EngineArgs(device_id=given).device_id == (0, 1)
    assert primitives.DeviceID("") == primitives.DeviceID() == []


# Where names stand


def test_the_old_modules_lead_to_the_names_of_today() -> None:
    assert args.EngineArgs is config.EngineArgs
    assert infinity_server.create_server is create_server
    assert log_handler.logger is infinity_emb.logger
    for name in ("ModelNotDeployedError", "MatryoshkaDimError", "ImageCorruption", "AudioCorruption"):
        assert getattr(primitives, name) is getattr(errors, name)
    with pytest.raises(ImportError):
        exec("from infinity_emb.infinity_server import no_such_name")


def test_levels_of_the_log_have_their_numbers() -> None:
    numbers = {"critical": 50, "error": 40, "warning": 30, "info": 20, "debug": 10, "trace": 5}
    assert numbers == log_handler.LOG_LEVELS
    assert logging.getLogger("infinity_emb") is log_handler.logger


def test_auto_padding_needs_no_server() -> None:
    """`embed` is installed without the extra."""
    script = f"""
import sys
from infinity_emb.infinity_server import AutoPadding
print(sorted(name for name in {FOREIGN!r} if name in sys.modules))
"""
    assert run_script(script) == "[]\n"


def test_auto_padding_gives_each_model_its_arguments() -> None:
    padding = infinity_server.AutoPadding(length=2, a=["x", "y"], b=["z"], c=(1, 2), d=None, e="text")
    both = {"b": "z", "d": None, "e": "text"}
    assert list(padding) == [{"a": "x", "c": 1, **both}, {"a": "y", "c": 2, **both}] == list(padding)
    with pytest.raises(ValueError, match="a has 3 values for 2 models"):
        list(infinity_server.AutoPadding(length=2, a=[1, 2, 3]))


def test_the_schemas_of_0_0_77_make_a_server_of_ones_own() -> None:
    """The names could not be imported; people build a route of their own from them."""
    from infinity_emb.fastapi_schemas import convert, errors, pymodels

    request = pymodels.OpenAIEmbeddingInput.model_validate({"input": ["a", "b"], "model": "m", "user": "me"})
    assert (request.input, request.model) == (["a", "b"], "m")
    vectors = np.arange(4, dtype=np.float32).reshape(2, 2)
    for model in ("debug", args.EngineArgs(**DEBUG)):
        fields = convert.list_embeddings_to_response(vectors, model, 7)
        result = pymodels.OpenAIEmbeddingResult(**fields)
        assert [each.embedding for each in result.data] == [[0, 1], [2, 3]]
        assert (result.object, result.model, result.usage.total_tokens) == ("list", "debug", 7)
        assert result.id.startswith("infinity-")
        assert result.created > 1_700_000_000
    encoded = convert.list_embeddings_to_response(
        vectors[:1], engine_args="m", usage=1, encoding_format=primitives.EmbeddingEncodingFormat.base64
    )
    assert encoded["data"][0]["embedding"] == "AAAAAAAAgD8="

    ranked = [primitives.RerankReturnType(0.5, "text", 1)]
    for returns, expected in ((True, "text"), (False, None)):
        body = convert.to_rerank_response(ranked, model="m", usage=3, return_documents=returns)
        [entry] = pymodels.ReRankResult(**body).results
        assert (entry.relevance_score, entry.index, entry.document) == (0.5, 1, expected)
    labelled = pymodels.ClassifyResult.to_classify_response([[{"label": "x", "score": 1.0}]], "m", 2)
    assert pymodels.ClassifyResult(**labelled).data[0][0].label == "x"
    listed = pymodels.OpenAIModelInfo(data=[pymodels.ModelInfo(id="m", stats={})])
    assert (listed.data[0].owned_by, listed.object) == ("infinity", "list")
    both = pymodels.MultiModalOpenAIEmbedding.model_validate({"input": "a", "modality": "text"})
    assert both.root.input == ["a"]

    error = errors.OpenAIException(message="no", code=418)
    response = errors.openai_exception_handler(None, error)
    assert response.status_code == 418
    assert response.body == b'{"error":{"message":"no","type":null,"param":null,"code":418}}'


# What packages call


@pytest.mark.anyio
async def test_langchain_runs_an_engine_of_its_own_and_starts_it_when_it_does_not_run() -> None:
    with pytest.warns(DeprecationWarning, match="from_args"):
        engine = infinity_emb.AsyncEmbeddingEngine(
            model_name_or_path="debug",
            device="auto",
            revision=None,
            model_warmup=True,
            batch_size=32,
            engine="debugengine",
        )
    for _ in range(2):
        assert not engine.running
        async with engine:
            assert engine.running
            vectors, num_tokens = await engine.embed(["a", "abc"])
        assert [vector[0] for vector in vectors] == [1, 3]
        assert num_tokens == 4


@pytest.fixture
def registered() -> Iterator[infinity_emb.SyncEngineArray]:
    """As `embed.BatchedInference` makes it."""
    infinity_emb.EngineArgs()
    padding = infinity_server.AutoPadding(
        length=2,
        model_name_or_path=["debug?kind=embedder", "debug?kind=reranker"],
        engine=["debugengine"],
        device=["cpu"],
        embedding_dtype=["float32"],
        dtype=["auto"],
        lengths_via_tokenize=True,
        model_warmup=False,
        trust_remote_code=True,
        batch_size=32,
    )
    array = infinity_emb.SyncEngineArray.from_args([infinity_emb.EngineArgs(**each) for each in padding])
    yield array
    array.stop()


def test_embed_registers_models_and_asks_them_by_number_or_name(
    registered: infinity_emb.SyncEngineArray,
) -> None:
    vectors, num_tokens = registered.embed(model=0, sentences=["a", "abc"]).result()
    assert ([vector.tolist() for vector in vectors], num_tokens) == ([[1.0] * 13, [3.0] * 13], 4)
    for model in (1, "debug?kind=reranker"):
        ranked, _ = registered.rerank(model=model, query="q", docs=["a", "abc"]).result()
        assert [(each.index, each.document) for each in ranked] == [(1, "abc"), (0, "a")]
    with pytest.raises(primitives.ModelNotDeployedError):
        registered.classify(model=1, sentences=["a"]).result()


@pytest.mark.anyio
async def test_a_server_made_in_python_takes_what_it_is_not_given_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever has set a key must not find an open server."""
    monkeypatch.setenv("INFINITY_API_KEY", "key")
    monkeypatch.setenv("INFINITY_URL_PREFIX", "/api")
    engine_args_list = [infinity_emb.EngineArgs(**DEBUG)]
    for options, path, expected in [
        ({}, "/api/models", 401),
        ({"api_key": ""}, "/api/models", 200),
        ({"api_key": "", "url_prefix": ""}, "/models", 200),
        ({"api_key": "", "url_prefix": "/other"}, "/api/models", 404),
    ]:
        app = infinity_emb.create_server(engine_args_list=engine_args_list, **options)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            assert (await client.get(path)).status_code == expected, options


@pytest.mark.model
def test_the_vectors_of_such_an_array_are_those_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    from benchmarks.texts import bundled_model_folder

    texts = ["Paris is in France.", "a", "An image of two cats on a sofa."]
    folder: Path = bundled_model_folder()
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
    [options] = infinity_server.AutoPadding(length=1, model_name_or_path=[str(folder)], device=["cpu"])
    with infinity_emb.SyncEngineArray.from_args(
        [infinity_emb.EngineArgs(**options, model_warmup=False)]
    ) as array:
        vectors, _ = array.embed(model=0, sentences=texts).result()
    np.testing.assert_allclose(np.stack(vectors), expected, atol=1e-6)
