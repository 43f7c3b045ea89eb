"""Rank documents by relevance to a query with httpx and a running server.

    infinity_emb v2 --model-id BAAI/bge-reranker-base &
    python examples/rerank_httpx.py [http://localhost:7997]

Any model that embeds texts can rank too, including the default one.
"""

import sys

import httpx

QUERY = "Where is Munich?"
DOCUMENTS = ["A cat sleeps on the sofa.", "Munich is a city in Bavaria.", "Bavaria is a state of Germany."]


def main(url: str) -> None:
    """Results come sorted; `index` is the place of the document in the request."""
    body = {"query": QUERY, "documents": DOCUMENTS, "return_documents": True, "top_n": 2}
    response = httpx.post(f"{url}/rerank", json=body, timeout=60)
    if response.is_error:  # the message says what was wrong, and what to do
        sys.exit(response.json()["error"]["message"])
    for result in response.json()["results"]:
        print(f"{result['relevance_score']:6.3f}  [{result['index']}] {result['document']}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7997")
