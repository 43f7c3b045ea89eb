"""Use the server in LangChain: embeddings for a vector store, and reranking behind its retriever.

infinity_emb v2 &
pip install langchain-openai httpx
python examples/langchain_search.py [http://localhost:7997]
"""

import sys

import httpx
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import OpenAIEmbeddings

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = ["The river Isar flows through Munich.", "A cat sleeps on the sofa.", "Munich is in Bavaria."]
QUESTION = "What is the name of the river?"


def main(url: str) -> None:
    """Without its last argument, OpenAIEmbeddings would send token ids of OpenAI's models."""
    embeddings = OpenAIEmbeddings(
        model=MODEL, base_url=f"{url}/v1", api_key="unused", check_embedding_ctx_length=False
    )
    retriever = InMemoryVectorStore.from_texts(TEXTS, embeddings).as_retriever(search_kwargs={"k": 2})

    def rerank(found: list[Document]) -> list[Document]:
        body = {"query": QUESTION, "documents": [each.page_content for each in found], "top_n": 1}
        answer = httpx.post(f"{url}/rerank", json=body, timeout=60).raise_for_status().json()
        return [found[result["index"]] for result in answer["results"]]

    chain = retriever | RunnableLambda(rerank)
    for document in chain.invoke(QUESTION):
        print(document.page_content)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7997")
