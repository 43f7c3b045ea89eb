"""The HTTP server: the only layer that uses HTTP and pydantic."""
