"""The seam between a worker and whatever computes: one batch in, one array out.

Knows nothing of a particular library, nor of requests, queues or HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from infinity_emb.errors import BackendFailed
from infinity_emb.primitives import ModelInfo

TokenIds = npt.NDArray[np.int32]
Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Batch:
    """One flat row of tokens, sequence after sequence, nothing padded.

    token_ids: (T,) int32, all sequences end to end.
    lengths: tokens of each of the B sequences; sums to T.
    type_ids: (T,) int32 segment ids, or None where all are 0.
    """

    token_ids: TokenIds
    lengths: list[int]
    type_ids: TokenIds | None = None


class Launched(Protocol):
    """A batch that is on its way through the device."""

    def collect(self) -> Rows:
        """Wait for it. Returns (B, D) float32 in the batch's order. Raises what the device raised."""


class Backend(Protocol):
    """One replica: one copy of a model on one device, used by one thread at a time."""

    # Batches that may be under way at once: 2 lets the host prepare one while the device computes another.
    num_in_flight: int
    # Whether the model's other replicas compute on the same device.
    shares_device: bool

    def launch(self, batch: Batch) -> Launched:
        """Start computing a batch; a device that computes in the calling thread is done on return."""

    def prepare_thread(self) -> None:
        """Called once, on the thread that will call `launch`, before it does."""


class Tokenize(Protocol):
    """Texts → token ids; safe to call from several threads."""

    def __call__(self, texts: list[str], *, truncate: bool) -> list[TokenIds]:
        """Returns one (n,) int32 array per text. Raises InputTooLong where `truncate` is false."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a backend module hands over: replicas of one model and its tokenizer."""

    info: ModelInfo
    replicas: list[Backend]
    tokenize: Tokenize
    max_batch_tokens: int  # as the options ask; else found by measurement, or a default
    num_tokenizer_threads: int


def check_rows(rows: Rows, num_items: int) -> None:
    """Raises BackendFailed unless `rows` is a float32 matrix with one row per item.

    A wrong count must be an error: shifted rows would give every text its neighbour's vector.
    """
    if rows.ndim != 2 or rows.shape[0] != num_items or rows.dtype != np.float32:
        raise BackendFailed(
            f"the backend answered an array of shape {rows.shape} and dtype {rows.dtype}"
            f" for {num_items} items"
        )
