r"""Choose the passages of a prompt: retrieve many by their vectors, then keep the best by a reranker.

    infinity_emb v2 --model-id sentence-transformers/all-MiniLM-L6-v2 --served-model-name embedder \
        --model-id BAAI/bge-reranker-base --served-model-name reranker &
    python examples/rerank_for_rag.py [http://localhost:7997]

A passage's vector is computed once, and comparing it costs nothing. A reranker reads question and passage
together, which is more accurate and costs a forward pass for each pair: it only sees what the vectors chose.
"""

import sys

import httpx
import numpy as np

QUESTION = "Which rivers flow through Munich?"
PASSAGES = [
    "The Isar flows through Munich from south to north.",
    "Munich is the capital of Bavaria.",
    "The Würm joins the Amper north of Munich and touches the west of the city.",
    "Hamburg lies on the Elbe.",
    "The Oktoberfest takes place on the Theresienwiese.",
    "A cat sleeps on the sofa.",
]


def main(url: str) -> None:
    """Print the prompt that a language model would be sent."""
    with httpx.Client(base_url=url, timeout=60) as client:
        best = rerank(client, retrieve(client, limit=4), limit=2)
    context = "\n".join(f"[{number}] {passage}" for number, passage in enumerate(best, 1))
    print(f"Answer from these passages only:\n{context}\n\nQuestion: {QUESTION}")


def retrieve(client: httpx.Client, limit: int) -> list[str]:
    """Return the passages whose vectors are the nearest to the question's."""
    body = {"model": "embedder", "input": [QUESTION, *PASSAGES]}
    answer = client.post("/embeddings", json=body).raise_for_status().json()
    question, *passages = np.array([item["embedding"] for item in answer["data"]])
    order = np.argsort(passages @ question)[::-1]
    return [PASSAGES[index] for index in order[:limit]]


def rerank(client: httpx.Client, passages: list[str], limit: int) -> list[str]:
    """Return the passages that a reranker finds the most relevant, best first."""
    body = {"model": "reranker", "query": QUESTION, "documents": passages, "top_n": limit}
    answer = client.post("/rerank", json=body).raise_for_status().json()
    return [passages[result["index"]] for result in answer["results"]]


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7997")
