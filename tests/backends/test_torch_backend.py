"""What the torch backend does beyond parity: full precision on demand, and batches of many recipes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router

from infinity_emb.backends import packed_attention, torch_backend, torch_doors
from infinity_emb.backends.base import Encoded, InputOptions, Passages, Recipe
from infinity_emb.backends.torch_backend import Pipeline, TorchBackend
from infinity_emb.backends.torch_doors import DoorMaker, OpenedModel
from infinity_emb.backends.torch_layout import choose_layout
from infinity_emb.backends.torch_outputs import RowLists
from infinity_emb.backends.torch_prepare import FeatureDoor
from infinity_emb.config import EngineArgs
from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.errors import BackendFailed, BadInput, DeviceOutOfMemory, InputTooLong
from infinity_emb.primitives import ModelKind
from tests.small_models import random_texts, save_small_model

pytestmark = pytest.mark.model


def opened(path: Path, dtype: torch.dtype = torch.float32) -> OpenedModel:
    model = SentenceTransformer(str(path), device="cpu", model_kwargs={"dtype": dtype})
    model.eval()
    return DoorMaker(Pipeline(model=model, layouts={}), ModelKind.embedder, ("dense",)).open()


def test_full_precision_computes_what_half_precision_cannot_hold(tmp_path: Path) -> None:
    """A weight of 60,000 is a number in float16 and twice of it is infinity."""
    path = save_small_model(tmp_path, "bert", normalize=False)
    half = opened(path, torch.float16)
    network = half.pipeline.model[0].model
    with torch.no_grad():
        network.encoder.layer[-1].intermediate.dense.bias.fill_(60_000)
        network.encoder.layer[-1].output.dense.weight.fill_(2)
    backend = TorchBackend(half.pipeline)
    batch = half.prepare(random_texts(2), InputOptions())

    rows = backend.launch(batch).collect()["dense"]
    exact = backend.launch(batch, full_precision=True).collect()["dense"]

    assert not np.isfinite(rows).all()
    assert np.isfinite(exact).all()
    assert next(half.pipeline.model.parameters()).dtype == torch.float16, "only a copy was converted"


def test_full_precision_is_computed_by_the_kernel_that_knows_it(tmp_path: Path) -> None:
    """The kernel of GPUs with half precision takes no float32."""
    path = save_small_model(tmp_path, "bert")
    half = opened(path, torch.bfloat16)
    network = half.pipeline.model[0].model
    network.set_attn_implementation(packed_attention.VARLEN)
    batch = half.prepare(random_texts(2), InputOptions())

    rows = TorchBackend(half.pipeline).launch(batch, full_precision=True).collect()["dense"]

    exact = SentenceTransformer(str(path), device="cpu")
    exact.load_state_dict(half.pipeline.model.state_dict())  # rounded
    expected = [exact.encode(text, show_progress_bar=False) for text in random_texts(2)]
    assert np.abs(rows - np.array(expected)).max() <= 2e-5
    assert network.config._attn_implementation == packed_attention.VARLEN, "only a copy was changed"


def test_full_precision_computes_each_item_alone_and_copies_the_model_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = opened(save_small_model(tmp_path, "bert"), torch.float16)
    batch = half.prepare(random_texts(4), InputOptions())
    copies, sizes = [], []
    copy_of, blocks_of = torch_backend._in_full_precision, torch_backend.blocks_of
    monkeypatch.setattr(
        torch_backend, "_in_full_precision", lambda each: copies.append(each) or copy_of(each)
    )
    monkeypatch.setattr(
        torch_backend, "blocks_of", lambda items, *rest: sizes.append(len(items)) or blocks_of(items, *rest)
    )

    rows = TorchBackend(half.pipeline).launch(batch, full_precision=True).collect()["dense"]

    assert sizes == [1, 1, 1, 1]
    assert len(copies) == 1
    assert len(rows) == 4


def test_full_precision_of_a_float32_model_is_the_model_itself(tmp_path: Path) -> None:
    model = opened(save_small_model(tmp_path, "bert"))
    backend = TorchBackend(model.pipeline)
    batch = model.prepare(random_texts(3), InputOptions())

    expected = np.concatenate([backend.launch([item]).collect()["dense"] for item in batch])

    assert np.array_equal(backend.launch(batch, full_precision=True).collect()["dense"], expected)


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
    made = opened(save_small_model(tmp_path, "bert"))
    batch = made.prepare(random_texts(2), InputOptions())
    monkeypatch.setattr(made.pipeline.model, "forward", lambda *_, **__: fail())

    with pytest.raises(expected) as caught:
        TorchBackend(made.pipeline).launch(batch)
    assert caught.type is expected


def test_texts_that_do_not_fit_into_memory_together_are_computed_in_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real model, with a device that has room for fewer tokens than its batches have."""
    path = save_small_model(tmp_path, "bert")
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(model_name_or_path=str(path), device="cpu", max_batch_tokens=4096, model_warmup=False)
    )
    model = engine._model.replicas[0]._pipeline.model  # type: ignore[attr-defined]
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
    assert engine.stats.num_out_of_memory >= 1
    assert engine.stats.num_failed_items == 0


def test_items_of_many_recipes_each_get_their_own_answer(tmp_path: Path) -> None:
    """Prompts of different length cannot share a pass where pooling leaves the prompt out."""
    model = opened(save_small_model(tmp_path, "bert", include_prompt=False))
    backend = TorchBackend(model.pipeline)
    texts = random_texts(12)
    prompts = ["", "word1 ", "word1 word2 word3 "]
    batch = [
        model.prepare([text], InputOptions(prompt=prompts[number % 3]))[0]
        for number, text in enumerate(texts)
    ]

    together = backend.launch(batch).collect()["dense"]

    assert len({item.recipe for item in batch}) == 3
    alone = np.concatenate([backend.launch([item]).collect()["dense"] for item in batch])
    assert np.abs(together - alone).max() <= 1e-6


