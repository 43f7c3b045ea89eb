"""A backend without a model, for tests: each of 13 dimensions is the number of characters of the text.

Select it with `--engine debugengine`. Its token ids are code points. The model name sets its kind, its faults
and the length of dense vectors: `debug?kind=reranker&delay_s=0.2&fail_on=poison`, `debug?dimension=1024`.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from infinity_emb.backends.base import FinishedBatch, LoadedModel
from infinity_emb.backends.fake_faults import Faults, fail_to_load, parse_faults
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import BadInput, InputTooLong, StartupError
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.items import (
    AudioInput,
    Encoded,
    Float32Array,
    ForwardSpec,
    ImageInput,
    Input,
    InputOptions,
    LateChunkingInput,
    Pair,
    Piece,
    RequestInput,
    SparseVector,
    TokenIds,
    TokenIdsInput,
)
from infinity_emb.preprocessing.tokens import too_long
from infinity_emb.preprocessing.vocabulary import Token
from infinity_emb.types import Capability, ModelInfo, ModelKind, OutputName

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


class FakeBackend:
    """Compute vectors that hold the length of each text; of a pair, of its document."""

    num_in_flight = 1
    shares_device = False

    def __init__(self, kind: ModelKind, faults: Faults, dimension: int) -> None:
        self._kind = kind
        self._dimension = dimension
        self._faults = faults

    def prepare_thread(self) -> None:
        """Return at once."""

    def free_memory(self) -> None:
        """Return at once: no memory is cached."""

    def launch(self, batch: Sequence[Encoded], *, full_precision: bool = False) -> FinishedBatch:
        """Compute the outputs and inject faults."""
        if self._faults.delay_s:
            time.sleep(self._faults.delay_s)
        if _contains(batch, self._faults.fail_on):
            raise RuntimeError(f"told to fail on {self._faults.fail_on!r}")
        if _contains(batch, self._faults.hang_on):
            threading.Event().wait()
        if _contains(batch, self._faults.die_on):
            raise SystemExit(f"told to die on {self._faults.die_on!r}")
        names = dict.fromkeys(name for item in batch for name in item.spec.outputs)
        outputs = {name: self._compute_output(name, batch) for name in names}
        vectors = outputs.get("dense")
        if _contains(batch, self._faults.wrong_count_on):
            outputs = {name: output[:-1] for name, output in outputs.items()}
        for word in (self._faults.nan_on, "" if full_precision else self._faults.nan_in_half_on):
            if word and isinstance(vectors, np.ndarray):
                vectors[[word in _decode_text(item) for item in batch]] = np.nan
        return FinishedBatch(outputs)

    def _compute_output(self, name: OutputName, batch: Sequence[Encoded]) -> Any:
        if name == "sparse":
            return [_make_sparse_vector(item.token_ids) for item in batch]
        if name in ("multivector", "tokens"):
            return [_make_token_vectors(item.token_ids) for item in batch]
        if name == "chunks":
            lengths_by_item = ([end - start for start, end in item.spans or ()] for item in batch)
            return [_make_token_vectors(np.array(lengths)) for lengths in lengths_by_item]
        if name == "maxsim":
            return np.array([[item.num_tokens] for item in batch], dtype=np.float32)
        if self._kind is ModelKind.reranker:
            return np.array([[_get_document_length(item)] for item in batch], dtype=np.float32)
        if self._kind is ModelKind.classifier:
            return np.array([[item.num_tokens, 0] for item in batch], dtype=np.float32)
        lengths = np.array([len(item.token_ids) for item in batch], dtype=np.float32)
        return np.repeat(lengths[:, None], self._dimension, axis=1)


def _contains(batch: Sequence[Encoded], word: str) -> bool:
    return bool(word) and any(word in _decode_text(item) for item in batch)


def _decode_text(item: Encoded) -> str:
    return item.token_ids.astype("<i4").tobytes().decode("utf-32-le", "replace")


class FakeVocabulary:
    """A vocabulary of characters, with code points as ids and without special tokens."""

    size = sys.maxunicode + 1

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[Token]:
        """Return a token per character."""
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise BadInput("a text is not valid Unicode; remove lone surrogates from it")
        return [Token(ord(char), char, False, (index, index + 1)) for index, char in enumerate(text)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the characters, with a replacement character for each surrogate."""
        return "".join("\ufffd" if 0xD800 <= code <= 0xDFFF else chr(code) for code in ids)


def encode(inputs: Sequence[RequestInput], options: InputOptions) -> list[Encoded]:
    """Encode one token per character. Raise InputTooLong above MAX_TOKENS if truncation is off."""
    limit = min(MAX_TOKENS, options.max_tokens or MAX_TOKENS)
    spec = ForwardSpec(task=options.task, outputs=options.outputs)
    encoded = []
    for value, position in inputs:
        if isinstance(value, TokenIdsInput) and options.prompt:
            raise BadInput("consists of token ids, which no prompt can precede", position=position)
        if isinstance(value, LateChunkingInput):
            encoded.append(_encode_passages(value, position, options, spec))
            continue
        if isinstance(value, str) and options.truncation in ("model", "right"):
            value = value[:limit]  # a long text would take seconds
        ids = _get_code_points(value, options.prompt)
        if len(ids) > limit and options.truncation == "off":
            raise too_long(len(ids), limit, position)
        kept = ids[-limit:] if options.truncation == "left" else ids[:limit]
        encoded.append(Encoded(kept, spec=spec, query_vectors=options.query_vectors, position=position))
    return encoded


