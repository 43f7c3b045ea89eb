"""What goes over the wire, for pydantic and the OpenAPI document; one module per route.

Requests are validated: unknown members are ignored, an explicit null is the same as nothing. Responses are
only described; their bytes are made by `encode.py` and a test holds the two together.
"""
