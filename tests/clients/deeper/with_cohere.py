"""cohere for Python, both of its interfaces: version 1 sends 96 texts a request, from several threads."""

import cohere
from question import KEY, KEYED_URL, QUERY, TEXTS, URL, error_of, tell

INPUT = {"model": "minilm", "input_type": "search_document"}
client = cohere.Client(base_url=URL, api_key="any")
client_2 = cohere.ClientV2(base_url=URL, api_key="any")
stranger = cohere.ClientV2(base_url=KEYED_URL, api_key="other")

by_type = client_2.embed(texts=TEXTS[:96], embedding_types=["float", "int8"], **INPUT).embeddings
rest = client_2.embed(texts=TEXTS[96:], embedding_types=["float"], **INPUT).embeddings
assert {type(value) for row in by_type.int8 for value in row} == {int}
assert cohere.ClientV2(base_url=KEYED_URL, api_key=KEY).embed(texts=["a"], **INPUT).embeddings.float_

rank = {"model": "reranker", "query": QUERY}
ranked = client.rerank(documents=TEXTS, return_documents=True, **rank).results
assert ranked[0].document.text == TEXTS[ranked[0].index]
of_objects = client.rerank(documents=[{"text": each} for each in TEXTS], rank_fields=["text"], **rank).results
best = client_2.rerank(documents=TEXTS, top_n=5, **rank).results
assert len(best) == 5


def pairs(results: list[cohere.RerankResponseResultsItem]) -> list[list[float]]:
    return [[each.index, each.relevance_score] for each in results]


tell(
    vectors={
        "version 1": client.embed(texts=TEXTS, **INPUT).embeddings,
        "version 1, by type": client.embed(texts=TEXTS, embedding_types=["float"], **INPUT).embeddings.float_,
        "version 2": by_type.float_ + rest.float_,
    },
    rankings={
        "version 1": pairs(ranked),
        "version 1, objects": pairs(of_objects),
        "version 2": pairs(client_2.rerank(documents=TEXTS, **rank).results),
    },
    errors={
        "unknown model": error_of(lambda: client_2.embed(texts=["a"], **(INPUT | {"model": "other"}))),
        "unknown reranker": error_of(lambda: client.rerank(documents=TEXTS, query=QUERY, model="other")),
        "wrong key": error_of(lambda: stranger.embed(texts=["a"], **INPUT)),
    },
)
