"""A sentence-transformers pipeline as a backend: flat batches where the model allows, padded ones elsewhere.

All modules, pooling included, are sentence-transformers' own; `torch_inputs.py` lays the input out,
`torch_outputs.py` reads the answers. Knows nothing of how the model was chosen and loaded
(`torch_loading.py`), nor of queues.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from sentence_transformers.base.model import BaseModel
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import select_max_active_dims
from torch import Tensor

from infinity_emb.backends import packed_attention
from infinity_emb.backends.base import Encoded, Recipe
from infinity_emb.backends.torch_cores import SharedCores
from infinity_emb.backends.torch_device import free_memory, is_out_of_memory
from infinity_emb.backends.torch_inputs import Block, InputLayout, blocks_of
from infinity_emb.backends.torch_models import input_module, transformers_of
from infinity_emb.backends.torch_outputs import (
    DeviceColumn,
    Matrix,
    Part,
    RowLists,
    TokenRows,
    TorchLaunched,
    read_outputs,
)
from infinity_emb.errors import BackendFailed, DeviceOutOfMemory
from infinity_emb.primitives import OutputName


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A model and how it is driven.

    layouts: by task, for models whose route depends on it; None stands for every other task.
    dense_name: the feature that holds vectors, or scores.
    max_active_dims: keep so many of a sparse vector's largest values.
    """

    model: BaseModel
    layouts: Mapping[str | None, InputLayout]
    dense_name: str = "sentence_embedding"
    max_active_dims: int | None = None

    def layout_of(self, recipe: Recipe) -> InputLayout:
        """The layout of what is computed by this recipe."""
        return self.layouts.get(recipe.task) or self.layouts[None]


class TorchBackend:
    """One copy of a model on one device.

    cores: what the replicas on a CPU share; torch's own setting where it is None.
    """

    def __init__(self, pipeline: Pipeline, *, cores: SharedCores | None = None) -> None:
        self.num_in_flight = 2 if pipeline.model.device.type == "cuda" else 1
        self.shares_device = cores is not None
        self._pipeline = pipeline
        self._device = pipeline.model.device
        self._cores = cores

    def prepare_thread(self) -> None:
        """Set which GPU is this thread's current one."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def free_memory(self) -> None:
        """Empty torch's cache of the device's memory."""
        free_memory(self._device)

    def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> TorchLaunched:
        """Queue the batch on the device; on a CPU compute it.

        Raises DeviceOutOfMemory, and whatever else the model raises.
        full_precision: each item alone, so that none is touched by another's infinite values.
        """
        pipeline = _in_full_precision(self._pipeline) if full_precision else self._pipeline
        groups = [[at] for at in range(len(batch))] if full_precision else _groups_by_recipe(batch)
        num_tokens = sum(item.num_tokens for item in batch)
        share = self._cores.share(num_tokens) if self._cores else contextlib.nullcontext()
        with torch.inference_mode(), share, _naming_lack_of_memory():
            parts = [
                part
                for positions in groups
                for part in _compute_group(pipeline, batch, positions, self._device)
            ]
            return TorchLaunched.start(parts, len(batch), self._device)


@contextlib.contextmanager
def _naming_lack_of_memory() -> Iterator[None]:
    try:
        yield
    except RuntimeError as exc:  # which torch.OutOfMemoryError is, too
        if not is_out_of_memory(exc):
            raise
        raise DeviceOutOfMemory("does not fit into the device's memory; send a shorter one") from exc


def _groups_by_recipe(batch: Sequence[Encoded]) -> list[list[int]]:
    groups: dict[Recipe, list[int]] = {}
    for position, item in enumerate(batch):
        groups.setdefault(item.recipe, []).append(position)
    return list(groups.values())


def _compute_group(
    pipeline: Pipeline, batch: Sequence[Encoded], positions: list[int], device: torch.device
) -> Iterator[Part]:
    items = [batch[position] for position in positions]
    recipe = items[0].recipe
    for block in blocks_of(items, pipeline.layout_of(recipe), device):
        members = [items[at] for at in block.positions]
        columns = _compute_block(pipeline, block, members, recipe)
        yield Part([positions[at] for at in block.positions], columns)


def _compute_block(
    pipeline: Pipeline, block: Block, items: list[Encoded], recipe: Recipe
) -> dict[OutputName, DeviceColumn]:
    features = block.features
    if recipe.prompt_length:
        features["prompt_length"] = recipe.prompt_length
    options: dict[str, Any] = {"wanted_outputs": recipe.outputs}
    if pipeline.max_active_dims is not None:
        options["max_active_dims"] = pipeline.max_active_dims
    if recipe.task is not None:
        options["task"] = features["task"] = recipe.task
    if "chunks" in recipe.outputs:
        return {"chunks": _chunk_rows(pipeline.model, features, items, options)}
    if "tokens" in recipe.outputs:
        entered = input_module(pipeline.model, recipe.task)
        return {"tokens": _rows_of_tokens(_run_module(entered, features, options), items)}
    features = pipeline.model(features, **options)
    if "sparse" in recipe.outputs and pipeline.max_active_dims is not None:
        features[pipeline.dense_name] = select_max_active_dims(
            features[pipeline.dense_name], max_active_dims=pipeline.max_active_dims
        )
    columns = read_outputs(features, items, recipe.outputs, dense_name=pipeline.dense_name)
    dense = columns.get("dense")
    if isinstance(dense, Matrix):
        columns["dense"] = Matrix(_truncated(pipeline.model, dense.rows))
    if "maxsim" in recipe.outputs:
        columns["maxsim"] = _maxsim(pipeline.model, features, items)
    return columns


def _truncated(model: BaseModel, rows: Tensor) -> Tensor:
    """sentence-transformers cuts to the model's own `truncate_dim` after all modules."""
    dim = getattr(model, "truncate_dim", None)
    return rows[:, :dim] if dim else rows


