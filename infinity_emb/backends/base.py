"""The seam between a worker and whatever computes: prepared inputs in, arrays out, one of each per input.

Knows nothing of a particular library, nor of requests, queues or HTTP. Over 300 lines, so that the whole seam
stands on one page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from infinity_emb.errors import BackendFailed, BadInput
from infinity_emb.primitives import ModelInfo, OutputName, Truncation

TokenIds = npt.NDArray[np.int32]
Rows = npt.NDArray[np.float32]


class Pair(NamedTuple):
    """Two texts that are read as one: what a reranker scores."""

    query: str
    document: str


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image, decoded. pixels: (height, width, 3) uint8, RGB."""

    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A piece of audio, decoded. samples: (n,) float32, mono, at the model's sampling rate."""

    samples: npt.NDArray[np.float32]


class Ids(NamedTuple):
    """A text as ids of the model's vocabulary, special tokens included; nothing is added to them."""

    ids: tuple[int, ...]


class Passages(NamedTuple):
    """Texts that are read as one, each to have a vector of its own (late chunking)."""

    texts: tuple[str, ...]


Input: TypeAlias = "str | Pair | Ids | Picture | Clip | Passages"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InputOptions:
    """How the inputs of one request are to be read and what is wanted of them."""

    prompt: str = ""  # put before a text, or before the query of a pair
    task: str | None = None  # sentence-transformers' `task`: query, document, or a route of the model
    truncation: Truncation = "model"
    max_tokens: int | None = None  # the limit of this request, where it is below the model's
    outputs: tuple[OutputName, ...] = ("dense",)
    query_rows: Rows | None = None  # (q, D) float32, for the output `maxsim`

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise BadInput(f"max_tokens is {self.max_tokens}; give 1 or more, or None for the model's limit")

    def limit(self, own: int | None) -> int | None:
        """Tokens of a text, special ones included, over which it is cut or refused; None never is.

        own: the model's limit.
        """
        given = [each for each in (own, self.max_tokens) if each is not None]
        return min(given, default=None)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an input is computed; those of one recipe can share a forward pass."""

    modality: str = "text"
    task: str | None = None
    prompt_length: int = 0  # leading tokens that pooling leaves out
    outputs: tuple[OutputName, ...] = ("dense",)


TEXT = Recipe()


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One input made ready for the device.

    token_ids: (n,) int32, nothing padded; empty where `features` say all.
    type_ids: (n,) int32 segment ids, or None where all are 0.
    num_attended: so many leading tokens are looked at by the others; None for all. The rest look at them
    and have rows of their own (ColBERT's query expansion).
    features: for inputs that are more than tokens (images, audio, unusual modules): what the model's own
    preprocessing made of this one input, arrays with a leading dimension of 1 and lists of one member.
    spans: token ranges [start, end), each of which the output `chunks` answers a vector for.
    query_rows: (q, D) float32, the token vectors of the query that the output `maxsim` scores this text for.
    """

    token_ids: TokenIds
    type_ids: TokenIds | None = None
    recipe: Recipe = TEXT
    num_attended: int | None = None
    features: Mapping[str, npt.NDArray[Any] | list[Any]] | None = None
    spans: tuple[tuple[int, int], ...] | None = None
    query_rows: Rows | None = None
    num_tokens: int = 0  # what it costs; 0 counts `token_ids`

    def __post_init__(self) -> None:
        if not self.num_tokens:
            object.__setattr__(self, "num_tokens", len(self.token_ids))


class SparseRow(NamedTuple):
    """The entries of one sparse vector that are not 0."""

    indices: npt.NDArray[np.int32]  # (n,) ascending
    values: npt.NDArray[np.float32]  # (n,)


# One entry per input, in order: a (B, D) float32 array; or where lengths differ a list of (n, D) arrays or
# of sparse rows.
Column: TypeAlias = "Rows | list[Rows] | list[SparseRow]"
Answers: TypeAlias = "Mapping[OutputName, Column]"


class Launched(Protocol):
    """A batch that is on its way through the device."""

    def collect(self) -> Answers:
        """Wait for it. Returns a column for each output that any input asked for, in the batch's order.

        The entry of an input that did not ask for it is finite and means nothing. Raises what the device
        raised.
        """


class Backend(Protocol):
    """One replica: one copy of a model on one device, used by one thread at a time."""

    # Batches that may be under way at once: 2 lets the host prepare one while the device computes another.
    num_in_flight: int
    # Whether the model's other replicas compute on the same device.
    shares_device: bool

    def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> Launched:
        """Start computing a batch; a device that computes in the calling thread is done on return.

        full_precision: compute each input alone and in float32, whatever the model's number format is; slow,
        for the rare input whose values do not fit the format.
        """

    def prepare_thread(self) -> None:
        """Called on the thread that will call `launch`, before it does; again when that comes back."""

    def free_memory(self) -> None:
        """Give back what the device keeps for later; called when a batch did not fit."""


class Prepare(Protocol):
    """Inputs → what the device takes; safe to call from several threads."""

    def __call__(self, inputs: Sequence[Input], options: InputOptions) -> list[Encoded]:
        """Returns one per input, in order. Raises InputTooLong where nothing may be cut, and BadInput."""


