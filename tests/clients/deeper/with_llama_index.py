"""llama-index, ten texts a request."""

import asyncio

from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from question import KEY, KEYED_URL, TEXTS, URL, error_of, tell


def embedding(model: str = "minilm", url: str = URL, key: str = "any") -> OpenAILikeEmbedding:
    return OpenAILikeEmbedding(model_name=model, api_base=f"{url}/v1", api_key=key, max_retries=0)


assert embedding(url=KEYED_URL, key=KEY).get_text_embedding("a")

tell(
    vectors={
        "batches": embedding().get_text_embedding_batch(TEXTS),
        "asyncio": asyncio.run(embedding().aget_text_embedding_batch(TEXTS)),
    },
    errors={
        "unknown model": error_of(lambda: embedding("other").get_text_embedding("a")),
        "wrong key": error_of(lambda: embedding(url=KEYED_URL).get_text_embedding("a")),
    },
)
