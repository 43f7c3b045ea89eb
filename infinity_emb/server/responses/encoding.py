"""Choose how the vectors of a response are written: in which format, and under which names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from infinity_emb.engine.results import Embeddings
from infinity_emb.items import SparseVector
from infinity_emb.server.request_errors import body_error
from infinity_emb.server.requests.accept import prefers_binary
from infinity_emb.server.requests.fields import check_num_items, merge_aliases
from infinity_emb.server.responses.binary_vectors import ByteFormat, Vector
from infinity_emb.server.schemas.embeddings import EmbeddingRequest
from infinity_emb.types import EmbeddingEncodingFormat

Output: TypeAlias = "Sequence[Vector] | Sequence[SparseVector]"
# Field of the response → one vector per input.
NamedOutputs: TypeAlias = "Mapping[str, Output]"
NameOutputs: TypeAlias = "Callable[[Embeddings], NamedOutputs]"

# Each takes about 115 bytes in the header `metadata`, and Python's http.client reads 64 KiB of headers.
MAX_DESCRIBED = 512
_LITTLE_ENDIAN = ByteFormat()
# Of a body that says how to write its vectors.
_FIELDS = frozenset(
    {"encoding_format", "embedding_type", "embed_dtype", "endianness", "return_multivector", "outputs"}
)


def name_embedding(embeddings: Embeddings) -> NamedOutputs:
    """Name the only output `embedding`: one vector per input, or a matrix for multi-vector models."""
    vectors = embeddings.dense if embeddings.dense is not None else embeddings.multivector
    assert vectors is not None, "a request without `outputs` is for vectors"
    return {"embedding": vectors}


def name_outputs(embeddings: Embeddings) -> NamedOutputs:
    """Give dense, sparse and multi-vector outputs a field each."""
    outputs: dict[str, Output | None] = {
        "embedding": embeddings.dense,
        "sparse_embedding": embeddings.sparse,
        "multivector_embedding": embeddings.multivector,
    }
    return {name: output for name, output in outputs.items() if output is not None}


def name_multivectors(embeddings: Embeddings) -> NamedOutputs:
    """Name multi-vectors `embeddings`, as Jina does."""
    return {"embeddings": embeddings.multivector or []}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """The format of the vectors in a response.

    byte_format: of base64 and bytes.
    name_outputs: gives the engine's outputs the names of response fields.
    """

    format: EmbeddingEncodingFormat = EmbeddingEncodingFormat.float
    byte_format: ByteFormat = _LITTLE_ENDIAN
    name_outputs: NameOutputs = name_embedding

    @property
    def is_binary(self) -> bool:
        """True if the response body is not JSON."""
        return self.format in (EmbeddingEncodingFormat.bytes, EmbeddingEncodingFormat.bytes_only)


_JSON_NUMBERS = Encoding()


def read_encoding(body: EmbeddingRequest, *, accept: str) -> Encoding:
    """Read how the client wants its vectors. Raises a 422 for fields that contradict each other.

    accept: the header of that name, or "", used if the body names no format.
    """
    if body.model_fields_set.isdisjoint(_FIELDS) and not prefers_binary(accept):
        return _JSON_NUMBERS
    is_base64 = body.embedding_type == "base64"
    requested = merge_aliases(
        encoding_format=body.encoding_format,
        embedding_type=EmbeddingEncodingFormat.base64 if is_base64 else None,
    )
    encoding = Encoding(
        format=requested or _choose_format(accept),
        byte_format=ByteFormat(embed_dtype=body.embed_dtype, endianness=body.endianness or "little"),
        name_outputs=_choose_names(body),
    )
    if encoding.is_binary:
        _check_binary(body, encoding.format)
    return encoding


def _choose_format(accept: str) -> EmbeddingEncodingFormat:
    return EmbeddingEncodingFormat.bytes if prefers_binary(accept) else EmbeddingEncodingFormat.float


def _choose_names(body: EmbeddingRequest) -> NameOutputs:
    if body.return_multivector:
        return name_multivectors
    return name_embedding if body.outputs is None else name_outputs


def _check_binary(body: EmbeddingRequest, encoding_format: EmbeddingEncodingFormat) -> None:
    """Raise a 422 for outputs that a binary body cannot represent."""
    if body.outputs is not None and set(body.outputs) not in ({"dense"}, {"multivector"}):
        message = "must be either 'dense' or 'multivector' in a binary response; use base64 for several"
        raise body_error("contradiction", message, loc=["outputs"], given=body.outputs)
    if body.late_chunking is not None:
        message = "returns the position of each passage, which a binary response cannot hold; use base64"
        raise body_error("contradiction", message, loc=["late_chunking"], given=True)
    check_num_described(body.input, encoding_format)


def check_num_described(inputs: Sequence[object], encoding_format: EmbeddingEncodingFormat) -> None:
    """Raise a 422 for more inputs than the header of a binary response can describe."""
    if encoding_format is EmbeddingEncodingFormat.bytes:
        remedy = ', or use "encoding_format": "bytes_only", which omits the header with the byte ranges'
        check_num_items(inputs, limit=MAX_DESCRIBED, name="input", remedy=remedy)
