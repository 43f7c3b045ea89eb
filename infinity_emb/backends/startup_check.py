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
    BatchOutputs,
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
    may_be_wrong: log a fault instead, as for a graph that the user has named.
    """
    if _TEXT_CAPABILITIES.isdisjoint(model.info.capabilities):
        return
    try:
        batches = [_encode_probes(model, task) for task in model.tasks]
    except BadInput as exc:
        logger.debug("the outputs of %s are not checked: %s", name, exc)
        return
    try:
        # On another thread, as computing may change settings of the calling one.
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            fault = executor.submit(_find_fault, model, batches).result()
    except Exception as exc:  # a model may raise anything on its first inputs
        text = one_line(exc, 400)
        raise StartupError(
            f"model {name!r} was loaded but cannot compute: {type(exc).__name__}: {text}"
        ) from exc
    if fault and may_be_wrong:
        logger.warning("model %r is served as requested, although %s", name, fault)
    elif fault:
        raise StartupError(
            f"model {name!r} cannot be served: {fault}, so its weights are damaged or not its own; download"
            " or save it again"
        )


def _encode_probes(model: LoadedModel, task: str | None) -> list[Encoded]:
    texts = _make_texts(model.vocabulary) if model.vocabulary else short_texts()[:_NUM_TEXTS]
    is_pair = model.info.kind is ModelKind.reranker
    inputs = as_inputs(texts, are_pairs=is_pair, query=texts[0])
    options = InputOptions(task=task, outputs=model.info.outputs or ("dense",))
    return model.encode(number_inputs(inputs), options)


def _make_texts(vocabulary: Vocabulary) -> list[str]:
    """Return texts of a few random words, two of each length."""
    generator = np.random.default_rng(0)
    rows = [
        generator.integers(vocabulary.size, size=_MIN_WORDS + number // 2) for number in range(_NUM_TEXTS)
    ]
    return [" ".join(vocabulary.decode([token_id]) for token_id in row.tolist()) for row in rows]


def _find_fault(model: LoadedModel, batches: Sequence[Sequence[Encoded]]) -> str:
    """Describe a fault that the outputs have in float32, too; "" if there is none."""
    replica = model.replicas[0]
    replica.prepare_thread()
    for batch in batches:
        for full_precision in (False, True):
            outputs = replica.launch(batch, full_precision=full_precision).result()
            # Texts that are not made of the vocabulary may consist of unknown words, and so be the same.
            fault = _describe_faults(outputs, batch if model.vocabulary is not None else [])
            if not fault:
                break
        if fault:
            return fault
    return ""


def _describe_faults(outputs: BatchOutputs, must_differ: Sequence[Encoded]) -> str:
    """Describe a fault of any output; those of the items in `must_differ` must not all be the same."""
    for name, output in outputs.items():
        what = "output" if len(outputs) == 1 else f"{name} output"
        fault = _describe_fault(_summarize(output), must_differ)
        if fault:
            return fault.format(what=what)
    return ""


def _summarize(output: Output) -> list[Float32Array]:
    """Return one vector for each input: the mean of several vectors, and the sparse one as it is."""
    return [
        np.stack([entry.indices.astype(np.float32), entry.values])
        if isinstance(entry, SparseVector)
        else np.atleast_2d(entry).mean(axis=0)
        for entry in output
    ]


def _describe_fault(vectors: list[Float32Array], must_differ: Sequence[Encoded]) -> str:
    if not any(np.isfinite(vector).all() for vector in vectors):
        return "every {what} is NaN or infinite"
    if not any(vector.any() for vector in vectors):
        return "every {what} is zero"
    groups = _group_by_length(must_differ, vectors)
    if groups and all(map(_are_alike, groups)):
        return "different texts have the same {what}"
    return ""


def _group_by_length(batch: Sequence[Encoded], vectors: Sequence[Float32Array]) -> list[list[Float32Array]]:
    """Return the vectors of different texts, grouped by the number of tokens.

    A broken model may ignore the words and still depend on their number. Without two texts of equal length,
    all vectors are one group.
    """
    different = {item.token_ids.tobytes(): vector for item, vector in zip(batch, vectors, strict=False)}
    by_length: dict[int, list[Float32Array]] = {}
    for ids, vector in different.items():
        by_length.setdefault(len(ids), []).append(vector)
    groups = [group for group in by_length.values() if len(group) > 1]
    return groups or ([list(different.values())] if len(different) > 1 else [])


def _are_alike(vectors: list[Float32Array]) -> bool:
    if len({vector.shape for vector in vectors}) > 1:
        return False
    table = np.stack(vectors)  # (B, D)
    return bool(np.ptp(table, axis=0).max() <= _MIN_DIFFERENCE * np.abs(table).max())