def split(text: str, *, prompt: str, max_tokens: int, is_alone: bool = True) -> list[Piece]:
    """Split after a fixed number of characters."""
    size = max_tokens - len(prompt) * is_alone
    if size < 1:
        raise BadInput(f"leaves no room for a text: {len(prompt)} of {max_tokens} tokens are the prompt's")
    return [
        Piece(start, min(start + size, len(text)), min(size, len(text) - start))
        for start in range(0, max(1, len(text)), size)
    ]


def halve_scores(scores: Float32Array) -> Float32Array:
    """Activate scores such that they differ from the raw ones."""
    return scores * np.float32(0.5)


def load_model(args: LoadOptions, files: ModelFiles | None = None) -> LoadedModel:
    """Create the model. Raise StartupError for an unknown setting, or inject a fault of loading."""
    settings = dict(parse_qsl(args.model_name_or_path.partition("?")[2]))
    kind = _parse_kind(settings.pop("kind", str(args.model_kind)))
    dimension = int(settings.pop("dimension", EMBEDDING_DIMENSION))
    faults = parse_faults(settings)
    if faults.load_delay_s:
        time.sleep(faults.load_delay_s)
    if faults.load_fails and Path(faults.load_fails).is_file():
        fail_to_load(Path(faults.load_fails).read_text().strip())
    is_scoring = kind in (ModelKind.reranker, ModelKind.classifier)
    info = ModelInfo(
        kind=ModelKind.embedder if kind is ModelKind.auto else kind,
        capabilities=_CAPABILITIES[kind],
        outputs=_OUTPUTS.get(kind, ()),
        embedding_dimension=0 if is_scoring else dimension,
        max_tokens=MAX_TOKENS,
        is_normalized=False if "dense" in _OUTPUTS.get(kind, ()) else None,
        dtype="float32",
        dtype_reason="the only dtype of this engine",
        device="cpu",
        attention="none",
        attention_reason="a fake model",
        pooling="none" if kind is ModelKind.auto else "mean",
        activation="halving" if is_scoring else "none",
        labels=LABELS if kind is ModelKind.classifier else (),
        prompts={} if kind is ModelKind.auto else PROMPTS,
        default_prompt_name=None,
        revision=None,
        source="built in",
    )
    return LoadedModel(
        info=info,
        replicas=[FakeBackend(kind, faults, dimension) for _ in args.device_id or (0,)],
        encode=encode,
        max_batch_tokens=args.max_batch_tokens or 16_384,
        num_tokenizer_threads=1,
        activate=halve_scores,
        split=split,
        vocabulary=FakeVocabulary(),
        has_token_vectors=not is_scoring and kind is not ModelKind.sparse,
        sampling_rate=_SAMPLING_RATE,
        prepares_inline=True,
    )


def _parse_kind(text: str) -> ModelKind:
    kinds = [str(kind) for kind in ModelKind]
    if text not in kinds:
        raise StartupError(f"debugengine has no kind {text!r}; use one of {kinds}")
    return ModelKind(text)


def _get_code_points(value: Input, prompt: str) -> TokenIds:
    if isinstance(value, ImageInput):
        return np.ones(value.pixels.shape[0], dtype=np.int32)  # as long as the image is high
    if isinstance(value, AudioInput):
        return np.ones(1 + len(value.samples) // _SAMPLING_RATE, dtype=np.int32)
    if isinstance(value, TokenIdsInput):
        return np.array(value.ids, dtype=np.int32)
    if isinstance(value, Pair):
        value = f"{prompt}{value.query}{chr(_PAIR_SEPARATOR)}{value.document}"
    else:
        assert isinstance(value, str)
        value = prompt + value
    return np.frombuffer(value.encode("utf-32-le", "surrogatepass"), dtype=np.dtype("<i4"))


def _encode_passages(
    passages: LateChunkingInput, position: int, options: InputOptions, spec: ForwardSpec
) -> Encoded:
    ends = np.cumsum([len(options.prompt), *map(len, passages.texts)]).tolist()
    ids = _get_code_points("".join(passages.texts), options.prompt)
    if len(ids) > MAX_TOKENS:
        message = f"has {len(ids)} tokens with all passages, the limit is {MAX_TOKENS}"
        raise InputTooLong(message, position=position)
    spans = tuple(itertools.pairwise(ends))
    return Encoded(ids, spec=spec, spans=spans, position=position)


def _make_token_vectors(values: TokenIds) -> Float32Array:
    """Return (n, 13) float32, filled with each token's value."""
    return np.repeat(values.astype(np.float32)[:, None], EMBEDDING_DIMENSION, axis=1)


def _make_sparse_vector(ids: TokenIds) -> SparseVector:
    """Return how often each code point occurs."""
    indices, counts = np.unique(ids, return_counts=True)
    return SparseVector(indices.astype(np.int32), counts.astype(np.float32))


def _get_document_length(item: Encoded) -> int:
    separators = np.flatnonzero(item.token_ids == _PAIR_SEPARATOR)
    return len(item.token_ids) - (1 + int(separators[0]) if len(separators) else 0)
