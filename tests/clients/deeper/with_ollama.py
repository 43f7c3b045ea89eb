"""ollama for Python: batches, single prompts of the old route, and the list of models."""

import asyncio

import ollama
from question import KEY, KEYED_URL, TEXTS, URL, error_of, tell

client = ollama.Client(host=URL)
stranger = ollama.Client(host=KEYED_URL, headers={"Authorization": "Bearer other"})
keyed = ollama.Client(host=KEYED_URL, headers={"Authorization": f"Bearer {KEY}"})

assert "minilm:latest" in {each.model for each in client.list().models}
assert keyed.embed(model="minilm", input="a").embeddings

tell(
    vectors={
        "batch": [list(each) for each in client.embed(model="minilm", input=TEXTS).embeddings],
        "one by one": [list(client.embeddings(model="minilm", prompt=each).embedding) for each in TEXTS],
        "asyncio": [
            list(each)
            for each in asyncio.run(
                ollama.AsyncClient(host=URL).embed(model="minilm", input=TEXTS)
            ).embeddings
        ],
    },
    errors={
        "unknown model": error_of(lambda: client.embed(model="other", input="a")),
        "wrong key": error_of(lambda: stranger.embed(model="minilm", input="a")),
    },
)