def test_an_output_that_an_item_did_not_ask_for_is_finite(tmp_path: Path) -> None:
    model = opened(save_small_model(tmp_path, "bert"))
    backend = TorchBackend(model.pipeline)
    dense = model.prepare(["word1 word2"], InputOptions())[0]
    tokens = Encoded(dense.token_ids, recipe=replace(Recipe(), outputs=("multivector",)))

    with pytest.raises(KeyError):  # a plain embedder leaves no mask, so it is never asked for that
        backend.launch([dense, tokens])
    chunks = Encoded(dense.token_ids, recipe=Recipe(outputs=("chunks",)), spans=((1, 2), (2, 3)))
    answers = backend.launch([dense, chunks]).collect()

    assert answers["dense"].shape == (2, 32)
    assert np.isfinite(answers["dense"]).all()
    assert [rows.shape for rows in answers["chunks"]] == [(0, 0), (2, 32)]


def router_of(path: Path) -> OpenedModel:
    bert = SentenceTransformer(str(path), device="cpu")
    routes: dict[str, list[Any]] = {"query": list(bert), "document": list(bert)}
    model = SentenceTransformer(modules=[Router(routes, default_route="document")], device="cpu").eval()
    return DoorMaker(Pipeline(model=model, layouts={}), ModelKind.embedder, ("dense",)).open()


def test_passages_are_refused_where_the_pooling_cannot_be_replaced(tmp_path: Path) -> None:
    """A router pools inside of itself, and rows of texts would be taken for those of passages."""
    model = router_of(save_small_model(tmp_path, "bert"))
    options = InputOptions(task="document", outputs=("chunks",))
    with pytest.raises(BadInput, match="late chunking needs"):
        model.prepare([Passages(("word1 ", "word2"))], options)
    (item,) = model.prepare(["word1 word2"], options)
    with pytest.raises(BackendFailed, match="in chunks"):
        TorchBackend(model.pipeline).launch([replace(item, spans=((1, 2), (2, 3)))])


def test_a_wrong_number_of_rows_is_an_error() -> None:
    rows = RowLists(torch.zeros(3, 2), [1, 2]).entries()
    assert [each.shape for each in rows] == [(1, 2), (2, 2)]
    with pytest.raises(BackendFailed, match="got 3 rows"):
        RowLists(torch.zeros(3, 2), [1, 1]).entries()


def test_texts_cannot_be_cut_into_pieces_where_the_fast_door_was_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_small_model(tmp_path, "bert")
    assert opened(path).raw_tokenizer is not None
    read_alike = torch_doors._read_alike
    monkeypatch.setattr(
        torch_doors, "_read_alike", lambda a, b: a is b or (b[0].features and read_alike(a, b))
    )
    rejected = opened(path)
    assert isinstance(rejected.prepare.text_doors[None], FeatureDoor)
    assert rejected.raw_tokenizer is None


def slow_door(path: Path, task: str | None = None, **lengths: int) -> FeatureDoor:
    model = SentenceTransformer(str(path), device="cpu")
    for name, length in lengths.items():
        setattr(model[0], name, length)
    maker = DoorMaker(Pipeline(model=model, layouts={}), ModelKind.embedder, ("dense",))
    return maker._feature_door(model[0], task, None)


def test_the_slow_way_has_the_limit_of_each_task(tmp_path: Path) -> None:
    path = save_small_model(tmp_path, "bert")
    text, options = "word1 " * 12, InputOptions(truncation="off")
    with pytest.raises(InputTooLong, match="limit of 10 tokens"):
        slow_door(path, "query", query_length=10)([text], options)
    (item,) = slow_door(path, query_length=10)([text], options)
    assert item.num_tokens == 14


def test_the_slow_way_refuses_a_text_that_is_all_prompt(tmp_path: Path) -> None:
    door = slow_door(save_small_model(tmp_path, "bert", include_prompt=False, max_seq_length=10))
    (item,) = door(["word1"], InputOptions(prompt="word2 word3 "))
    assert item.recipe.prompt_length == 3
    with pytest.raises(BadInput, match="all of them the prompt's") as raised:
        replace(door, prompt_length=lambda prompt: 10)(["word1"], InputOptions(prompt="word2 " * 20))
    assert raised.value.position == 0


@pytest.mark.parametrize(
    ("ways", "is_padded"),
    [
        ({"image": "forward"}, True),
        ({"audio": "forward"}, True),
        ({"message": "forward", ("image", "text"): "forward"}, True),
        ({"image": "get_image_features"}, False),
        ({"message": "forward"}, False),
    ],
    ids=str,
)
def test_a_network_that_reads_media_like_its_texts_keeps_its_own_attention(
    ways: dict[Any, str], is_padded: bool, tmp_path: Path
) -> None:
    model = SentenceTransformer(str(save_small_model(tmp_path, "bert")), device="cpu").eval()
    transformer = model[0]
    transformer.modality_config |= {name: {"method": method} for name, method in ways.items()}
    layout, choice = choose_layout(Pipeline(model=model, layouts={}), transformer, Recipe(), max_tokens=None)
    assert choice.value == layout.form == ("padded" if is_padded else "packed")
    assert ("images or audio" in choice.reason) == is_padded
