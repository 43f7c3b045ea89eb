"""chromadb's embedding functions for OpenAI and for text-embeddings-inference."""

from chromadb.utils.embedding_functions import HuggingFaceEmbeddingServer, OpenAIEmbeddingFunction
from question import KEY, KEYED_URL, TEXTS, URL, error_of, tell


def openai(model: str = "minilm", url: str = URL, **options: object) -> OpenAIEmbeddingFunction:
    return OpenAIEmbeddingFunction(model_name=model, api_base=f"{url}/v1", **{"api_key": "any", **options})


assert len(openai(url=KEYED_URL, api_key=KEY)(["a"])) == 1
[short] = openai("text-embedding-3-small", dimensions=8)(["a"])  # sent for names like this one alone
assert short.shape == (8,)

tell(
    vectors={
        "OpenAI": [each.tolist() for each in openai()(TEXTS)],
        "text-embeddings-inference": [
            each.tolist() for each in HuggingFaceEmbeddingServer(url=f"{URL}/embed")(TEXTS)
        ],
    },
    errors={
        "unknown model": error_of(lambda: openai("other")(["a"])),
        "wrong key": error_of(lambda: openai(url=KEYED_URL)(["a"])),
    },
)
