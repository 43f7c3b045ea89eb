"""openai for Python: base64 without being asked, floats when asked, both base URLs, and the error classes."""

import asyncio

import openai
from question import KEY, KEYED_URL, TEXTS, URL, error_of, tell

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="any", max_retries=0)
bare = client.with_options(base_url=URL)
keyed = client.with_options(base_url=f"{KEYED_URL}/v1")


def vectors(client: openai.OpenAI, **options: object) -> list[list[float]]:
    answer = client.embeddings.create(model="minilm", input=TEXTS, **options)
    assert answer.usage.total_tokens > len(TEXTS)
    return [each.embedding for each in answer.data]


async def vectors_in_asyncio() -> list[list[float]]:
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="any") as client:
        answer = await client.embeddings.create(model="minilm", input=TEXTS)
    return [each.embedding for each in answer.data]


assert "minilm" in [each.id for each in client.models.list()]
assert client.models.retrieve("reranker").id == "reranker"
assert keyed.with_options(api_key=KEY).embeddings.create(model="minilm", input="a").data

tell(
    vectors={
        "plain": vectors(client),
        "floats": vectors(client, encoding_format="float"),
        "without /v1": vectors(bare),
        "asyncio": asyncio.run(vectors_in_asyncio()),
    },
    errors={
        "unknown model": error_of(lambda: client.embeddings.create(model="other", input="a")),
        "wrong key": error_of(lambda: keyed.embeddings.create(model="minilm", input="a")),
        "dimensions": error_of(lambda: client.embeddings.create(model="minilm", input="a", dimensions=5000)),
        "wrong type": error_of(lambda: client.embeddings.create(model="minilm", input={"a": 1})),
    },
)
