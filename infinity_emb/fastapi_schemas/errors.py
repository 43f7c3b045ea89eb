"""An exception in OpenAI's format, and its handler."""

from infinity_emb.server.legacy import OpenAIException, openai_exception_handler

__all__ = ["OpenAIException", "openai_exception_handler"]
