"""`/files` and `/batches`, as OpenAI defines them.

Source: https://platform.openai.com/docs/api-reference/batch
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from infinity_emb.server.schemas.common import JsonBody

FileId = Annotated[str, StringConstraints(min_length=1, max_length=80)]
MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class BatchRequest(JsonBody):
    """A batch to create."""

    input_file_id: FileId = Field(description="Id of an uploaded file with one request per line.")
    endpoint: Literal["/v1/embeddings"] = Field(description="Route that serves the requests.")
    completion_window: Literal["24h"] = Field("24h", description="Time after which what is left expires.")
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = Field(
        None, description="Up to 16 texts to keep with the batch."
    )


BATCH_EXAMPLES: dict[str, Any] = {
    "batch": {
        "summary": "Requests of an uploaded file",
        "value": {
            "input_file_id": "file-0123456789abcdef0123456789abcdef",
            "endpoint": "/v1/embeddings",
            "completion_window": "24h",
        },
    }
}


class FileObject(BaseModel):
    """A file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]


class DeletedFile(BaseModel):
    """A file that was deleted."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class RequestCounts(BaseModel):
    """The numbers of requests of a batch: all, those with a result, and those with an error."""

    total: int
    completed: int
    failed: int


class BatchProblem(BaseModel):
    """A reason why a batch fails as a whole."""

    code: str
    message: str
    line: int | None
    param: str | None


class BatchProblems(BaseModel):
    """The reasons why a batch fails as a whole."""

    object: Literal["list"]
    data: list[BatchProblem]


class BatchObject(BaseModel):
    """A batch."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchProblems | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class Page(BaseModel):
    """A page of a list, newest first."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileList(Page):
    """Files."""

    data: list[FileObject]


class BatchList(Page):
    """Batches."""

    data: list[BatchObject]
