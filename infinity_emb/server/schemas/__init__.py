"""Schemas of requests and responses for pydantic and OpenAPI, one module per route.

Requests are validated: unknown fields are ignored, and null means that a field was not sent. Responses are
only documented: `responses/` encodes them, and a test compares the two.
"""