class Piece(NamedTuple):
    """A part of a text: characters [start, end), and how many tokens it is."""

    start: int
    end: int
    num_tokens: int


class Split(Protocol):
    """Cuts a text into pieces; safe to call from several threads."""

    def __call__(self, text: str, *, prompt: str, max_tokens: int, is_alone: bool = True) -> list[Piece]:
        """Returns pieces that cover the text in order. Raises BadInput where a prompt leaves no room.

        is_alone: each is to fit the limit together with the prompt and the model's special tokens.
        """


class Token(NamedTuple):
    """A token of a text.

    text: what it stands for in the text; of a special one, and where nothing tells, its name in the
    vocabulary.
    span: characters [start, end) of the text; None for a special one, and where nothing tells.
    """

    id: int
    text: str
    is_special: bool
    span: tuple[int, int] | None


class Vocabulary(Protocol):
    """Text → tokens, and back; safe to call from several threads. Nothing is cut."""

    @property
    def size(self) -> int:
        """The model reads the ids 0..size-1."""

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[Token]:
        """As the model reads a single text. Raises BadInput for a text that is not valid Unicode."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """A text for ids, each in 0..size-1. Tokenizing it again may give others."""


def leave_scores(rows: Rows) -> Rows:
    """The activation of a model that has none."""
    return rows


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a backend module hands over: replicas of one model and its preprocessing."""

    info: ModelInfo
    replicas: list[Backend]
    prepare: Prepare
    max_batch_tokens: int  # as the options ask; else found by measurement, or a default
    num_tokenizer_threads: int
    activate: Callable[[Rows], Rows] = leave_scores  # (N, L) float32 raw scores → scores
    split: Split | None = None  # None: texts cannot be cut into pieces
    vocabulary: Vocabulary | None = None  # None: the model has no tokenizer that can be asked
    has_token_rows: bool = False  # whether texts can be asked for the output `tokens`, alone
    sampling_rate: int | None = None  # in Hz, of the clips that `prepare` takes; None: it takes none
    free_memory: Callable[[], None] = lambda: None  # gives back what is left when all of this is gone
    prepares_inline: bool = False  # `prepare` waits for no other thread: a few texts may hold an event loop


class Reference(Protocol):
    """What another library answers for the same model, one input at a time.

    Every method raises BadInput for what the library refuses, and BackendFailed where it fails.
    """

    library: str  # and its version
    sampling_rate: int | None  # in Hz, of the clips that it takes

    def embed(self, text: str, task: str | None = None) -> Rows:
        """(D,) float32; (n, D) of a late-interaction model; a sparse vector as (vocabulary,).

        task: None, "query" or "document".
        """

    def embed_media(self, media: Picture | Clip) -> Rows:
        """(D,) float32; (n, D) of a late-interaction model, to which it is a document."""

    def score(self, query: str, documents: Sequence[str]) -> Rows:
        """(N,) float32, each document's score for the query."""

    def classify(self, text: str | Pair) -> Rows:
        """(L,) float32 logits."""


def check_answers(answers: Answers, batch: Sequence[Encoded]) -> None:
    """Raises BackendFailed unless each column that was asked for has one entry per input.

    A wrong count must be an error: shifted rows would give every text its neighbour's vector.
    """
    for name in {name for item in batch for name in item.recipe.outputs}:
        if name not in answers:
            raise BackendFailed(f"got no {name!r} output from the backend")
        _check_column(answers[name], len(batch))


def _check_column(column: Column, num_items: int) -> None:
    if isinstance(column, np.ndarray):
        if not _is_float32(column, ndim=2) or len(column) != num_items:
            raise BackendFailed(
                f"got an array of shape {column.shape} and dtype {column.dtype} from the backend for"
                f" {num_items} items"
            )
    elif len(column) != num_items:
        raise BackendFailed(f"got {len(column)} entries from the backend for {num_items} items")
    elif not all(map(_is_entry, column)):
        raise BackendFailed("got entries from the backend that are neither float32 rows nor sparse rows")


def _is_entry(entry: object) -> bool:
    if isinstance(entry, SparseRow):
        return _is_float32(entry.values, ndim=1) and len(entry.indices) == len(entry.values)
    return _is_float32(entry, ndim=2)


def _is_float32(values: object, *, ndim: int) -> bool:
    return isinstance(values, np.ndarray) and values.dtype == np.float32 and values.ndim == ndim


def finite_items(answers: Answers, batch: Sequence[Encoded]) -> npt.NDArray[np.bool_]:
    """(B,) bool: whether all numbers that an input asked for are finite."""
    finite = np.ones(len(batch), dtype=np.bool_)
    for column in answers.values():
        if isinstance(column, np.ndarray):
            finite &= np.isfinite(column).all(axis=1)
        else:
            finite &= [_is_finite(entry) for entry in column]
    return finite


def _is_finite(entry: Rows | SparseRow) -> bool:
    return bool(np.isfinite(entry.values if isinstance(entry, SparseRow) else entry).all())
