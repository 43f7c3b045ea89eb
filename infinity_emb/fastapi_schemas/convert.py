"""Functions that turn the results of an engine into the fields of a response."""

from infinity_emb.server.legacy import OpenAIEmbeddingResult, ReRankResult

__all__ = ["list_embeddings_to_response", "to_rerank_response"]

list_embeddings_to_response = OpenAIEmbeddingResult.to_embeddings_response
to_rerank_response = ReRankResult.to_rerank_response
