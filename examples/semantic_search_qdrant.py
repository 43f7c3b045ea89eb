"""Search texts by meaning, with vectors in Qdrant, which runs inside this process.

    infinity_emb v2 &
    pip install qdrant-client httpx
    python examples/semantic_search_qdrant.py [http://localhost:7997]

`QdrantClient(path="folder")` keeps the vectors; a server of Qdrant needs its address instead.
"""

import sys

import httpx
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams

TEXTS = [
    "The Isar flows through Munich.",
    "A cat sleeps on the sofa.",
    "Bread is made from flour, water, salt and yeast.",
    "The stock market fell by three per cent.",
]


def embed(url: str, texts: list[str], input_type: str) -> list[list[float]]:
    """Let the model use its prompt for queries or documents, if it has any."""
    body = {"input": texts, "input_type": input_type}
    response = httpx.post(f"{url}/embeddings", json=body, timeout=60).raise_for_status()
    return [item["embedding"] for item in response.json()["data"]]


def main(url: str) -> None:
    """Store the vectors with their texts, and look for the nearest ones."""
    vectors = embed(url, TEXTS, "document")
    store = QdrantClient(":memory:")
    store.create_collection("texts", VectorParams(size=len(vectors[0]), distance=Distance.COSINE))
    points = [
        PointStruct(id=i, vector=vector, payload={"text": TEXTS[i]}) for i, vector in enumerate(vectors)
    ]
    store.upsert("texts", points)
    for query in ("Which river is in Bavaria?", "How do I bake?"):
        (vector,) = embed(url, [query], "query")
        (found,) = store.query_points("texts", query=vector, limit=1).points
        print(f"{query}  {found.score:.2f}  {found.payload['text']}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7997")
