"""What the torch backend does beyond parity: full precision on demand, and batches of many recipes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router

from infinity_emb.backends.torch import backend as torch_backend
from infinity_emb.backends.torch import blocks, packed_attention
from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.forward import TorchModel
from infinity_emb.backends.torch.prepared_model import PreparedModel, prepare_model
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.errors import BackendFailed, BadInput, DeviceOutOfMemory
from infinity_emb.items import Encoded, ForwardSpec, InputOptions, LateChunkingInput, number_inputs
from infinity_emb.types import ModelKind
from tests.support.small_models import random_texts, save_small_model

pytestmark = pytest.mark.model


def prepare(path: Path, dtype: torch.dtype = torch.float32) -> PreparedModel:
    model = SentenceTransformer(str(path), device="cpu", model_kwargs={"dtype": dtype})
    model.eval()
    return prepare_model(TorchModel(model=model, layouts={}), ModelKind.embedder, ("dense",))


def test_full_precision_computes_what_half_precision_cannot_hold(tmp_path: Path) -> None:
    """A weight of 60,000 is a number in float16 and twice of it is infinity."""
    path = save_small_model(tmp_path, "bert", normalize=False)
    half = prepare(path, torch.float16)
    network: Any = half.torch_model.model[0].model
    with torch.no_grad():
        network.encoder.layer[-1].intermediate.dense.bias.fill_(60_000)
        network.encoder.layer[-1].output.dense.weight.fill_(2)
    backend = TorchBackend(half.torch_model)
    batch = half.encode(number_inputs(random_texts(2)), InputOptions())

    rows = backend.launch(batch).result()["dense"]
    exact = backend.launch(batch, full_precision=True).result()["dense"]

    assert not np.isfinite(rows).all()
    assert np.isfinite(exact).all()
    assert next(half.torch_model.model.parameters()).dtype == torch.float16, "only a copy was converted"


def test_full_precision_is_computed_by_the_kernel_that_knows_it(tmp_path: Path) -> None:
    """The kernel of GPUs with half precision takes no float32."""
    path = save_small_model(tmp_path, "bert")
    half = prepare(path, torch.bfloat16)
    network: Any = half.torch_model.model[0].model
    network.set_attn_implementation(packed_attention.VARLEN)
    batch = half.encode(number_inputs(random_texts(2)), InputOptions())

    rows = TorchBackend(half.torch_model).launch(batch, full_precision=True).result()["dense"]

    exact = SentenceTransformer(str(path), device="cpu")
    exact.load_state_dict(half.torch_model.model.state_dict())  # rounded
    expected = [exact.encode(text, show_progress_bar=False) for text in random_texts(2)]
    assert np.abs(rows - np.array(expected)).max() <= 2e-5
    assert network.config._attn_implementation == packed_attention.VARLEN, "only a copy was changed"


def test_full_precision_computes_each_item_alone_and_copies_the_model_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = prepare(save_small_model(tmp_path, "bert"), torch.float16)
    batch = half.encode(number_inputs(random_texts(4)), InputOptions())
    to_full_precision = Mock(wraps=torch_backend.to_full_precision)
    build_blocks = Mock(wraps=blocks.build_blocks)
    monkeypatch.setattr(torch_backend, "to_full_precision", to_full_precision)
    monkeypatch.setattr(torch_backend, "build_blocks", build_blocks)

    rows = TorchBackend(half.torch_model).launch(batch, full_precision=True).result()["dense"]

    assert [len(call.args[0]) for call in build_blocks.call_args_list] == [1, 1, 1, 1]
    assert to_full_precision.call_count == 1
    assert len(rows) == 4


def test_full_precision_of_a_float32_model_is_the_model_itself(tmp_path: Path) -> None:
    model = prepare(save_small_model(tmp_path, "bert"))
    backend = TorchBackend(model.torch_model)
    batch = model.encode(number_inputs(random_texts(3)), InputOptions())

    expected = np.concatenate([backend.launch([item]).result()["dense"] for item in batch])

    assert np.array_equal(backend.launch(batch, full_precision=True).result()["dense"], expected)


def lack_cpu_memory() -> None:
    torch.empty(1 << 50)


def lack_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def fail_otherwise() -> None:
    raise RuntimeError("CUDA error: device-side assert triggered")


@pytest.mark.parametrize(
    ("fail", "expected"),
    [
        (lack_cpu_memory, DeviceOutOfMemory),
        (lack_gpu_memory, DeviceOutOfMemory),
        (fail_otherwise, RuntimeError),
    ],
)
def test_a_lack_of_memory_is_told_from_other_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[], None], expected: type[Exception]
) -> None:
    made = prepare(save_small_model(tmp_path, "bert"))
    batch = made.encode(number_inputs(random_texts(2)), InputOptions())
    monkeypatch.setattr(made.torch_model.model, "forward", lambda *_, **__: fail())

    with pytest.raises(expected) as caught:
        TorchBackend(made.torch_model).launch(batch)
    assert caught.type is expected


def test_texts_that_do_not_fit_into_memory_together_are_computed_in_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real model, with a device that has room for fewer tokens than its batches have."""
    path = save_small_model(tmp_path, "bert")
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(model_name_or_path=str(path), device="cpu", max_batch_tokens=4096, model_warmup=False)
    )
    loaded: Any = engine.slot.model
    model = loaded.replicas[0].torch_model.model
    forward = model.forward

    def lack_memory_for_many(features: dict[str, Any], **options: Any) -> Any:
        if features["input_ids"].numel() > 200:
            lack_cpu_memory()
        return forward(features, **options)

    monkeypatch.setattr(model, "forward", lack_memory_for_many)
    texts = random_texts(40)

    async def embed() -> Any:
        async with engine:
            return (await engine.embed(texts))[0]

    rows = asyncio.run(embed())
    monkeypatch.undo()
    expected = SentenceTransformer(str(path), device="cpu")
    for row, text in zip(rows, texts, strict=True):
        assert np.abs(row - expected.encode(text, show_progress_bar=False)).max() <= 2e-5
    assert engine.status().worker.num_out_of_memory >= 1
    assert engine.status().worker.num_failed_items == 0


