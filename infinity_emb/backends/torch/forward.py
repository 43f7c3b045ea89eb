"""Compute one block of inputs with the modules of a sentence-transformers model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from sentence_transformers.base.model import BaseModel
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import select_max_active_dims
from torch import Tensor

from infinity_emb.backends.torch.blocks import Block
from infinity_emb.backends.torch.input_layout import InputLayout
from infinity_emb.backends.torch.outputs import (
    ConcatenatedVectors,
    DenseOutput,
    DeviceOutput,
    MaskedVectors,
    read_outputs,
    split_token_embeddings,
)
from infinity_emb.backends.torch.st_introspection import find_transformers, get_input_module
from infinity_emb.errors import BackendFailed
from infinity_emb.items import Encoded, ForwardSpec
from infinity_emb.types import OutputName


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchModel:
    """A sentence-transformers model, the layout of its inputs and the place of its outputs.

    layouts: by task, for models whose route depends on it; None is the default.
    dense_name: the feature that holds vectors or scores.
    max_active_dims: how many of a sparse vector's largest values are kept.
    """

    model: BaseModel
    layouts: Mapping[str | None, InputLayout]
    dense_name: str = "sentence_embedding"
    max_active_dims: int | None = None

    def get_layout(self, spec: ForwardSpec) -> InputLayout:
        """Return the layout of inputs with this spec."""
        layout = self.layouts.get(spec.task) or self.layouts[None]
        if layout.pooled_token is None or (spec.outputs == ("dense",) and not spec.prompt_length):
            return layout
        return replace(layout, pooled_token=None)

    @property
    def attention_kernels(self) -> set[str | None]:
        """The names by which transformers knows the attention of each network."""
        return {each.model.config._attn_implementation for each in find_transformers(self.model)}


def compute_block(
    torch_model: TorchModel, block: Block, items: list[Encoded], spec: ForwardSpec
) -> dict[OutputName, DeviceOutput]:
    """Run the model on a block and return the outputs of the spec.

    items: the block's items, in its order.
    """
    model = torch_model.model
    features = block.features if items[0].features is None else _match_dtype(block.features, model)
    options: dict[str, Any] = {"wanted_outputs": spec.outputs}
    if spec.prompt_length:
        features["prompt_length"] = spec.prompt_length
    if torch_model.max_active_dims is not None:
        options["max_active_dims"] = torch_model.max_active_dims
    if spec.task is not None:
        options["task"] = features["task"] = spec.task
    if "chunks" in spec.outputs:
        return {"chunks": _compute_chunks(model, features, items, options)}
    if "tokens" in spec.outputs:
        features = _run_module(get_input_module(model, spec.task), features, options)
        return {"tokens": _read_token_embeddings(features, items)}
    features = model(features, **options)
    if "sparse" in spec.outputs and torch_model.max_active_dims is not None:
        features[torch_model.dense_name] = select_max_active_dims(
            features[torch_model.dense_name], max_active_dims=torch_model.max_active_dims
        )
    if "dense" in spec.outputs:
        features[torch_model.dense_name] = _truncate(model, features[torch_model.dense_name])
    outputs = read_outputs(features, spec.outputs, dense_name=torch_model.dense_name)
    if "maxsim" in spec.outputs:
        outputs["maxsim"] = _compute_maxsim(model, features, items)
    return outputs


def _match_dtype(features: dict[str, Any], model: BaseModel) -> dict[str, Any]:
    """Convert float32 features, such as a clip's spectrum, to the weights' dtype; not every network does."""
    dtype = next((weight.dtype for weight in model.parameters()), torch.float32)
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.dtype == torch.float32 else value
        for name, value in features.items()
    }


def _truncate(model: BaseModel, vectors: Tensor) -> Tensor:
    """Truncate to the model's own `truncate_dim`, as sentence-transformers does after all modules."""
    dim = getattr(model, "truncate_dim", None)
    return vectors[:, :dim] if dim else vectors


def _compute_chunks(
    model: BaseModel, features: dict[str, Any], items: list[Encoded], options: dict[str, Any]
) -> ConcatenatedVectors:
    """Run the modules with the average of each span in place of pooling.

    Source: Günther et al. 2024, Late Chunking, https://arxiv.org/abs/2409.04701
    """
    spans_by_item = [item.spans or () for item in items]
    if not any(isinstance(module, Pooling) for module in model):
        raise BackendFailed("cannot be computed in chunks: the model does not pool its tokens in a module")
    for module in model:
        if isinstance(module, Pooling):
            embeddings = split_token_embeddings(features, items)
            averages = [
                vectors[start:end].float().mean(dim=0).to(vectors.dtype)
                for vectors, spans in zip(embeddings, spans_by_item, strict=True)
                for start, end in spans
            ]
            features["sentence_embedding"] = torch.stack(averages)  # (all spans, H)
        else:
            features = _run_module(module, features, options)
    vectors = _truncate(model, features["sentence_embedding"])
    return ConcatenatedVectors(vectors, [len(spans) for spans in spans_by_item])


def _run_module(module: Any, features: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Run one module with the options that it takes."""
    names = getattr(module, "forward_kwargs", ())
    output: dict[str, Any] = module(
        features, **{name: value for name, value in options.items() if name in names}
    )
    return output


def _read_token_embeddings(features: dict[str, Any], items: list[Encoded]) -> DeviceOutput:
    embeddings: Tensor = features["token_embeddings"]
    if "cu_seq_lens_q" in features:
        return ConcatenatedVectors(embeddings[0], [len(item.token_ids) for item in items])
    return MaskedVectors(embeddings, features["attention_mask"])


def _compute_maxsim(model: BaseModel, features: dict[str, Any], items: list[Encoded]) -> DenseOutput:
    """Return (B, 1): the similarity of each document to its query, by the model's own function."""
    masks = features["attention_mask"].bool()
    documents = [vectors[mask] for vectors, mask in zip(features["token_embeddings"], masks, strict=True)]
    # torch's default dtype differs while another model is being loaded.
    scores = torch.zeros(len(items), dtype=torch.float32, device=documents[0].device)
    positions_by_query: dict[int, list[int]] = {}
    for position, item in enumerate(items):
        positions_by_query.setdefault(id(item.query_vectors), []).append(position)
    similarity: Callable[..., Tensor] = model.similarity  # type: ignore[assignment]  # of MultiVectorEncoder
    for positions in positions_by_query.values():
        vectors = items[positions[0]].query_vectors
        assert vectors is not None
        query = torch.from_numpy(vectors).to(documents[0].device, documents[0].dtype)
        scores[positions] = similarity([query], [documents[index] for index in positions])[0].float()
    return DenseOutput(scores[:, None])
