"""pymilvus' functions for OpenAI and for text-embeddings-inference, which name no model."""

from pymilvus.model.dense import OpenAIEmbeddingFunction, TEIEmbeddingFunction
from pymilvus.model.reranker import TEIRerankFunction
from question import KEY, KEYED_URL, QUERY, TEXTS, URL, error_of, tell


def openai(model: str = "minilm", url: str = URL, key: str = "any") -> OpenAIEmbeddingFunction:
    return OpenAIEmbeddingFunction(model_name=model, base_url=f"{url}/v1", api_key=key, max_retries=0)


assert len(openai(url=KEYED_URL, key=KEY).encode_documents(["a"])) == 1
assert TEIEmbeddingFunction(URL).dim == 384
best = TEIRerankFunction(URL)(QUERY, TEXTS)
assert [each.text for each in best] == sorted(TEXTS, key=len, reverse=True)[:5]

tell(
    vectors={
        "OpenAI": [each.tolist() for each in openai().encode_documents(TEXTS)],
        "text-embeddings-inference": [
            each.tolist() for each in TEIEmbeddingFunction(URL).encode_documents(TEXTS)
        ],
    },
    errors={
        "unknown model": error_of(lambda: openai("other").encode_documents(["a"])),
        "wrong key": error_of(lambda: openai(url=KEYED_URL).encode_documents(["a"])),
        "no key, text-embeddings-inference": error_of(
            lambda: TEIEmbeddingFunction(KEYED_URL).encode_queries(["a"])
        ),
    },
)
