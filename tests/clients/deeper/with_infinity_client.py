"""infinity_client: parses words of the answers as enums, and shows a failure as no answer at all."""

import asyncio

import infinity_client
from infinity_client.api.default import classify, embeddings, health, models, rerank
from infinity_client.models import (
    ClassifyInput,
    HTTPValidationError,
    OpenAIEmbeddingInputText,
    RerankInput,
)
from infinity_client.vision_client import InfinityVisionAPI
from question import KEY, KEYED_URL, QUERY, TEXTS, URL, tell

client = infinity_client.Client(base_url=URL)
keyed = infinity_client.AuthenticatedClient(base_url=KEYED_URL, token=KEY)
stranger = infinity_client.AuthenticatedClient(base_url=KEYED_URL, token="other")
strict = infinity_client.Client(base_url=URL, raise_on_unexpected_status=True)


def error_of(client: object, body: OpenAIEmbeddingInputText) -> list[str]:
    try:
        answer = embeddings.sync(client=client, body=body)
    except infinity_client.errors.UnexpectedStatus as exc:
        return [type(exc).__name__, str(exc)]
    message = answer.detail[0].msg if isinstance(answer, HTTPValidationError) else ""
    return [type(answer).__name__, message]


body = OpenAIEmbeddingInputText(model="minilm", input_=TEXTS)
other = OpenAIEmbeddingInputText(model="other", input_=["a"])
broken = OpenAIEmbeddingInputText(model="minilm", input_={"a": 1})  # type: ignore[arg-type]  # on purpose

listed = models.sync(client=client).data
assert {each.id for each in listed} == {"minilm", "reranker", "classifier"}
assert all(each.stats is not None for each in listed)
assert health.sync(client=client)["unix"] > 0
assert embeddings.sync(client=keyed, body=body).usage.total_tokens > 0

ranked = rerank.sync(
    client=client, body=RerankInput(model="reranker", query=QUERY, documents=TEXTS, return_documents=True)
)
assert ranked.results[0].document == TEXTS[ranked.results[0].index]
labelled = classify.sync(client=client, body=ClassifyInput(model="classifier", input_=TEXTS))

of_vision, _ = InfinityVisionAPI(url=URL, model="minilm").embed("minilm", TEXTS).result()

tell(
    vectors={
        "vision": [each[0].tolist() for each in of_vision],
        "plain": [each.embedding for each in embeddings.sync(client=client, body=body).data],
        "asyncio": [
            each.embedding for each in asyncio.run(embeddings.asyncio(client=client, body=body)).data
        ],
    },
    rankings={"plain": [[each.index, each.relevance_score] for each in ranked.results]},
    labels={"plain": [[[each.label, each.score] for each in member] for member in labelled.data]},
    errors={
        "unknown model": error_of(client, other),
        "unknown model, told to raise": error_of(strict, other),
        "wrong key": error_of(stranger, body),
        "wrong type": error_of(client, broken),
    },
)
