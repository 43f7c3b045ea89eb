"""huggingface_hub's InferenceClient, which posts to exactly the URL that it is given."""

import asyncio

from huggingface_hub import AsyncInferenceClient, InferenceClient
from question import KEY, KEYED_URL, QUERY, TEXTS, URL, error_of, tell

client = InferenceClient(model=f"{URL}/embed")
stranger = InferenceClient(model=f"{KEYED_URL}/embed", token="other")

assert InferenceClient(model=f"{KEYED_URL}/embed", token=KEY).feature_extraction("a").shape
assert client.feature_extraction("a", normalize=True, truncate=True, dimensions=8).shape == (1, 8)
best = InferenceClient(model=f"{URL}/predict").text_classification(TEXTS[0])  # one, of the list that is sent


async def one_by_one_in_asyncio() -> list[list[float]]:
    async with AsyncInferenceClient(model=f"{URL}/embed") as client:
        return [(await client.feature_extraction(each))[0].tolist() for each in TEXTS]


tell(
    vectors={
        "batch": client.feature_extraction(TEXTS).tolist(),
        "one by one": [client.feature_extraction(each)[0].tolist() for each in TEXTS],
        "asyncio": asyncio.run(one_by_one_in_asyncio()),
    },
    similarities=InferenceClient(model=f"{URL}/similarity").sentence_similarity(QUERY, other_sentences=TEXTS),
    labels={"the best": [[[best.label, best.score]]]},
    errors={
        "dimensions": error_of(lambda: client.feature_extraction("a", dimensions=5000)),
        "wrong key": error_of(lambda: stranger.feature_extraction("a")),
    },
)
