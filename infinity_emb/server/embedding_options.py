"""An embeddings request → what the engine is asked for; members that contradict each other are a 422."""

from __future__ import annotations

from infinity_emb.embedding import EmbedOptions
from infinity_emb.primitives import EmbeddingDtype
from infinity_emb.server.members import agreed, choose_truncation
from infinity_emb.server.schemas.embeddings import EmbeddingRequest
from infinity_emb.server.validation import body_error

_OF_TEXTS = ("chunking", "late_chunking")
_DTYPES = ("embedding_dtype", "output_dtype", "embedding_type")


def read_options(body: EmbeddingRequest, *, input_type: str | None) -> EmbedOptions:
    """What is wanted of texts.

    input_type: where the body names none.
    """
    _check_chunking(body)
    asked_type = agreed(input_type=body.input_type, task=body.task)
    return EmbedOptions(
        prompt=body.prompt,
        prompt_name=body.prompt_name,
        input_type=input_type if asked_type is None else asked_type,
        dimensions=read_dimensions(body),
        embedding_dtype=_read_dtype(body),
        outputs=None if body.outputs is None else tuple(body.outputs),
        truncation=choose_truncation(body.truncate, truncation_side=body.truncation_side),
        chunking=bool(body.chunking),
    )


def read_dimensions(body: EmbeddingRequest) -> int | None:
    """Values of a vector to keep; None for all, which is what 0 says."""
    return agreed(dimensions=body.dimensions or None, output_dimension=body.output_dimension or None)


def check_media_members(body: EmbeddingRequest) -> None:
    """Raises a 422 for a member that an image or a sound cannot be embedded by."""
    given = [name for name in _OF_TEXTS if getattr(body, name) not in (None, False)]
    if given:
        message = f"cannot be given with modality {str(body.modality)!r}; leave it out"
        raise body_error("not_for_modality", message, loc=[given[0]], given=getattr(body, given[0]))


def _read_dtype(body: EmbeddingRequest) -> EmbeddingDtype | None:
    return agreed(**{name: getattr(body, name) for name in _DTYPES})


def _check_chunking(body: EmbeddingRequest) -> None:
    if body.late_chunking is None:
        return
    if body.chunking:
        message = "cannot be combined with 'chunking'; late chunking splits one text, chunking each"
        raise body_error("contradiction", message, loc=["late_chunking"], given=True)
    if set(body.outputs or ["dense"]) != {"dense"}:
        message = "answers dense vectors; leave 'outputs' out"
        raise body_error("contradiction", message, loc=["late_chunking"], given=True)
    if body.late_chunking.chunk_size is not None and len(body.input) > 1:
        message = f"with a chunk_size takes one text, and the request has {len(body.input)}"
        raise body_error("contradiction", message, loc=["late_chunking"], given=body.late_chunking.chunk_size)
