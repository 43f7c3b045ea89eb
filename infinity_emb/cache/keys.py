"""What an answer is kept under: 16 bytes of all that it depends on.

That is the model and its version (`model_version`), how the input is to be read and what is wanted of it, and
the exact text. Equal keys mean equal answers, so a text must not be made to share another's: the hash is a
cryptographic one. Knows nothing of where answers are kept.
"""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Sequence
from dataclasses import fields

from infinity_emb.backends.base import Ids, Input, InputOptions, Pair

KEY_SIZE_BYTES = 16
# Up to so many inputs and characters are hashed on the event loop: a fraction of a millisecond.
MAX_INLINE_INPUTS = 64
MAX_INLINE_CHARS = 32_768
_all_of = operator.attrgetter(*(each.name for each in fields(InputOptions)))  # whatever options there are
_CHARS_PER_ID = 32  # a number takes longer to write than a letter


def is_cacheable(inputs: Sequence[Input], options: InputOptions) -> bool:
    """Whether the inputs have keys. Images, audio and passages have none, nor has what is scored for the rows
    of a query."""
    return options.query_rows is None and all(isinstance(each, (str, Pair, Ids)) for each in inputs)


def is_quick(inputs: Sequence[Input]) -> bool:
    """Whether hashing these may hold an event loop."""
    return len(inputs) <= MAX_INLINE_INPUTS and sum(map(_num_chars, inputs)) <= MAX_INLINE_CHARS


def keys_of(version: str, inputs: Sequence[Input], options: InputOptions) -> list[bytes]:
    """One per input, each of which `is_cacheable`.

    version: of the model, as `model_version` says it.
    """
    scope = _scope_of(version, _all_of(options))
    return [_digest(scope + _content(each)) for each in inputs]


@functools.lru_cache(maxsize=256)
def _scope_of(version: str, how: tuple[object, ...]) -> bytes:
    return _digest(repr((version, how)).encode("utf-8", "surrogatepass"))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=KEY_SIZE_BYTES).digest()


def _content(each: Input) -> bytes:
    """Different for different inputs; lone surrogates, which the tokenizer will refuse, included."""
    if isinstance(each, Pair):
        query = each.query.encode("utf-8", "surrogatepass")
        return b"pair %d " % len(query) + query + each.document.encode("utf-8", "surrogatepass")
    if isinstance(each, Ids):
        return b"ids " + repr(each.ids).encode()
    assert isinstance(each, str)
    return b"text " + each.encode("utf-8", "surrogatepass")


def _num_chars(each: Input) -> int:
    if isinstance(each, Pair):
        return len(each.query) + len(each.document)
    if isinstance(each, Ids):
        return len(each.ids) * _CHARS_PER_ID
    assert isinstance(each, str)
    return len(each)