def _chunk_rows(
    model: BaseModel, features: dict[str, Any], items: list[Encoded], options: dict[str, Any]
) -> RowLists:
    """The pipeline with the mean of each span in the place of its pooling.

    Source: Günther et al. 2024, Late Chunking, https://arxiv.org/abs/2409.04701
    """
    spans = [item.spans or () for item in items]
    if not any(isinstance(module, Pooling) for module in model):
        raise BackendFailed("cannot be computed in chunks: the model does not pool its tokens in a module")
    for module in model:
        if isinstance(module, Pooling):
            token_rows = _rows_of_items(features, items)
            features["sentence_embedding"] = torch.stack(
                [
                    rows[start:end].float().mean(dim=0).to(rows.dtype)
                    for rows, item_spans in zip(token_rows, spans, strict=True)
                    for start, end in item_spans
                ]
            )  # (all spans, H)
        else:
            features = _run_module(module, features, options)
    return RowLists(_truncated(model, features["sentence_embedding"]), [len(each) for each in spans])


def _run_module(module: Any, features: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """One module of the pipeline alone, given those of the options that it takes."""
    wanted = getattr(module, "forward_kwargs", ())
    after: dict[str, Any] = module(features, **{k: v for k, v in options.items() if k in wanted})
    return after


def _rows_of_tokens(features: dict[str, Any], items: list[Encoded]) -> DeviceColumn:
    """(n, H) per item, from flat or padded token embeddings."""
    rows: Tensor = features["token_embeddings"]
    if "cu_seq_lens_q" in features:
        return RowLists(rows[0], [len(item.token_ids) for item in items])
    return TokenRows(rows, features["attention_mask"])


def _rows_of_items(features: dict[str, Any], items: list[Encoded]) -> list[Tensor]:
    """(n, H) per item, from flat or padded token embeddings."""
    rows: Tensor = features["token_embeddings"]
    lengths = [len(item.token_ids) for item in items]
    if "cu_seq_lens_q" in features:
        return list(torch.split(rows[0], lengths))
    mask = features["attention_mask"].bool()
    return [each[kept] for each, kept in zip(rows, mask, strict=True)]


def _maxsim(model: BaseModel, features: dict[str, Any], items: list[Encoded]) -> Matrix:
    """(B, 1): each document's similarity to its query, by the model's own function."""
    masks = features["attention_mask"].bool()
    documents = [rows[kept] for rows, kept in zip(features["token_embeddings"], masks, strict=True)]
    # Torch's default number format is another one for as long as some other model is loaded.
    scores = torch.zeros(len(items), dtype=torch.float32, device=documents[0].device)
    by_query: dict[int, list[int]] = {}
    for position, item in enumerate(items):
        by_query.setdefault(id(item.query_rows), []).append(position)
    similarity: Callable[..., Tensor] = model.similarity  # type: ignore[assignment]  # of MultiVectorEncoder
    for positions in by_query.values():
        query_rows = items[positions[0]].query_rows
        assert query_rows is not None
        query = torch.from_numpy(query_rows).to(documents[0].device, documents[0].dtype)
        scores[positions] = similarity([query], [documents[at] for at in positions])[0].float()
    return Matrix(scores[:, None])


def _in_full_precision(pipeline: Pipeline) -> Pipeline:
    """A float32 copy for one batch, where the model is in another format. Costs its memory for that long."""
    networks = [transformer.model for transformer in transformers_of(pipeline.model)]
    is_quantized = any(getattr(network, "number_format", None) is torch.int8 for network in networks)
    # What is quantised cannot be turned back: its float32 weights are gone.
    if is_quantized or all(each.dtype == torch.float32 for each in pipeline.model.parameters()):
        return pipeline
    model = copy.deepcopy(pipeline.model).float()
    for transformer in transformers_of(model):
        if transformer.model.config._attn_implementation == packed_attention.VARLEN:
            # The other kernel knows no float32.
            transformer.model.set_attn_implementation(packed_attention.GROUPED)
    return replace(pipeline, model=model)
