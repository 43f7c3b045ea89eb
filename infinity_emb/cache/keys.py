"""Compute cache keys: 16 bytes that identify the model's version, the options and the exact input.

Equal keys mean equal outputs, and clients choose the texts, so the hash is cryptographic.
"""

from __future__ import annotations

import functools
import hashlib
import operator
from array import array
from collections.abc import Sequence
from dataclasses import fields

from infinity_emb.items import Input, InputOptions, Pair, TokenIdsInput, count_chars, is_tokenized

KEY_SIZE_BYTES = 16
# Up to this many inputs and characters are hashed on the event loop, in a fraction of a millisecond.
MAX_INLINE_INPUTS = 64
MAX_INLINE_CHARS = 32_768
_get_all_options = operator.attrgetter(*(field.name for field in fields(InputOptions)))


def is_cacheable(inputs: Sequence[Input], options: InputOptions) -> bool:
    """Return false for images, audio and passages, and for texts scored against a query's vectors."""
    return options.query_vectors is None and all(map(is_tokenized, inputs))


def is_quick(inputs: Sequence[Input]) -> bool:
    """Return true when keys of these inputs may be computed on the event loop."""
    return len(inputs) <= MAX_INLINE_INPUTS and sum(map(count_chars, inputs)) <= MAX_INLINE_CHARS


def compute_keys(version: str, inputs: Sequence[Input], options: InputOptions) -> list[bytes]:
    """Return one key per input; all of them are cacheable.

    version: of the model, from `model_version`.
    """
    scope = _hash_scope(version, _get_all_options(options))
    return [_hash(scope + _to_bytes(value)) for value in inputs]


@functools.lru_cache(maxsize=256)
def _hash_scope(version: str, options: tuple[object, ...]) -> bytes:
    return _hash(repr((version, options)).encode("utf-8", "surrogatepass"))


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=KEY_SIZE_BYTES).digest()


def _to_bytes(value: Input) -> bytes:
    """Return different bytes for different inputs, even for texts with lone surrogates."""
    if isinstance(value, Pair):
        query = value.query.encode("utf-8", "surrogatepass")
        return b"pair %d " % len(query) + query + value.document.encode("utf-8", "surrogatepass")
    if isinstance(value, TokenIdsInput):
        return b"ids " + array("q", value.ids).tobytes()
    assert isinstance(value, str)
    return b"text " + value.encode("utf-8", "surrogatepass")
