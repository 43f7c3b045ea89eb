"""A backend without a model: 13 dimensions, every value the number of characters of the text.

It ships with the package (`--engine debugengine`) for tests of everything around a model. Its token ids
are code points, so it tokenizes nothing. It can be told, in the model name, to be another kind of model, to
be slow, to fail and to miscount: `debug?kind=reranker&delay_s=0.2&fail_on=poison&nan_on=nan`.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from infinity_emb.backends.base import (
    Answers,
    Backend,
    Clip,
    Encoded,
    Ids,
    Input,
    InputOptions,
    LoadedModel,
    Pair,
    Passages,
    Picture,
    Piece,
    Recipe,
    Rows,
    SparseRow,
    TokenIds,
)
from infinity_emb.backends.fake_vocabulary import FakeVocabulary
from infinity_emb.config import EngineArgs
from infinity_emb.errors import BadInput, InputTooLong, StartupError
from infinity_emb.model_files import ModelFiles
from infinity_emb.primitives import Capability, ModelInfo, ModelKind, OutputName

EMBEDDING_DIMENSION = 13
MAX_TOKENS = 8192
LABELS = ("characters", "none")
PROMPTS = {"query": "query: ", "document": ""}
_SAMPLING_RATE = 16_000
_PAIR_SEPARATOR = 0  # between the code points of a pair's two texts

_CAPABILITIES: dict[ModelKind, tuple[Capability, ...]] = {
    ModelKind.auto: ("embed",),
    ModelKind.embedder: ("embed", "embed_sparse", "rerank", "image_embed", "audio_embed"),
    ModelKind.reranker: ("rerank",),
    ModelKind.classifier: ("classify",),
    ModelKind.sparse: ("embed_sparse", "embed", "rerank"),
    ModelKind.multivector: ("embed", "rerank", "image_embed"),
}
_OUTPUTS: dict[ModelKind, tuple[OutputName, ...]] = {
    ModelKind.auto: ("dense",),
    ModelKind.embedder: ("dense", "sparse", "multivector"),
    ModelKind.sparse: ("sparse",),
    ModelKind.multivector: ("multivector",),
}


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong on purpose. The `*_on` words act on batches that hold a text with that word."""

    delay_s: float = 0.0  # each batch takes that long
    fail_on: str = ""  # the batch raises
    die_on: str = ""  # the device thread ends
    hang_on: str = ""  # the batch never returns
    wrong_count_on: str = ""  # one row too few is answered
    nan_on: str = ""  # that text's row is NaN
    nan_in_half_on: str = ""  # that text's row is NaN unless it is computed in full precision
    load_delay_s: float = 0.0  # loading takes that long
    load_fails: str = ""  # loading fails while a file of that path is there, as it says


class FakeBackend:
    """Rows that say how long each text was; of a pair, how long the document was."""

    num_in_flight = 1
    shares_device = False

    def __init__(self, kind: ModelKind, faults: Faults) -> None:
        self._kind = kind
        self._faults = faults

    def prepare_thread(self) -> None:
        """Nothing to prepare."""

    def free_memory(self) -> None:
        """Nothing is kept."""

    def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> FakeLaunched:
        """Compute the rows, and whatever is to go wrong."""
        texts = [_decode(item) for item in batch]
        if self._faults.delay_s:
            time.sleep(self._faults.delay_s)
        if self._hits(texts, self._faults.fail_on):
            raise RuntimeError(f"told to fail on {self._faults.fail_on!r}")
        if self._hits(texts, self._faults.hang_on):
            threading.Event().wait()
        if self._hits(texts, self._faults.die_on):
            raise SystemExit(f"told to die on {self._faults.die_on!r}")
        answers = {name: self._column(name, batch) for name in _outputs_of(batch)}
        rows = answers.get("dense")
        if self._hits(texts, self._faults.wrong_count_on):
            answers = {name: column[:-1] for name, column in answers.items()}
        words = [self._faults.nan_on, "" if full_precision else self._faults.nan_in_half_on]
        for word in filter(None, words):
            if isinstance(rows, np.ndarray):
                rows[[word in text for text in texts]] = np.nan
        return FakeLaunched(answers)

    def _column(self, name: OutputName, batch: Sequence[Encoded]) -> Any:
        if name == "sparse":
            return [_sparse_row(item.token_ids) for item in batch]
        if name in ("multivector", "tokens"):
            return [_token_rows(item.token_ids) for item in batch]
        if name == "chunks":
            return [_token_rows(np.array([end - start for start, end in item.spans or ()])) for item in batch]
        if name == "maxsim":
            return np.array([[item.num_tokens] for item in batch], dtype=np.float32)
        if self._kind is ModelKind.reranker:
            return np.array([[_document_length(item)] for item in batch], dtype=np.float32)
        if self._kind is ModelKind.classifier:
            return np.array([[item.num_tokens, 0] for item in batch], dtype=np.float32)
        lengths = np.array([len(item.token_ids) for item in batch], dtype=np.float32)
        return np.repeat(lengths[:, None], EMBEDDING_DIMENSION, axis=1)

    @staticmethod
    def _hits(texts: list[str], word: str) -> bool:
        return bool(word) and any(word in text for text in texts)


