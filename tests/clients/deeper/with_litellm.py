"""litellm's providers for Infinity, Cohere and OpenAI; for the first, it renames dimensions.

For rankings its provider for Infinity reads texts, and so needs a base URL without /v1.
"""

import asyncio
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise it is downloaded at the import

import litellm
from question import KEY, KEYED_URL, QUERY, TEXTS, URL, error_of, tell

litellm.suppress_debug_info = True


def embed(model: str, url: str = URL, **options: object) -> list[list[float]]:
    answer = litellm.embedding(
        model=model, **{"input": TEXTS, "api_base": url, "api_key": "any", "max_retries": 0, **options}
    )
    return [each["embedding"] for each in answer.data]


def rerank(model: str, url: str = URL, **options: object) -> list[list[float]]:
    answer = litellm.rerank(
        model=model, query=QUERY, documents=TEXTS, **{"api_base": url, "api_key": "any", **options}
    )
    return [[each["index"], each["relevance_score"]] for each in answer.results]


with_texts = litellm.rerank(
    model="infinity/reranker", query=QUERY, documents=TEXTS, top_n=1, return_documents=True, api_base=URL
).results[0]
assert with_texts["document"]["text"] == TEXTS[with_texts["index"]]
assert len(embed("infinity/minilm", dimensions=8)[0]) == 8
assert embed("infinity/minilm", KEYED_URL, api_key=KEY)
in_asyncio = asyncio.run(litellm.aembedding(model="infinity/minilm", input=TEXTS, api_base=URL))

tell(
    vectors={
        "infinity": embed("infinity/minilm"),
        "infinity, /v1": embed("infinity/minilm", f"{URL}/v1"),
        "infinity, asyncio": [each["embedding"] for each in in_asyncio.data],
        "cohere": embed("cohere/minilm", f"{URL}/v2/embed", input_type="search_document"),
        "openai": embed("openai/minilm", f"{URL}/v1"),
    },
    rankings={
        "infinity": rerank("infinity/reranker"),
        "cohere": rerank("cohere/reranker"),
    },
    errors={
        "infinity, unknown model": error_of(lambda: embed("infinity/other")),
        "infinity, wrong key": error_of(lambda: embed("infinity/minilm", KEYED_URL)),
        "infinity, unknown reranker": error_of(lambda: rerank("infinity/other")),
        "cohere, unknown reranker": error_of(lambda: rerank("cohere/other")),
        "openai, unknown model": error_of(lambda: embed("openai/other", f"{URL}/v1")),
    },
)
