"""LangChain's own tests of embedding classes, for three classes that reach the server."""

from __future__ import annotations

from typing import Any

from langchain_ollama import OllamaEmbeddings
from langchain_openai import AzureOpenAIEmbeddings, OpenAIEmbeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from question import URL


class TestOpenAI(EmbeddingsIntegrationTests):
    """`/v1/embeddings` with texts."""

    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {
            "model": "minilm",
            "base_url": f"{URL}/v1",
            "api_key": "any",
            "check_embedding_ctx_length": False,
        }


class TestAzure(EmbeddingsIntegrationTests):
    """Azure's path."""

    @property
    def embeddings_class(self) -> type[AzureOpenAIEmbeddings]:
        return AzureOpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {
            "model": "minilm",
            "azure_endpoint": URL,
            "api_key": "any",
            "api_version": "2024-10-21",
            "check_embedding_ctx_length": False,
        }


class TestOllama(EmbeddingsIntegrationTests):
    """`/api/embed`; the alias of a model is found in the list that the client reads first."""

    @property
    def embeddings_class(self) -> type[OllamaEmbeddings]:
        return OllamaEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "text-embedding-3-small", "base_url": URL, "validate_model_on_init": True}
