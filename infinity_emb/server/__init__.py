"""The HTTP server: the only floor that knows HTTP and pydantic."""
