"""Define the interfaces between an engine and a backend, and check a backend's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from infinity_emb.errors import BackendFailed
from infinity_emb.hardware import MemoryUse, measure_process_memory
from infinity_emb.items import (
    AudioInput,
    BatchOutputs,
    Encoded,
    Float32Array,
    ImageInput,
    InputOptions,
    Output,
    Pair,
    Piece,
    RequestInput,
    SparseVector,
)
from infinity_emb.preprocessing.vocabulary import Vocabulary
from infinity_emb.types import ModelInfo


class InFlightBatch(Protocol):
    """A batch that is being computed."""

    def result(self) -> BatchOutputs:
        """Wait for the outputs; raise the device's error.

        Returns every output that any input requested, in the order of the batch. The entry of an input that
        did not request it is finite and has no meaning.
        """


@dataclass(frozen=True, slots=True)
class FinishedBatch:
    """A batch that was computed in the calling thread."""

    outputs: BatchOutputs

    def result(self) -> BatchOutputs:
        """Return the outputs."""
        return self.outputs


class Backend(Protocol):
    """One copy of a model on one device, used by one thread at a time.

    num_in_flight: how many batches may be in flight; 2 lets the host prepare one while the device computes
    another.
    shares_device: whether the model's other replicas compute on the same device.
    """

    num_in_flight: int
    shares_device: bool

    def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> InFlightBatch:
        """Start computing a batch; a device that computes in the calling thread has finished on return.

        full_precision: compute each input alone in float32, whatever the model's dtype; slow, for the rare
        input whose values overflow.
        """

    def prepare_thread(self) -> None:
        """Prepare the calling thread for `launch`; called again if the worker thread restarts."""

    def free_memory(self) -> None:
        """Release cached device memory; called after a batch did not fit."""


class Encode(Protocol):
    """Encode inputs for the backend; safe to call from several threads."""

    def __call__(self, inputs: Sequence[RequestInput], options: InputOptions) -> list[Encoded]:
        """Return one per input, in order, with its position.

        Raises InputTooLong if truncation is off, and BadInput, both with the position of the input.
        """


class Split(Protocol):
    """Split a text into pieces; safe to call from several threads."""

    def __call__(self, text: str, *, prompt: str, max_tokens: int, is_alone: bool = True) -> list[Piece]:
        """Return pieces that cover the text in order. Raise BadInput if the prompt leaves no room.

        is_alone: whether each piece must fit the limit together with the prompt and special tokens.
        """


def identity_activation(scores: Float32Array) -> Float32Array:
    """Return raw scores unchanged."""
    return scores


class NetworkTimer(Protocol):
    """Time a network in parts, while its only replica computes one batch at a time.

    network_s: time of the network inside `timing`; layers_s: the part of it that its transformers took.
    """

    network_s: float
    layers_s: float

    def timing(self) -> AbstractContextManager[None]:
        """Add the time of what is computed inside the block."""

    def recording(self) -> AbstractContextManager[None]:
        """Record the matrix products that are computed inside the block."""

    def time_products(self) -> float | None:
        """Return how long the recorded products take alone; None if there are none."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The replicas of one model, its preprocessing and its description.

    max_batch_tokens: the value of the option, else the measured one, else a default.
    activate: (N, L) float32 raw scores → scores.
    split: None if texts cannot be split into pieces.
    vocabulary: None if the tokenizer cannot be inspected.
    has_token_vectors: whether texts have the output `tokens`.
    sampling_rate: of audio inputs, in Hz; None if the model takes none.
    free_memory: release cached device memory after the model has been unloaded.
    measure_memory: of the model's devices.
    time_network: create a timer; None if the engine does not expose the parts of its network.
    tasks: those with their own text encoder; None is the default task, which a router may lack.
    prepares_inline: whether `encode` never waits for another thread, so that it may encode a few texts on an
    event loop.
    """

    info: ModelInfo
    replicas: list[Backend]
    encode: Encode
    max_batch_tokens: int
    num_tokenizer_threads: int
    activate: Callable[[Float32Array], Float32Array] = identity_activation
    split: Split | None = None
    vocabulary: Vocabulary | None = None
    has_token_vectors: bool = False
    sampling_rate: int | None = None
    free_memory: Callable[[], None] = lambda: None
    measure_memory: Callable[[], MemoryUse] = measure_process_memory
    time_network: Callable[[], NetworkTimer] | None = None
    tasks: Sequence[str | None] = (None,)
    prepares_inline: bool = False

    @property
    def sample_task(self) -> str | None:
        """Return the task of the texts that measure the model."""
        return next(iter(self.tasks), None)


class Reference(Protocol):
    """A model in the library that defines its outputs, which computes one input at a time.

    library: its name and version. sampling_rate: of audio inputs, in Hz.
    Each method raises BadInput if the library refuses the input, and BackendFailed if it fails.
    """

    library: str
    sampling_rate: int | None

    def embed(self, text: str, task: str | None = None) -> Float32Array:
        """Return (D,) float32; (n, D) of a late-interaction model; (vocabulary,) of a sparse model.

        task: None, "query" or "document".
        """

    def embed_media(self, media: ImageInput | AudioInput) -> Float32Array:
        """Return (D,) float32; (n, D) of a late-interaction model, as for a document."""

    def score(self, query: str, documents: Sequence[str]) -> Float32Array:
        """Return (N,) float32, the score of each document."""

    def classify(self, text: str | Pair) -> Float32Array:
        """Return (L,) float32 logits."""


def check_outputs(outputs: BatchOutputs, batch: Sequence[Encoded]) -> None:
    """Raise BackendFailed unless each requested output has one entry per input.

    A wrong count must be an error: if entries shifted, a text would get another text's vector.
    """
    for name in {name for item in batch for name in item.spec.outputs}:
        if name not in outputs:
            raise BackendFailed(f"got no {name!r} output from the backend")
        _check_output(outputs[name], len(batch))


def _check_output(output: Output, num_items: int) -> None:
    if isinstance(output, np.ndarray):
        if not _is_float32(output, ndim=2) or len(output) != num_items:
            raise BackendFailed(
                f"got an array of shape {output.shape} and dtype {output.dtype} from the backend for"
                f" {num_items} items"
            )
    elif len(output) != num_items:
        raise BackendFailed(f"got {len(output)} entries from the backend for {num_items} items")
    elif not all(map(_is_entry, output)):
        raise BackendFailed("got entries from the backend that are neither float32 rows nor sparse rows")


def _is_entry(entry: object) -> bool:
    if isinstance(entry, SparseVector):
        return _is_float32(entry.values, ndim=1) and len(entry.indices) == len(entry.values)
    return _is_float32(entry, ndim=2)


def _is_float32(values: object, *, ndim: int) -> bool:
    return isinstance(values, np.ndarray) and values.dtype == np.float32 and values.ndim == ndim


def find_finite_items(outputs: BatchOutputs, batch: Sequence[Encoded]) -> npt.NDArray[np.bool_]:
    """Return (B,) bool, true for an input with finite outputs only."""
    is_finite = np.ones(len(batch), dtype=np.bool_)
    for output in outputs.values():
        if isinstance(output, np.ndarray):
            is_finite &= np.isfinite(output).all(axis=1)
        else:
            is_finite &= [_is_finite(entry) for entry in output]
    return is_finite


def _is_finite(entry: Float32Array | SparseVector) -> bool:
    return bool(np.isfinite(entry.values if isinstance(entry, SparseVector) else entry).all())
