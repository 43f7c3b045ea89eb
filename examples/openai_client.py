"""Embed texts with OpenAI's client and a running server.

infinity_emb v2 &
pip install openai
python examples/openai_client.py [http://localhost:7997]
"""

import sys

from openai import OpenAI

TEXTS = ["Paris is a city.", "A cat sleeps."]


def main(url: str) -> None:
    """Set `api_key` to one of the server's keys if it was started with `--api-key`."""
    client = OpenAI(base_url=f"{url}/v1", api_key="unused")
    model = client.models.list().data[0].id
    response = client.embeddings.create(model=model, input=TEXTS)
    for text, item in zip(TEXTS, response.data, strict=True):
        print(f"{text}  {len(item.embedding)} dimensions, starts with {item.embedding[0]:.4f}")
    print(f"{response.usage.total_tokens} tokens, model {response.model}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:7997")
