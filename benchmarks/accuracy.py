"""Compare the default model's vectors, by each engine and dtype, with those of sentence-transformers.

    python -m benchmarks.accuracy [--engines torch,torch-int8] [--device cuda]

500 texts, half short and half passages. Prints the mean and lowest cosine of each text's two vectors, and of
its similarities to the other texts the mean and lowest rank correlation (Spearman), the share of the ten
highest that stay, and the largest change. The reference is computed in the same run, in float32. Variants
that an engine refuses are listed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.rounds import describe_machine
from benchmarks.subjects import SentenceTransformers
from benchmarks.texts import bundled_model_folder, load_texts
from benchmarks.variants import Variant, select_variants
from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from infinity_emb.backends.accuracy import compare as measure_accuracy
from infinity_emb.backends.closeness import Scores, compare_texts, measure_change
from infinity_emb.errors import StartupError
from infinity_emb.types import Device, Dtype, InferenceEngine

NUM_SHORT, NUM_PASSAGES = 250, 250

Vectors = npt.NDArray[Any]


class Accuracy(NamedTuple):
    """Hold the cosine to the reference and the agreement of similarities to other texts, over all texts."""

    mean_cosine: float
    lowest_cosine: float
    mean_rank_correlation: float
    lowest_rank_correlation: float
    top_10_overlap: float
    largest_score_change: float


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
    columns = ("mean cos", "lowest", "mean rank", "lowest", "top 10", "change")
    print(f"{'':<24}" + "".join(f" {column:>10}" for column in columns))
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
    accuracy = measure_accuracy(list(found), list(expected))
    change = measure_change(*(Scores(compare_texts(list(vectors))) for vectors in (found, expected)))
    assert accuracy.mean_cosine is not None
    assert accuracy.min_cosine is not None
    return Accuracy(
        mean_cosine=accuracy.mean_cosine,
        lowest_cosine=accuracy.min_cosine,
        mean_rank_correlation=change.mean_rank,
        lowest_rank_correlation=change.lowest_rank,
        top_10_overlap=change.top_overlap,
        largest_score_change=change.max_change,
    )


if __name__ == "__main__":
    main()
