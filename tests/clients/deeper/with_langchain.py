"""langchain-community's Infinity classes, and langchain-openai with texts instead of token ids."""

import asyncio

import infinity_client
from langchain_community.document_compressors.infinity_rerank import InfinityRerank
from langchain_community.embeddings import InfinityEmbeddings
from langchain_openai import OpenAIEmbeddings
from question import KEY, KEYED_URL, QUERY, TEXTS, URL, error_of, tell

infinity = InfinityEmbeddings(model="minilm", infinity_api_url=f"{URL}/v1")
strange_infinity = InfinityEmbeddings(model="minilm", infinity_api_url=KEYED_URL)


def openai(model: str = "minilm", url: str = URL, key: str = "any", **options: object) -> OpenAIEmbeddings:
    options = {"check_embedding_ctx_length": False, "max_retries": 0, **options}
    return OpenAIEmbeddings(model=model, base_url=f"{url}/v1", api_key=key, **options)


def reranker(model: str = "reranker", **client: object) -> InfinityRerank:
    return InfinityRerank(client=infinity_client.Client(**{"base_url": URL, **client}), model=model)


ranked = reranker().rerank(TEXTS, QUERY, top_n=None)
assert len(reranker().rerank(TEXTS, QUERY)) == 3, "the class's own default"
header = {"Authorization": f"Bearer {KEY}"}
assert reranker(base_url=KEYED_URL, headers=header).rerank(["a"], QUERY)
assert openai(url=KEYED_URL, key=KEY).embed_query("a")

tell(
    vectors={
        "Infinity": infinity.embed_documents(TEXTS),
        "Infinity, asyncio": asyncio.run(infinity.aembed_documents(TEXTS)),
        "OpenAI": openai().embed_documents(TEXTS),
        "OpenAI, in chunks": openai(chunk_size=17).embed_documents(TEXTS),
        "OpenAI, asyncio": asyncio.run(openai().aembed_documents(TEXTS)),
    },
    rankings={"Infinity": [[each["index"], each["relevance_score"]] for each in ranked]},
    errors={
        "Infinity, unknown model": error_of(
            lambda: InfinityEmbeddings(model="other", infinity_api_url=URL).embed_query("a")
        ),
        "Infinity, no key": error_of(lambda: strange_infinity.embed_query("a")),
        "Infinity, unknown reranker": error_of(lambda: reranker("other").rerank(TEXTS, QUERY)),
        "OpenAI, unknown model": error_of(lambda: openai("other").embed_query("a")),
        "OpenAI, wrong key": error_of(lambda: openai(url=KEYED_URL).embed_query("a")),
        "OpenAI, token ids": error_of(lambda: openai(check_embedding_ctx_length=True).embed_query("a")),
    },
)
