"""Cohere's `inputs`, whose items hold parts: each with one text, or each with one image.

They are unwrapped before validation, as if the client had sent `texts` or `images`.
Source: https://docs.cohere.com/reference/embed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infinity_emb.server.request_errors import body_error


def unwrap_inputs(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Replace `inputs` by `texts` or `images`. Raises a 422 for items that cannot be embedded alone."""
    inputs = body.get("inputs")
    if inputs is None:
        return body
    if not isinstance(inputs, list) or not inputs or body.get("texts") or body.get("images"):
        message = "must be a list of one or more objects with `content`, without 'texts' and 'images'"
        raise body_error("wrong_inputs", message, loc=["inputs"], given=inputs)
    parts = [_read_part(item, position) for position, item in enumerate(inputs)]
    if len({kind for kind, _ in parts}) > 1:
        raise body_error("mixed_input", "mixes texts and images; send two requests", loc=["inputs"])
    return {**body, parts[0][0]: [value for _, value in parts], "inputs": None}


def _read_part(item: Any, position: int) -> tuple[str, str]:
    """Return the field that an item belongs to, and its text or the URL of its image."""
    content = item.get("content") if isinstance(item, dict) else None
    part = content[0] if isinstance(content, list) and len(content) == 1 else None
    if isinstance(part, dict):
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else None
        for field, value in (("texts", part.get("text")), ("images", url)):
            if isinstance(value, str):
                return field, value
    message = (
        f"item {position} must have a `content` with one part, a text or an image; send one item for each"
    )
    raise body_error("wrong_inputs", message, loc=["inputs"], given=item)
