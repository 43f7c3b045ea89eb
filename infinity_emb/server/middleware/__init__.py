"""ASGI middleware: request ids, authentication, metrics."""