def test_items_of_many_recipes_each_get_their_own_answer(tmp_path: Path) -> None:
    """Prompts of different length cannot share a pass where pooling leaves the prompt out."""
    model = prepare(save_small_model(tmp_path, "bert", include_prompt=False))
    backend = TorchBackend(model.torch_model)
    texts = random_texts(12)
    prompts = ["", "word1 ", "word1 word2 word3 "]
    batch = [
        model.encode(number_inputs([text]), InputOptions(prompt=prompts[number % 3]))[0]
        for number, text in enumerate(texts)
    ]

    together = backend.launch(batch).result()["dense"]

    assert len({item.spec for item in batch}) == 3
    alone = np.concatenate([backend.launch([item]).result()["dense"] for item in batch])
    assert np.abs(together - alone).max() <= 1e-6


def test_an_output_that_an_item_did_not_ask_for_is_finite(tmp_path: Path) -> None:
    model = prepare(save_small_model(tmp_path, "bert"))
    backend = TorchBackend(model.torch_model)
    dense = model.encode(number_inputs(["word1 word2"]), InputOptions())[0]
    tokens = Encoded(dense.token_ids, spec=replace(ForwardSpec(), outputs=("multivector",)))

    with pytest.raises(KeyError):  # a plain embedder leaves no mask, so it is never asked for that
        backend.launch([dense, tokens])
    chunks = Encoded(dense.token_ids, spec=ForwardSpec(outputs=("chunks",)), spans=((1, 2), (2, 3)))
    answers: Any = backend.launch([dense, chunks]).result()

    assert answers["dense"].shape == (2, 32)
    assert np.isfinite(answers["dense"]).all()
    assert [rows.shape for rows in answers["chunks"]] == [(0, 0), (2, 32)]


def prepare_router(path: Path) -> PreparedModel:
    bert = SentenceTransformer(str(path), device="cpu")
    routes: dict[str, list[Any]] = {"query": list(bert), "document": list(bert)}
    model = SentenceTransformer(modules=[Router(routes, default_route="document")], device="cpu").eval()
    return prepare_model(TorchModel(model=model, layouts={}), ModelKind.embedder, ("dense",))


def test_passages_are_refused_where_the_pooling_cannot_be_replaced(tmp_path: Path) -> None:
    """A router pools inside of itself, and rows of texts would be taken for those of passages."""
    model = prepare_router(save_small_model(tmp_path, "bert"))
    options = InputOptions(task="document", outputs=("chunks",))
    with pytest.raises(BadInput, match="late chunking needs"):
        model.encode(number_inputs([LateChunkingInput(("word1 ", "word2"))]), options)
    (item,) = model.encode(number_inputs(["word1 word2"]), options)
    with pytest.raises(BackendFailed, match="in chunks"):
        TorchBackend(model.torch_model).launch([replace(item, spans=((1, 2), (2, 3)))])
