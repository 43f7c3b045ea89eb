"""Every client that is tested: where it runs, which script asks through it, and how it shows a failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Words of the server's messages.
UNKNOWN_MODEL = "Engine for model name `other` not found"
WRONG_KEY = "the API key is missing or wrong"
TOO_MANY_DIMENSIONS = "5000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One section of docs/clients.md.

    title: the section's heading.
    environments: names of `environments.py`, or node; one for each version.
    script: in the folder `deeper`.
    errors: case → class and words of the message that the user sees.
    is_heavy: its environment takes minutes, so that `make test` leaves it out.
    """

    title: str
    environments: tuple[str, ...]
    script: str
    errors: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    is_heavy: bool = False


CLIENTS = [
    Client(
        title="openai for Python",
        environments=("openai",),
        script="with_openai.py",
        errors={
            "unknown model": ("NotFoundError", UNKNOWN_MODEL),
            "wrong key": ("AuthenticationError", WRONG_KEY),
            "dimensions": ("BadRequestError", TOO_MANY_DIMENSIONS),
            "wrong type": ("UnprocessableEntityError", "input"),
        },
    ),
    Client(
        title="openai for Node",
        environments=("node",),
        script="with_openai.mjs",
        errors={
            "unknown model": ("NotFoundError", UNKNOWN_MODEL),
            "wrong key": ("AuthenticationError", WRONG_KEY),
            "wrong type": ("UnprocessableEntityError", "input"),
        },
    ),
    Client(
        title="infinity_client",
        environments=("infinity-client",),
        script="with_infinity_client.py",
        errors={
            "unknown model": ("NoneType", ""),
            "unknown model, told to raise": ("UnexpectedStatus", UNKNOWN_MODEL),
            "wrong key": ("NoneType", ""),
            "wrong type": ("HTTPValidationError", ""),
        },
    ),
    Client(
        title="cohere for Python",
        environments=("cohere", "cohere-5"),
        script="with_cohere.py",
        errors={
            "unknown model": ("NotFoundError", UNKNOWN_MODEL),
            "unknown reranker": ("NotFoundError", UNKNOWN_MODEL),
            "wrong key": ("UnauthorizedError", WRONG_KEY),
        },
    ),
    Client(
        title="cohere for Node",
        environments=("node",),
        script="with_cohere.mjs",
        errors={
            "unknown model": ("NotFoundError", UNKNOWN_MODEL),
            "wrong key": ("UnauthorizedError", WRONG_KEY),
        },
    ),
    Client(
        title="ollama",
        environments=("ollama",),
        script="with_ollama.py",
        errors={
            "unknown model": ("ResponseError", "other"),
            "wrong key": ("ResponseError", WRONG_KEY),
        },
    ),
    Client(
        title="huggingface_hub",
        environments=("huggingface-hub",),
        script="with_huggingface_hub.py",
        errors={
            "dimensions": ("HfHubHTTPError", TOO_MANY_DIMENSIONS),
            "wrong key": ("HfHubHTTPError", WRONG_KEY),
        },
    ),
    Client(
        title="@huggingface/inference",
        environments=("node",),
        script="with_huggingface_inference.mjs",
        errors={
            "dimensions": ("InferenceClientProviderApiError", TOO_MANY_DIMENSIONS),
            "wrong key": ("InferenceClientProviderApiError", WRONG_KEY),
        },
    ),
    Client(
        title="langchain",
        environments=("langchain",),
        script="with_langchain.py",
        errors={
            "Infinity, unknown model": ("Exception", UNKNOWN_MODEL),
            "Infinity, no key": ("Exception", WRONG_KEY),
            "Infinity, unknown reranker": ("TypeError", "NoneType"),
            "OpenAI, unknown model": ("NotFoundError", UNKNOWN_MODEL),
            "OpenAI, wrong key": ("AuthenticationError", WRONG_KEY),
            "OpenAI, token ids": ("UnprocessableEntityError", "check_embedding_ctx_length=False"),
        },
        is_heavy=True,
    ),
    Client(
        title="llama-index",
        environments=("llama-index",),
        script="with_llama_index.py",
        errors={
            "unknown model": ("NotFoundError", UNKNOWN_MODEL),
            "wrong key": ("AuthenticationError", WRONG_KEY),
        },
        is_heavy=True,
    ),
    Client(
        title="haystack",
        environments=("haystack",),
        script="with_haystack.py",
        errors={
            "unknown model": ("NotFoundError", UNKNOWN_MODEL),
            "wrong key": ("AuthenticationError", WRONG_KEY),
        },
        is_heavy=True,
    ),
    Client(
        title="litellm",
        environments=("litellm",),
        script="with_litellm.py",
        errors={
            "infinity, unknown model": ("NotFoundError", UNKNOWN_MODEL),
            "infinity, wrong key": ("AuthenticationError", WRONG_KEY),
            "infinity, unknown reranker": ("NotFoundError", UNKNOWN_MODEL),
            "cohere, unknown reranker": ("NotFoundError", UNKNOWN_MODEL),
            # litellm reads the error's type before its status.
            "openai, unknown model": ("BadRequestError", UNKNOWN_MODEL),
        },
        is_heavy=True,
    ),
    Client(
        title="chromadb",
        environments=("chromadb",),
        script="with_chromadb.py",
        errors={
            "unknown model": ("NotFoundError", UNKNOWN_MODEL),
            "wrong key": ("AuthenticationError", WRONG_KEY),
        },
        is_heavy=True,
    ),
    Client(
        title="pymilvus",
        environments=("pymilvus",),
        script="with_pymilvus.py",
        errors={
            "unknown model": ("NotFoundError", UNKNOWN_MODEL),
            "wrong key": ("AuthenticationError", WRONG_KEY),
            "no key, text-embeddings-inference": ("RuntimeError", WRONG_KEY),
        },
        is_heavy=True,
    ),
    Client(
        title="mteb",
        environments=("mteb",),
        script="with_mteb.py",
        errors={
            "unknown model": ("RuntimeError", "404"),
            "a server with a key": ("ConnectionError", "401"),
        },
        is_heavy=True,
    ),
]
