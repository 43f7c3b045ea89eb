"""Define the inputs of a request, their encoded form, and the outputs that a backend computes for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from infinity_emb.errors import BadInput
from infinity_emb.types import OutputName, Truncation

TokenIds = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]


class Pair(NamedTuple):
    """Two texts that are encoded as one sequence, as rerankers score them."""

    query: str
    document: str


@dataclass(frozen=True, slots=True, eq=False)
class ImageInput:
    """A decoded image. pixels: (height, width, 3) uint8, RGB."""

    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class AudioInput:
    """A decoded audio clip. samples: (n,) float32, mono, at the model's sampling rate."""

    samples: npt.NDArray[np.float32]


class TokenIdsInput(NamedTuple):
    """A text as token ids of the model, special tokens included."""

    ids: tuple[int, ...]


class LateChunkingInput(NamedTuple):
    """Texts that are encoded as one sequence, with one vector per text (late chunking)."""

    texts: tuple[str, ...]


Input: TypeAlias = "str | Pair | TokenIdsInput | ImageInput | AudioInput | LateChunkingInput"


class RequestInput(NamedTuple):
    """An input and its position in the request, which errors name.

    position: of a `LateChunkingInput`, the index of its first text.
    """

    value: Input
    position: int


def number_inputs(values: Sequence[Input]) -> list[RequestInput]:
    """Pair the inputs of a request with their positions."""
    return list(map(RequestInput, values, itertools.count()))


# Inputs that become tokens by themselves: equal ones are computed once, and many are encoded at a time.
_TOKENIZED = (str, Pair, TokenIdsInput)


def is_tokenized(value: Input) -> bool:
    """Return true for texts, pairs and token ids."""
    return isinstance(value, _TOKENIZED)


