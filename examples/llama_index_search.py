"""Use the server in LlamaIndex: an index of a few nodes, and its retriever.

infinity_emb v2 &
pip install llama-index-core llama-index-embeddings-openai-like
python examples/llama_index_search.py [http://localhost:7997]
"""

import sys

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = ["The river Isar flows through Munich.", "A cat sleeps on the sofa.", "Munich is in Bavaria."]


def main(url: str) -> None:
    """Requests carry 64 texts each, as `embed_batch_size` says; the default of 10 leaves a server idle."""
    embedding = OpenAILikeEmbedding(
        model_name=MODEL, api_base=f"{url}/v1", api_key="unused", embed_batch_size=64
    )
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS], embed_model=embedding)
    for found in index.as_retriever(similarity_top_k=1).retrieve("What is the name of the river?"):
        print(f"{found.score:.2f}  {found.text}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7997")
