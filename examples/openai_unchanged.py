"""Run a program that was written for OpenAI, without a change, against a server of yours.

    infinity_emb v2 --served-model-name text-embedding-3-small &
    pip install openai
    OPENAI_BASE_URL=http://localhost:7997/v1 OPENAI_API_KEY=unused python examples/openai_unchanged.py

The client reads both variables. Embed stored texts again: vectors of two models cannot be compared.
"""

from openai import OpenAI

QUESTIONS = {
    "How do I reset my password?": "Choose 'Forgot password' on the sign-in page.",
    "Where is my order?": "Open 'My orders' and choose 'Track'.",
    "Can I return a gift?": "Yes, within 30 days, with the receipt.",
}


def main() -> None:
    """Answer a customer with the answer to the most similar known question."""
    client = OpenAI()
    texts = [*QUESTIONS, "I forgot my login and cannot get in"]
    response = client.embeddings.create(model="text-embedding-3-small", input=texts)
    *known, asked = [item.embedding for item in response.data]
    similarities = [sum(a * b for a, b in zip(vector, asked, strict=True)) for vector in known]
    best = max(range(len(known)), key=similarities.__getitem__)
    print(list(QUESTIONS.values())[best])


if __name__ == "__main__":
    main()