@dataclass(frozen=True, slots=True)
class FakeLaunched:
    """Answers that were ready on return."""

    answers: Answers

    def collect(self) -> Answers:
        """The answers."""
        return self.answers


def prepare(inputs: Sequence[Input], options: InputOptions) -> list[Encoded]:
    """One token per character. Raises InputTooLong over MAX_TOKENS characters where nothing may be cut."""
    limit = min(MAX_TOKENS, options.max_tokens or MAX_TOKENS)
    recipe = Recipe(task=options.task, outputs=options.outputs)
    encoded = []
    for position, each in enumerate(inputs):
        if isinstance(each, Ids) and options.prompt:
            raise BadInput("is token ids, before which no prompt can go", position=position)
        if isinstance(each, Passages):
            encoded.append(_read_passages(each, options, recipe))
            continue
        ids = _code_points(each, options.prompt)
        if len(ids) > limit and options.truncation == "off":
            raise InputTooLong(
                f"has {len(ids)} tokens, the limit is {limit};"
                " shorten it, or allow it to be cut with truncate=true",
                position=position,
            )
        kept = ids[-limit:] if options.truncation == "left" else ids[:limit]
        encoded.append(Encoded(np.array(kept, dtype=np.int32), recipe=recipe, query_rows=options.query_rows))
    return encoded


def split(text: str, *, prompt: str, max_tokens: int, is_alone: bool = True) -> list[Piece]:
    """Every so many characters."""
    size = max_tokens - len(prompt) * is_alone
    if size < 1:
        raise BadInput(f"leaves no room for a text: {len(prompt)} of {max_tokens} tokens are the prompt's")
    return [
        Piece(start, min(start + size, len(text)), min(size, len(text) - start))
        for start in range(0, max(1, len(text)), size)
    ]


def leave_or_halve(rows: Rows) -> Rows:
    """Scores that are told from raw ones."""
    return rows * np.float32(0.5)


def load_model(args: EngineArgs, files: ModelFiles | None = None) -> LoadedModel:
    """Nothing is loaded. Raises StartupError for what it does not understand in the model name.

    Raises what `_fail_to_load` says, where it was told to.
    """
    given = dict(parse_qsl(args.model_name_or_path.partition("?")[2]))
    kind = _parse_kind(given.pop("kind", str(args.model_kind)))
    faults = _parse_faults(given)
    if faults.load_delay_s:
        time.sleep(faults.load_delay_s)
    _fail_to_load(faults.load_fails)
    is_scoring = kind in (ModelKind.reranker, ModelKind.classifier)
    info = ModelInfo(
        kind=ModelKind.embedder if kind is ModelKind.auto else kind,
        capabilities=_CAPABILITIES[kind],
        outputs=_OUTPUTS.get(kind, ()),
        embedding_dimension=0 if is_scoring else EMBEDDING_DIMENSION,
        max_tokens=MAX_TOKENS,
        dtype="float32",
        dtype_reason="the fake engine knows no other",
        device="cpu",
        attention="packed",
        attention_reason="nothing attends",
        pooling="none" if kind is ModelKind.auto else "mean",
        activation="halving" if is_scoring else "none",
        labels=LABELS if kind is ModelKind.classifier else (),
        prompts={} if kind is ModelKind.auto else PROMPTS,
        default_prompt_name=None,
        revision=None,
        source="built in",
    )
    replicas: list[Backend] = [FakeBackend(kind, faults) for _ in args.device_id or (0,)]
    return LoadedModel(
        info=info,
        replicas=replicas,
        prepare=prepare,
        max_batch_tokens=args.max_batch_tokens or 16_384,
        num_tokenizer_threads=1,
        activate=leave_or_halve,
        split=split,
        vocabulary=FakeVocabulary(),
        has_token_rows=not is_scoring and kind is not ModelKind.sparse,
        sampling_rate=_SAMPLING_RATE,
        prepares_inline=True,
    )


