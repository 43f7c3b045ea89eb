"""The servers that the clients talk to, and the option that says which clients are tested."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from tests.support.server_process import DEADLINE_S, serving

KEY = "sesame"
QUERY = "Where is Munich?"
MINILM = ("sentence-transformers/all-MiniLM-L6-v2", "torch")
# As docs/clients.md starts them, with stand-ins for two: half of a text's length is its score.
MODELS = {
    "minilm,text-embedding-3-small": MINILM,
    "reranker": ("debug?kind=reranker", "debugengine"),
    "classifier": ("debug?kind=classifier", "debugengine"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-clients", action="store_true", help="also test the clients of many packages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What every client is asked, and where; `keyed_url` is a server that wants KEY."""

    url: str
    keyed_url: str
    key: str
    texts: list[str]
    query: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the server answers to plain HTTP.

    vectors: (B, D) float32.
    similarities: (B,) float32, cosines of the query and each text.
    scores: (B,) float64, of the reranker.
    labels: of each text, the best first.
    """

    vectors: npt.NDArray[np.float32]
    similarities: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float64]
    labels: list[list[tuple[str, float]]]


@pytest.fixture(scope="session")
def asked() -> Iterator[Asked]:
    models = [part for name, (path, engine) in MODELS.items() for part in options_of(name, path, engine)]
    keyed = [
        *options_of("minilm", "debug?kind=embedder", "debugengine"),
        *options_of("reranker", *MODELS["reranker"]),
    ]
    with (
        serving("--no-model-warmup", *models) as url,
        serving("--no-model-warmup", *keyed, "--api-key", KEY) as keyed_url,
    ):
        yield Asked(url=url, keyed_url=keyed_url, key=KEY, texts=texts_of_all_lengths(), query=QUERY)


@pytest.fixture(scope="session")
def expected(asked: Asked) -> Expected:
    with httpx.Client(base_url=asked.url, timeout=DEADLINE_S) as client:
        embedded = client.post("/embeddings", json={"model": "minilm", "input": [asked.query, *asked.texts]})
        ranking = {"model": "reranker", "query": asked.query, "documents": asked.texts}
        ranked = client.post("/rerank", json=ranking).json()["results"]
        classified = client.post("/classify", json={"model": "classifier", "input": asked.texts}).json()
    rows = np.array([each["embedding"] for each in embedded.json()["data"]], dtype=np.float32)
    by_index = {each["index"]: each["relevance_score"] for each in ranked}
    return Expected(
        vectors=rows[1:],
        similarities=rows[1:] @ rows[0],
        scores=np.array([by_index[index] for index in range(len(asked.texts))]),
        labels=[[(each["label"], each["score"]) for each in member] for member in classified["data"]],
    )


def options_of(name: str, path: str, engine: str) -> list[str]:
    return ["--model-id", path, "--served-model-name", name, "--engine", engine]


def texts_of_all_lengths() -> list[str]:
    """More than any client sends at once, in no order of length; no two have as many characters."""
    words = ("river", "bank", "Munich", "München", "cat", "sleeps", "in", "the", "green", "garden", "over")
    generator = random.Random(0)
    texts = [" ".join(generator.choice(words) for _ in range(1 + number % 40)) for number in range(600)]
    of_each_length = {len(text): text for text in texts}
    return generator.sample(list(of_each_length.values()), 140)
