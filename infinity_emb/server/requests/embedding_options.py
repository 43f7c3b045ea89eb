"""Read the options of an embeddings request. Fields that contradict each other raise a 422."""

from __future__ import annotations

from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.results import DEFAULT_OPTIONS, EmbedOptions
from infinity_emb.server.request_errors import body_error
from infinity_emb.server.requests.fields import choose_truncation, merge_aliases
from infinity_emb.server.schemas.embeddings import EmbeddingRequest
from infinity_emb.types import EmbeddingDtype, Normalization, OutputName, Truncation

_TEXT_ONLY = ("chunking", "late_chunking")
# Fields that say what to embed and how to respond.
_NO_OPTIONS = frozenset({"input", "model", "user", "encoding_format", "priority", "timeout"})
_MULTIVECTOR: tuple[OutputName, ...] = ("multivector",)


def read_options(body: EmbeddingRequest, *, input_type: str | None) -> EmbedOptions:
    """Read the options of the engine.

    input_type: used if the body names none.
    """
    if body.model_fields_set <= _NO_OPTIONS:
        return DEFAULT_OPTIONS if input_type is None else EmbedOptions(input_type=input_type)
    outputs = _read_outputs(body)
    _check_chunking(body, outputs)
    requested_type = merge_aliases(input_type=body.input_type, task=body.task)
    truncate: Truncation | None = merge_aliases(truncate=body.truncate, truncation=body.truncation)
    return EmbedOptions(
        prompt=body.prompt,
        prompt_name=body.prompt_name,
        input_type=input_type if requested_type is None else requested_type,
        dimensions=read_dimensions(body),
        embedding_dtype=_read_dtype(body),
        normalize=read_normalize(body),
        outputs=outputs,
        truncation=choose_truncation(truncate, truncation_side=body.truncation_side),
        max_tokens=body.truncate_prompt_tokens,
        chunking=bool(body.chunking),
    )


def read_dimensions(body: EmbeddingRequest) -> int | None:
    """Return the number of dimensions to keep; None keeps all.

    infinity_client always sends `dimensions` and `modality`; 0 means that its user named no number.
    """
    is_default = body.dimensions == 0 and body.modality is not None
    return merge_aliases(
        dimensions=None if is_default else body.dimensions, output_dimension=body.output_dimension
    )


def read_normalize(body: EmbeddingRequest) -> bool | None:
    """Return whether vectors are to be normalized; None leaves it to the model and the server."""
    return merge_aliases(
        normalized=body.normalized, normalize=body.normalize, use_activation=body.use_activation
    )


def check_normalize(engine: AsyncEmbeddingEngine, options: EmbedOptions) -> None:
    """Raise a 422 if the request forbids normalization and the model always normalizes."""
    if options.normalize is False and engine.info.is_normalized:
        message = "cannot be false: the files of this model normalize its vectors; leave it out"
        raise body_error("not_able", message, loc=["normalized"], given=False)


def normalizes_for_dialect(engine: AsyncEmbeddingEngine) -> bool:
    """Return whether to normalize on the routes of dialects whose servers always do."""
    return engine.engine_args.normalize is not Normalization.never


def check_media_fields(body: EmbeddingRequest) -> None:
    """Raise a 422 for a field that does not apply to images and audio."""
    given = [name for name in _TEXT_ONLY if getattr(body, name) not in (None, False)]
    if given:
        message = f"is not supported with modality {str(body.modality)!r}; leave it out"
        raise body_error("not_for_modality", message, loc=[given[0]], given=getattr(body, given[0]))


def _read_outputs(body: EmbeddingRequest) -> tuple[OutputName, ...] | None:
    requested: tuple[OutputName, ...] | None = None if body.outputs is None else tuple(body.outputs)
    return merge_aliases(
        outputs=requested, return_multivector=_MULTIVECTOR if body.return_multivector else None
    )


def _read_dtype(body: EmbeddingRequest) -> EmbeddingDtype | None:
    """Return the dtype to request from the engine; `embed_dtype` is converted from its float32 later."""
    requested = merge_aliases(
        embedding_dtype=body.embedding_dtype,
        output_dtype=body.output_dtype,
        embedding_type=None if body.embedding_type == "base64" else body.embedding_type,
    )
    if body.embed_dtype is None:
        return requested
    if requested is not None and requested != body.embed_dtype:
        message = f"cannot be combined with vectors of {str(requested)!r}, whose bytes are sent unchanged"
        raise body_error("contradiction", message, loc=["embed_dtype"], given=body.embed_dtype)
    return EmbeddingDtype.float32


def _check_chunking(body: EmbeddingRequest, outputs: tuple[OutputName, ...] | None) -> None:
    if body.late_chunking is None:
        return
    if body.chunking:
        message = "cannot be combined with 'chunking'; late chunking splits one text, chunking each"
        raise body_error("contradiction", message, loc=["late_chunking"], given=True)
    if set(outputs or ["dense"]) != {"dense"}:
        message = "returns dense vectors only; leave 'outputs' out"
        raise body_error("contradiction", message, loc=["late_chunking"], given=True)
    if body.late_chunking.chunk_size is not None and len(body.input) > 1:
        message = f"with a chunk_size takes one text, and the request has {len(body.input)}"
        raise body_error("contradiction", message, loc=["late_chunking"], given=body.late_chunking.chunk_size)
