"""Define the tasks of a job, and the interface of what computes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from infinity_emb.bulk.rows import RowInput
from infinity_emb.config.bulk_options import BulkOptions
from infinity_emb.items import Pair

Task = Literal["embed", "rerank", "classify"]
# Computed before any row: a row is at fault for a failure only if this text can be computed.
PROBE_TEXT = "probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """The options of a job that change its results."""

    task: Task
    is_sparse: bool = False
    truncates: bool = True
    raw_scores: bool = False
    dimensions: int | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    input_type: str | None = None

    @classmethod
    def from_options(cls, task: Task, options: BulkOptions) -> TaskOptions:
        """Read the options of a job."""
        return cls(
            task=task,
            is_sparse=options.sparse,
            truncates=options.truncate,
            raw_scores=options.raw_scores,
            dimensions=options.dimensions or None,
            prompt=options.prompt or None,
            prompt_name=options.prompt_name or None,
            input_type=options.input_type or None,
        )

    @property
    def result_column(self) -> str:
        """Return the default name of the column of results."""
        names = {"embed": "embedding", "rerank": "score", "classify": "classification"}
        return "sparse_embedding" if self.is_sparse else names[self.task]

    @property
    def probe(self) -> RowInput:
        """Return an input that can be computed."""
        return Pair(PROBE_TEXT, PROBE_TEXT) if self.task == "rerank" else PROBE_TEXT


class Executor(Protocol):
    """Computes inputs: an engine in this process, or a server.

    num_tokens: of all inputs so far.
    inputs_per_request, concurrency: size and number of its concurrent requests.
    """

    num_tokens: int
    inputs_per_request: int
    concurrency: int

    def describe(self) -> Mapping[str, Any]:
        """Return the facts that its results depend on."""

    async def compute(self, inputs: Sequence[RowInput]) -> Sequence[Any]:
        """Return one result per input, in order.

        Raises BadInput and BackendFailed for an input that cannot be computed, and other errors if none can.
        """


def group_by_query(inputs: Sequence[RowInput]) -> dict[str, list[int]]:
    """Return the indices of the documents of each query."""
    groups: dict[str, list[int]] = {}
    for index, value in enumerate(inputs):
        groups.setdefault(value[0], []).append(index)
    return groups