def _parse_kind(text: str) -> ModelKind:
    try:
        return ModelKind(text)
    except ValueError:
        kinds = [str(kind) for kind in ModelKind]
        raise StartupError(f"debugengine can be no {text!r}; it can be one of {kinds}") from None


def _parse_faults(given: dict[str, str]) -> Faults:
    known = Faults.__dataclass_fields__
    unknown = given.keys() - known.keys()
    if unknown:
        raise StartupError(f"debugengine knows no fault {sorted(unknown)}; it knows {sorted(known)}")
    delay_s, load_delay_s = (
        _parse_seconds(name, given.pop(name, "0")) for name in ("delay_s", "load_delay_s")
    )
    return Faults(delay_s=delay_s, load_delay_s=load_delay_s, **given)


def _fail_to_load(path: str) -> None:
    """Raises MemoryError where the file says `memory`, and StartupError with any other text of it."""
    if path and Path(path).is_file():
        reason = Path(path).read_text().strip()
        raise MemoryError if reason == "memory" else StartupError(f"told not to load: {reason}")


def _parse_seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise StartupError(f"debugengine cannot wait {name}={text!r}; give a number of seconds")
    return seconds


def _code_points(each: Input, prompt: str) -> list[int]:
    if isinstance(each, Picture):
        return [1] * each.pixels.shape[0]  # as long as the image is high
    if isinstance(each, Clip):
        return [1] * (1 + len(each.samples) // _SAMPLING_RATE)
    if isinstance(each, Ids):
        return list(each.ids)
    if isinstance(each, Pair):
        return [*map(ord, prompt + each.query), _PAIR_SEPARATOR, *map(ord, each.document)]
    assert isinstance(each, str)
    return list(map(ord, prompt + each))


def _read_passages(passages: Passages, options: InputOptions, recipe: Recipe) -> Encoded:
    ends = np.cumsum([len(options.prompt), *map(len, passages.texts)]).tolist()
    ids = _code_points("".join(passages.texts), options.prompt)
    if len(ids) > MAX_TOKENS:
        raise InputTooLong(f"has {len(ids)} tokens with all passages, the limit is {MAX_TOKENS}", position=0)
    spans = tuple(itertools.pairwise(ends))
    return Encoded(np.array(ids, dtype=np.int32), recipe=recipe, spans=spans)


def _outputs_of(batch: Sequence[Encoded]) -> list[OutputName]:
    return list(dict.fromkeys(name for item in batch for name in item.recipe.outputs))


def _token_rows(values: TokenIds) -> Rows:
    """(n, 13): each row a token's number."""
    return np.repeat(values.astype(np.float32)[:, None], EMBEDDING_DIMENSION, axis=1)


def _sparse_row(ids: TokenIds) -> SparseRow:
    """How often each code point occurs."""
    indices, counts = np.unique(ids, return_counts=True)
    return SparseRow(indices.astype(np.int32), counts.astype(np.float32))


def _document_length(item: Encoded) -> int:
    separators = np.flatnonzero(item.token_ids == _PAIR_SEPARATOR)
    return len(item.token_ids) - 1 - int(separators[0]) if len(separators) else len(item.token_ids)


def _decode(item: Encoded) -> str:
    return "".join(map(chr, item.token_ids))
