"""Compare the default model's vectors, by each engine and dtype, with those of sentence-transformers.

    python -m benchmarks.accuracy [--engines torch,torch-int8] [--device cuda]

500 texts, half short and half passages. Prints the mean and lowest cosine of each text's two vectors, and the
mean and lowest rank correlation (Spearman) of its similarities to the other texts. The reference is computed
in the same run, in float32. Variants that an engine refuses are listed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.peers import SentenceTransformers
from benchmarks.rounds import describe_machine
from benchmarks.texts import bundled_model_folder, load_texts
from benchmarks.variants import Variant, select_variants
from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.types import Device, Dtype, InferenceEngine

NUM_SHORT, NUM_PASSAGES = 250, 250

Vectors = npt.NDArray[np.floating]


class Accuracy(NamedTuple):
    """Hold the cosine to the reference and the rank correlation of neighbours, over all texts."""

    mean_cosine: float
    lowest_cosine: float
    mean_rank_correlation: float
    lowest_rank_correlation: float


class Refused(Exception):
    """Report that the engine does not serve this dtype on this machine."""


def main() -> None:
    """Compare all variants and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engines", default="", help="names separated by commas (default: all)")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    model = str(bundled_model_folder())
    short, passages = load_texts(num_short=NUM_SHORT, num_passages=NUM_PASSAGES)
    texts = short + passages
    expected = SentenceTransformers(model).embed(texts)
    print(f"{describe_machine()}; {len(texts)} texts\n")
    print(f"{'':<24} {'mean cos':>10} {'lowest':>10} {'mean rank':>10} {'lowest':>10}")
    results: dict[str, object] = {}
    for variant in select_variants(options.engines, options.device):
        try:
            accuracy = compare(embed(variant, model, texts, options.device), expected)
        except Refused as exc:
            print(f"{variant.name:<24} refused: {exc}")
            results[variant.name] = {"refused": str(exc)}
        else:
            print(f"{variant.name:<24}" + "".join(f" {value:>10.6f}" for value in accuracy))
            results[variant.name] = accuracy._asdict()
    print("\n" + json.dumps({"machine": describe_machine(), "accuracy": results}))


def embed(variant: Variant, model: str, texts: list[str], device: str) -> Vectors:
    """Embed with one engine. Returns (N, D) float32. Raises Refused."""

    async def run(engine: AsyncEmbeddingEngine) -> Vectors:
        async with engine:
            return np.array((await engine.embed(texts))[0])

    args = EngineArgs(
        model_name_or_path=model,
        engine=InferenceEngine(variant.engine),
        dtype=Dtype(variant.dtype),
        device=Device(device),
        model_warmup=False,
    )
    try:
        engine = AsyncEmbeddingEngine.from_args(args)
    except StartupError as exc:
        raise Refused(str(exc)) from exc
    if engine.info.dtype != variant.dtype:
        raise Refused(engine.info.dtype_reason)
    return asyncio.run(run(engine))


def compare(found: Vectors, expected: Vectors) -> Accuracy:
    """Compare two sets of vectors.

    found, expected: (N, D), one row per text, in the same order.
    """
    found, expected = (_normalize(vectors) for vectors in (found, expected))
    cosines = (found * expected).sum(axis=1)
    correlations = correlate_ranks(found @ found.T, expected @ expected.T)
    return Accuracy(
        float(cosines.mean()), float(cosines.min()), float(correlations.mean()), float(correlations.min())
    )


def _normalize(vectors: Vectors) -> Vectors:
    normalized: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normalized


def correlate_ranks(found: Vectors, expected: Vectors) -> Vectors:
    """Return (N,): Spearman's correlation of the rows of two (N, N) similarity matrices."""
    num_texts = len(found)
    others = ~np.eye(num_texts, dtype=bool)
    ranks = [
        np.argsort(np.argsort(similarities[others].reshape(num_texts, -1), axis=1), axis=1).astype(np.float64)
        for similarities in (found, expected)
    ]
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    lengths = [np.linalg.norm(rank, axis=1) for rank in centred]
    correlations: Vectors = (centred[0] * centred[1]).sum(axis=1) / (lengths[0] * lengths[1])
    return correlations


if __name__ == "__main__":
    main()