def count_chars(value: Input, default: int = 0) -> int:
    """Return the number of characters, or of token ids; `default` for images and audio."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Pair):
        return len(value.query) + len(value.document)
    if isinstance(value, LateChunkingInput):
        return sum(map(len, value.texts))
    return len(value.ids) if isinstance(value, TokenIdsInput) else default


def list_num_chars(values: Sequence[Input], default: int = 0) -> list[int]:
    """Return `count_chars` of each input."""
    if set(map(type, values)) == {str}:
        return list(map(len, cast("Sequence[str]", values)))
    return [count_chars(value, default) for value in values]


def count_request_chars(values: Sequence[Input], prompt: str = "") -> int:
    """Return the number of characters to tokenize, the prompt once with each input."""
    return len(prompt) * len(values) + sum(list_num_chars(values))


def iterate_chunks(num_chars: Sequence[int], *, max_inputs: int, max_chars: int) -> Iterator[slice]:
    """Yield slices of the inputs within both limits; an input over `max_chars` gets its own slice."""
    start = num_chars_before = 0
    for index, number in enumerate(num_chars):
        is_full = index - start == max_inputs or num_chars_before + number > max_chars
        if is_full and index > start:
            yield slice(start, index)
            start, num_chars_before = index, 0
        num_chars_before += number
    yield slice(start, len(num_chars))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InputOptions:
    """Options of a request that apply to encoding and computing its inputs."""

    prompt: str = ""  # prepended to a text, or to the query of a pair
    task: str | None = None  # sentence-transformers' `task`: query, document, or a route of the model
    truncation: Truncation = "model"
    max_tokens: int | None = None  # limit per input, where lower than the model's
    outputs: tuple[OutputName, ...] = ("dense",)
    query_vectors: Float32Array | None = None  # (q, D) float32, for the output `maxsim`

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise BadInput(f"max_tokens is {self.max_tokens}; give 1 or more, or None for the model's limit")

    def limit(self, own: int | None) -> int | None:
        """Return the maximum number of tokens per input, special ones included; None means no limit.

        own: the model's limit.
        """
        return min((limit for limit in (own, self.max_tokens) if limit is not None), default=None)


@dataclass(frozen=True, slots=True)
class ForwardSpec:
    """Properties of an input that inputs of one forward pass must share."""

    modality: str = "text"
    task: str | None = None
    prompt_length: int = 0  # leading tokens that pooling skips
    outputs: tuple[OutputName, ...] = ("dense",)


TEXT_SPEC = ForwardSpec()


@dataclass(slots=True, eq=False)
class Encoded:
    """One input, encoded for the backend. Not to be changed, but not frozen, which takes three times as long.

    token_ids: (n,) int32 without padding; empty if `features` hold everything.
    type_ids: (n,) int32 segment ids, or None if all are 0.
    num_attended_tokens: number of leading tokens that all tokens attend to; None for all. The rest attend to
    them and have vectors of their own (ColBERT's query expansion).
    features: for images, audio and unusual modules: the result of the model's own preprocessing of this one
    input, arrays with a leading dimension of 1 and lists of one element.
    spans: token ranges [start, end), for each of which the output `chunks` has a vector.
    query_vectors: (q, D) float32, token vectors of the query for the output `maxsim`.
    media_tokens: number of tokens that an image or audio input without token ids counts as.
    position: the input's index in the request, for errors.
    """

    token_ids: TokenIds
    type_ids: TokenIds | None = None
    spec: ForwardSpec = TEXT_SPEC
    num_attended_tokens: int | None = None
    features: Mapping[str, npt.NDArray[Any] | list[Any]] | None = None
    spans: tuple[tuple[int, int], ...] | None = None
    query_vectors: Float32Array | None = None
    media_tokens: int = 0
    position: int = 0

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens that the input counts as in a batch and in the queue."""
        return len(self.token_ids) or self.media_tokens


class SparseVector(NamedTuple):
    """The nonzero entries of a sparse vector."""

    indices: npt.NDArray[np.int32]  # (n,) ascending
    values: npt.NDArray[np.float32]  # (n,)


# One entry per input, in order: a (B, D) float32 array; or where lengths differ, a list of (n, D) arrays or
# of sparse vectors.
Output: TypeAlias = "Float32Array | list[Float32Array] | list[SparseVector]"
BatchOutputs: TypeAlias = "Mapping[OutputName, Output]"


class Piece(NamedTuple):
    """A part of a text: characters [start, end), and its number of tokens."""

    start: int
    end: int
    num_tokens: int


class Outputs(NamedTuple):
    """Outputs of N inputs, in order.

    by_name: for each requested output, one entry per input.
    num_tokens: (N,) tokens of each input.
    """

    by_name: Mapping[OutputName, Any]
    num_tokens: npt.NDArray[np.int64]

    def count_bytes(self) -> int:
        """Return the size of all entries."""
        return sum(
            output.nbytes if isinstance(output, np.ndarray) else sum(map(count_value_bytes, output))
            for output in self.by_name.values()
        )


class ItemOutput(NamedTuple):
    """Outputs of one input. Its arrays must not be changed, as others may hold them too.

    values: one per requested output, in that order: (D,) or (n, D) float32, or a sparse vector.
    """

    num_tokens: int
    values: tuple[Float32Array | SparseVector, ...]

    def count_bytes(self) -> int:
        """Return the size of the values."""
        return sum(map(count_value_bytes, self.values))

    def copy(self) -> ItemOutput:
        """Return a deep copy."""
        return ItemOutput(self.num_tokens, tuple(map(copy_value, self.values)))


def copy_value(value: Float32Array | SparseVector) -> Float32Array | SparseVector:
    """Return a deep copy."""
    if isinstance(value, SparseVector):
        return SparseVector(value.indices.copy(), value.values.copy())
    return value.copy()


def count_value_bytes(value: Float32Array | SparseVector) -> int:
    """Return the size of one output of one input."""
    return value.indices.nbytes + value.values.nbytes if isinstance(value, SparseVector) else value.nbytes


def split_outputs(outputs: Outputs, names: Sequence[OutputName]) -> list[ItemOutput]:
    """Return the named outputs of each input, as views."""
    values = zip(*(outputs.by_name[name] for name in names), strict=True)
    return list(map(ItemOutput, outputs.num_tokens.tolist(), values))


def join_outputs(items: Sequence[ItemOutput], names: Sequence[OutputName]) -> Outputs:
    """Join the outputs of single inputs; copies them, as callers may change vectors in place.

    names: of the values of each item.
    """
    return Outputs(
        {name: _join_values([item.values[index] for item in items]) for index, name in enumerate(names)},
        np.array([item.num_tokens for item in items], dtype=np.int64),
    )


def _join_values(values: list[Float32Array | SparseVector]) -> Any:
    """Join (D,) vectors into an (N, D) array; values of different lengths stay a list."""
    if isinstance(values[0], np.ndarray) and values[0].ndim == 1:
        return np.concatenate(values).reshape(len(values), -1)
    return list(map(copy_value, values))
