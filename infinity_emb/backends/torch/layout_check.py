"""Compare the vectors or scores of a layout with those of single texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from infinity_emb.backends.accuracy import compare, find_bound, to_dense_all
from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.forward import TorchModel
from infinity_emb.backends.torch.input_layout import InputLayout
from infinity_emb.backends.torch.st_introspection import find_transformers
from infinity_emb.items import Encoded, Float32Array

# Least width of dense copies of sparse vectors, so that those of two batches can be compared.
_MIN_SPARSE_WIDTH = 2**18


def compute_vectors(torch_model: TorchModel, layout: InputLayout, batch: list[Encoded]) -> Float32Array:
    """Return (N, D): a vector or the scores of each item, or the vectors of all its tokens."""
    spec = batch[0].spec
    layouts = {**torch_model.layouts, None: layout, spec.task: layout}
    outputs = TorchBackend(replace(torch_model, layouts=layouts)).launch(batch).result()
    entries = to_dense_all(list(outputs[spec.outputs[0]]), min_width=_MIN_SPARSE_WIDTH)
    return np.concatenate([np.atleast_2d(entry) for entry in entries])


def measure_difference(found: Float32Array, expected: Float32Array, dense_name: str) -> float:
    """Return the largest difference: 1 - cosine of vectors, or of scores relative to the largest.

    At least 1 if one of two vectors is zero or not finite; infinite if a score is not finite or all are 0.
    """
    if dense_name != "scores":
        cosine = compare([found], [expected]).min_cosine
        assert cosine is not None
        return max(0.0, 1 - cosine)
    # Not relative to 1: all raw scores may be far below it, and then a wrong mask would pass.
    return compare([found], [expected], are_scores=True, min_scale=0).max_difference


def get_tolerance(torch_model: TorchModel) -> float:
    """Return the largest difference that rounding can cause."""
    bound = find_bound("batching", find_dtype_name(torch_model))
    return bound.max_score_difference if torch_model.dense_name == "scores" else 1 - bound.min_cosine


def find_dtype_name(torch_model: TorchModel) -> str:
    """Return the dtype that a model computes in: that of its weights, or the one it was quantized to."""
    networks = [transformer.model for transformer in find_transformers(torch_model.model)]
    # Set on quantized networks and on those of other libraries.
    dtypes = [getattr(network, "number_format", None) for network in networks]
    weights = (weight.dtype for weight in torch_model.model.parameters())
    dtype = next(filter(None, dtypes), None) or next(weights, torch.float32)  # a bag of words has no weights
    return str(dtype).removeprefix("torch.")
