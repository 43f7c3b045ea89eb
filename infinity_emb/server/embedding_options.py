"""An embeddings request → what the engine is asked for, and how its vectors are written.

Members that contradict each other are a 422.
"""

from __future__ import annotations

from infinity_emb.embedding import EmbedOptions
from infinity_emb.primitives import EmbeddingDtype, EmbeddingEncodingFormat, OutputName, Truncation
from infinity_emb.server.encode import Encoding, NameColumns, name_embedding, name_embeddings, name_outputs
from infinity_emb.server.members import agreed, check_num_members, choose_truncation
from infinity_emb.server.schemas.embeddings import EmbeddingRequest
from infinity_emb.server.validation import body_error
from infinity_emb.server.vector_bytes import ByteFormat

# Each has about 115 bytes in the header `metadata`, and 64 KiB of header is what Python's http.client reads.
MAX_DESCRIBED = 512
_OF_TEXTS = ("chunking", "late_chunking")
_ONE_PER_TOKEN: tuple[OutputName, ...] = ("multivector",)


def read_options(body: EmbeddingRequest, *, input_type: str | None) -> EmbedOptions:
    """What is wanted of texts.

    input_type: where the body names none.
    """
    outputs = _read_outputs(body)
    _check_chunking(body, outputs)
    asked_type = agreed(input_type=body.input_type, task=body.task)
    truncate: Truncation | None = agreed(truncate=body.truncate, truncation=body.truncation)
    return EmbedOptions(
        prompt=body.prompt,
        prompt_name=body.prompt_name,
        input_type=input_type if asked_type is None else asked_type,
        dimensions=read_dimensions(body),
        embedding_dtype=_read_dtype(body),
        outputs=outputs,
        truncation=choose_truncation(truncate, truncation_side=body.truncation_side),
        max_tokens=body.truncate_prompt_tokens,
        chunking=bool(body.chunking),
    )


def read_encoding(body: EmbeddingRequest, *, accept: str | None) -> Encoding:
    """How the vectors are written.

    accept: the header, which counts where the body says nothing.
    """
    is_base64 = body.embedding_type == "base64"
    asked = agreed(
        encoding_format=body.encoding_format,
        embedding_type=EmbeddingEncodingFormat.base64 if is_base64 else None,
    )
    encoding = Encoding(
        format=asked or _accepted_format(accept or ""),
        byte_format=ByteFormat(embed_dtype=body.embed_dtype, endianness=body.endianness or "little"),
        name_columns=_choose_names(body),
    )
    if encoding.is_binary:
        _check_bytes(body, encoding.format)
    return encoding


def read_dimensions(body: EmbeddingRequest) -> int | None:
    """Values of a vector to keep; None for all, which is what 0 says."""
    return agreed(dimensions=body.dimensions or None, output_dimension=body.output_dimension or None)


def check_media_members(body: EmbeddingRequest) -> None:
    """Raises a 422 for a member that an image or a sound cannot be embedded by."""
    given = [name for name in _OF_TEXTS if getattr(body, name) not in (None, False)]
    if given:
        message = f"cannot be given with modality {str(body.modality)!r}; leave it out"
        raise body_error("not_for_modality", message, loc=[given[0]], given=getattr(body, given[0]))


def _accepted_format(accept: str) -> EmbeddingEncodingFormat:
    media_types = [each.partition(";")[0].strip().lower() for each in accept.split(",")]
    is_bytes = "application/octet-stream" in media_types
    return EmbeddingEncodingFormat.bytes if is_bytes else EmbeddingEncodingFormat.float


def _choose_names(body: EmbeddingRequest) -> NameColumns:
    if body.return_multivector:
        return name_embeddings
    return name_embedding if body.outputs is None else name_outputs


def _read_outputs(body: EmbeddingRequest) -> tuple[OutputName, ...] | None:
    asked: tuple[OutputName, ...] | None = None if body.outputs is None else tuple(body.outputs)
    return agreed(outputs=asked, return_multivector=_ONE_PER_TOKEN if body.return_multivector else None)


def _read_dtype(body: EmbeddingRequest) -> EmbeddingDtype | None:
    """What the engine is to answer; an `embed_dtype` is made of its float32 when that is written."""
    asked = agreed(
        embedding_dtype=body.embedding_dtype,
        output_dtype=body.output_dtype,
        embedding_type=None if body.embedding_type == "base64" else body.embedding_type,
    )
    if body.embed_dtype is None:
        return asked
    if asked is not None and asked != body.embed_dtype:
        message = f"cannot be combined with vectors of {str(asked)!r}, whose bytes are sent as they are"
        raise body_error("contradiction", message, loc=["embed_dtype"], given=body.embed_dtype)
    return EmbeddingDtype.float32


def _check_bytes(body: EmbeddingRequest, encoding_format: EmbeddingEncodingFormat) -> None:
    """Raises a 422 for what a body of bytes cannot say."""
    if body.outputs is not None and set(body.outputs) not in ({"dense"}, {"multivector"}):
        message = "of a body of bytes are either 'dense' or 'multivector'; ask for base64, which takes all"
        raise body_error("contradiction", message, loc=["outputs"], given=body.outputs)
    if body.late_chunking is not None:
        message = "answers where passages stand, which a body of bytes cannot say; ask for base64"
        raise body_error("contradiction", message, loc=["late_chunking"], given=True)
    if encoding_format is EmbeddingEncodingFormat.bytes:
        way_out = ', or ask for "encoding_format": "bytes_only", which has no header that tells where each is'
        check_num_members(body.input, limit=MAX_DESCRIBED, name="input", way_out=way_out)


def _check_chunking(body: EmbeddingRequest, outputs: tuple[OutputName, ...] | None) -> None:
    if body.late_chunking is None:
        return
    if body.chunking:
        message = "cannot be combined with 'chunking'; late chunking splits one text, chunking each"
        raise body_error("contradiction", message, loc=["late_chunking"], given=True)
    if set(outputs or ["dense"]) != {"dense"}:
        message = "answers dense vectors; leave 'outputs' out"
        raise body_error("contradiction", message, loc=["late_chunking"], given=True)
    if body.late_chunking.chunk_size is not None and len(body.input) > 1:
        message = f"with a chunk_size takes one text, and the request has {len(body.input)}"
        raise body_error("contradiction", message, loc=["late_chunking"], given=body.late_chunking.chunk_size)
