"""Schemas and errors of infinity_emb 0.0.77, for servers that people write around an engine.

Requests are those of this server, which accept more. Responses fill in their id and time.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, RootModel
from starlette.requests import Request
from starlette.responses import JSONResponse

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.server.schemas.classify import ClassifyRequest, ClassifyResponse
from infinity_emb.server.schemas.embeddings import EmbeddingRequest, EmbeddingResponse, MediaRequest
from infinity_emb.server.schemas.rerank import RerankRequest, RerankResponse
from infinity_emb.types import ClassifyReturnType, EmbeddingEncodingFormat, RerankReturnType

OpenAIEmbeddingInput: TypeAlias = EmbeddingRequest
ImageEmbeddingInput: TypeAlias = MediaRequest
AudioEmbeddingInput: TypeAlias = MediaRequest
ClassifyInput: TypeAlias = ClassifyRequest
RerankInput: TypeAlias = RerankRequest
DataURIorURL: TypeAlias = str


class MultiModalOpenAIEmbedding(RootModel[EmbeddingRequest]):
    """The request of `/embeddings`, as `root`."""


def _make_id() -> str:
    return f"infinity-{uuid.uuid4()}"


def _get_seconds() -> int:
    return int(time.time())


class OpenAIEmbeddingResult(EmbeddingResponse):
    """The response of `/embeddings`."""

    object: Literal["list"] = "list"
    id: str = Field(default_factory=_make_id)
    created: int = Field(default_factory=_get_seconds)

    @staticmethod
    def to_embeddings_response(
        embeddings: Iterable[npt.ArrayLike],
        engine_args: EngineArgs | str,
        usage: int,
        encoding_format: EmbeddingEncodingFormat = EmbeddingEncodingFormat.float,
    ) -> dict[str, Any]:
        """Return the fields of a response.

        engine_args: options or name of the model.
        """
        is_base64 = encoding_format == EmbeddingEncodingFormat.base64
        arrays = map(np.asarray, embeddings)
        vectors = [_encode_base64(array) if is_base64 else array.tolist() for array in arrays]
        entries = [
            {"object": "embedding", "embedding": vector, "index": index}
            for index, vector in enumerate(vectors)
        ]
        name = engine_args if isinstance(engine_args, str) else engine_args.served_model_name
        return {"model": name, "data": entries, "usage": _count(usage)}


class ClassifyResult(ClassifyResponse):
    """The response of `/classify`."""

    object: Literal["classify"] = "classify"
    id: str = Field(default_factory=_make_id)
    created: int = Field(default_factory=_get_seconds)

    @staticmethod
    def to_classify_response(
        scores_labels: Sequence[Sequence[ClassifyReturnType]], model: str, usage: int
    ) -> dict[str, Any]:
        """Return the fields of a response."""
        return {"model": model, "data": scores_labels, "usage": _count(usage)}


class ReRankResult(RerankResponse):
    """The response of `/rerank`."""

    object: Literal["rerank"] = "rerank"
    id: str = Field(default_factory=_make_id)
    created: int = Field(default_factory=_get_seconds)

    @staticmethod
    def to_rerank_response(
        scores: Sequence[RerankReturnType], model: str, usage: int, return_documents: bool
    ) -> dict[str, Any]:
        """Return the fields of a response."""
        names = ("relevance_score", "index", *(["document"] if return_documents else []))
        results = [{name: getattr(entry, name) for name in names} for entry in scores]
        return {"model": model, "results": results, "usage": _count(usage)}


class ModelInfo(BaseModel):
    """An entry of `/models`."""

    id: str
    stats: dict[str, Any]
    object: Literal["model"] = "model"
    owned_by: Literal["infinity"] = "infinity"
    created: int = Field(default_factory=_get_seconds)
    backend: str = ""
    capabilities: set[str] = set()


class OpenAIModelInfo(BaseModel):
    """The response of `/models`."""

    data: list[ModelInfo]
    object: str = "list"


class OpenAIException(Exception):
    """An error in OpenAI's format.

    code: the status of the response.
    """

    def __init__(self, message: str, code: int, type: str | None = None, param: str | None = None) -> None:  # noqa: A002 - its name is public
        super().__init__(message)
        self.message, self.code, self.type, self.param = message, code, type, param

    def json(self) -> dict[str, Any]:
        """Return the body of the response."""
        names = ("message", "type", "param", "code")
        return {"error": {name: getattr(self, name) for name in names}}


def openai_exception_handler(request: Request, exc: OpenAIException) -> JSONResponse:
    """Respond to an OpenAIException."""
    return JSONResponse(status_code=exc.code, content=exc.json())


def _encode_base64(vector: npt.NDArray[Any]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _count(usage: int) -> dict[str, int]:
    return {"prompt_tokens": usage, "total_tokens": usage}
