"""How far each engine and number format moves the default model's vectors from sentence-transformers' own.

    python -m benchmarks.accuracy [--engines torch,torch-int8] [--device cuda]

On 500 real texts, half short and half passages: the cosine of each text's two vectors, mean and lowest, and
how well its order of all other texts by similarity is kept (Spearman's rank correlation), mean and lowest.
The reference is computed in the same run, in float32. What an engine refuses is told. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.peers import SentenceTransformers
from benchmarks.rounds import machine
from benchmarks.texts import bundled_model_folder, load_texts
from benchmarks.variants import Variant, installed
from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from infinity_emb.errors import StartupError

NUM_SHORT, NUM_PASSAGES = 250, 250

Vectors = npt.NDArray[np.floating]


class Accuracy(NamedTuple):
    """Of all texts: cosine to the reference, and rank correlation of their neighbours."""

    mean_cosine: float
    lowest_cosine: float
    mean_rank_correlation: float
    lowest_rank_correlation: float


class Refused(Exception):
    """The engine does not serve this number format here."""


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engines", default="", help="Only these.")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    model = str(bundled_model_folder())
    short, passages = load_texts(num_short=NUM_SHORT, num_passages=NUM_PASSAGES)
    texts = short + passages
    expected = SentenceTransformers(model).embed(texts)
    print(f"{machine()}; {len(texts)} texts\n")
    print(f"{'':<24} {'mean cos':>10} {'lowest':>10} {'mean rank':>10} {'lowest':>10}")
    results: dict[str, object] = {}
    for variant in installed(given.engines, given.device):
        try:
            accuracy = compare(embed(variant, model, texts, given.device), expected)
        except Refused as exc:
            print(f"{variant.name:<24} refused: {exc}")
            results[variant.name] = {"refused": str(exc)}
        else:
            print(f"{variant.name:<24}" + "".join(f" {value:>10.6f}" for value in accuracy))
            results[variant.name] = accuracy._asdict()
    print("\n" + json.dumps({"machine": machine(), "accuracy": results}))


def embed(variant: Variant, model: str, texts: list[str], device: str) -> Vectors:
    """(N, D) float32 by one engine. Raises Refused."""

    async def run(engine: AsyncEmbeddingEngine) -> Vectors:
        async with engine:
            return np.array((await engine.embed(texts))[0])

    args = EngineArgs(
        model_name_or_path=model,
        engine=variant.engine,
        dtype=variant.dtype,
        device=device,
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
    """found, expected: (N, D), one row a text, in one order."""
    found, expected = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (found, expected))
    cosines = (found * expected).sum(axis=1)
    correlations = rank_correlations(found @ found.T, expected @ expected.T)
    return Accuracy(*(float(each) for kept in (cosines, correlations) for each in (kept.mean(), kept.min())))


def rank_correlations(found: Vectors, expected: Vectors) -> Vectors:
    """(N,), Spearman's of each row of two (N, N) tables of similarities, a text's own place left out."""
    num_texts = len(found)
    others = ~np.eye(num_texts, dtype=bool)
    ranks = [
        np.argsort(np.argsort(table[others].reshape(num_texts, -1), axis=1), axis=1).astype(np.float64)
        for table in (found, expected)
    ]
    centred = [each - each.mean(axis=1, keepdims=True) for each in ranks]
    lengths = [np.linalg.norm(each, axis=1) for each in centred]
    correlations: Vectors = (centred[0] * centred[1]).sum(axis=1) / (lengths[0] * lengths[1])
    return correlations


if __name__ == "__main__":
    main()
