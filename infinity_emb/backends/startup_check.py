"""Compute a few texts with a loaded model, and refuse it if its outputs can only be wrong.

The texts are made of the model's own vocabulary: words of another language would all be unknown to it.
"""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Sequence

import numpy as np

from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.probes import as_inputs, short_texts
from infinity_emb.errors import BadInput, StartupError, one_line
from infinity_emb.items import (
    Encoded,
    Float32Array,
    InputOptions,
    Output,
    SparseVector,
    number_inputs,
)
from infinity_emb.preprocessing.vocabulary import Vocabulary
from infinity_emb.types import ModelKind

logger = logging.getLogger("infinity_emb")

_NUM_TEXTS = 6
_MIN_WORDS = 4
_TEXT_CAPABILITIES = frozenset({"embed", "embed_sparse", "rerank", "classify"})
# Relative to the largest value; float32 keeps seven digits.
_MIN_DIFFERENCE = 1e-6


def check_outputs_differ(model: LoadedModel, name: str, *, may_be_wrong: bool = False) -> None:
    """Raise StartupError if all outputs are NaN or infinite, zero, or the same for different texts.

    name: of the model, for the message.
    may_be_wrong: whether they are only logged, as of a graph that the user has named.
    """
    if _TEXT_CAPABILITIES.isdisjoint(model.info.capabilities):
        return
    try:
        batch = _encode_probes(model)
    except BadInput as exc:
        logger.debug("the outputs of %s are not checked: %s", name, exc)
        return
    try:
        # On another thread, as computing may change settings of the calling one.
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            fault = executor.submit(_find_fault, model, batch).result()
    except Exception as exc:  # a model may raise anything on its first inputs
        text = one_line(exc, 400)
        raise StartupError(
            f"model {name!r} was loaded but cannot compute: {type(exc).__name__}: {text}"
        ) from exc
    if fault and may_be_wrong:
        logger.warning("model %r is served as asked, though %s", name, fault)
    elif fault:
        raise StartupError(
            f"model {name!r} cannot be served: {fault}, so its weights are damaged or not its own; download"
            " or save it again"
        )


def _encode_probes(model: LoadedModel) -> list[Encoded]:
    texts = _make_texts(model.vocabulary) if model.vocabulary else short_texts()[:_NUM_TEXTS]
    is_pair = model.info.kind is ModelKind.reranker
    inputs = as_inputs(texts, are_pairs=is_pair, query=texts[0])
    options = InputOptions(task=model.sample_task, outputs=(model.info.outputs or ("dense",))[:1])
    return model.encode(number_inputs(inputs), options)


def _make_texts(vocabulary: Vocabulary) -> list[str]:
    """Return texts of a few random words, of different lengths."""
    generator = np.random.default_rng(0)
    rows = [generator.integers(vocabulary.size, size=_MIN_WORDS + number) for number in range(_NUM_TEXTS)]
    return [" ".join(vocabulary.decode([token_id]) for token_id in row.tolist()) for row in rows]


def _find_fault(model: LoadedModel, batch: Sequence[Encoded]) -> str:
    """Describe what is wrong with the outputs in float32, "" if they are right as computed."""
    replica = model.replicas[0]
    replica.prepare_thread()
    # Texts that are not made of the vocabulary may all be unknown words.
    must_differ = model.vocabulary is not None and len({item.token_ids.tobytes() for item in batch}) > 1
    for full_precision in (False, True):
        (output,) = replica.launch(batch, full_precision=full_precision).result().values()
        fault = _describe_fault(_summarize(output), must_differ=must_differ)
        if not fault:
            return ""
    return fault


def _summarize(output: Output) -> list[Float32Array]:
    """Return one vector for each input: the mean of several vectors, and the sparse one as it is."""
    return [
        np.stack([entry.indices.astype(np.float32), entry.values])
        if isinstance(entry, SparseVector)
        else np.atleast_2d(entry).mean(axis=0)
        for entry in output
    ]


def _describe_fault(vectors: list[Float32Array], *, must_differ: bool) -> str:
    if not any(np.isfinite(vector).all() for vector in vectors):
        return "every output is NaN or infinite"
    if not any(vector.any() for vector in vectors):
        return "every output is zero"
    if must_differ and _are_alike(vectors):
        return "different texts have the same output"
    return ""


def _are_alike(vectors: list[Float32Array]) -> bool:
    if len({vector.shape for vector in vectors}) > 1:
        return False
    table = np.stack(vectors)  # (B, D)
    return bool(np.ptp(table, axis=0).max() <= _MIN_DIFFERENCE * np.abs(table).max())
