"""A backend without a model: 13 dimensions, every value the number of characters of the text.

It ships with the package (`--engine debugengine`) for tests of everything around a model. Its token ids
are code points, so it tokenizes nothing. It can be told to be slow, to fail and to miscount, in the model
name: `debug?delay_s=0.2&fail_on=poison&wrong_count_on=short&nan_on=nan`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from urllib.parse import parse_qsl

import numpy as np

from infinity_emb.backends.base import Batch, LoadedModel, Rows, TokenIds
from infinity_emb.config import EngineArgs
from infinity_emb.errors import InputTooLong, StartupError
from infinity_emb.primitives import ModelInfo

EMBEDDING_DIMENSION = 13
MAX_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong on purpose. The `*_on` words act on batches that hold a text with that word."""

    delay_s: float = 0.0  # each batch takes that long
    fail_on: str = ""  # the batch raises
    die_on: str = ""  # the device thread ends
    wrong_count_on: str = ""  # one row too few is answered
    nan_on: str = ""  # that text's row is NaN


class FakeBackend:
    """Rows that say how long each text was."""

    num_in_flight = 1
    shares_device = False

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def prepare_thread(self) -> None:
        """Nothing to prepare."""

    def launch(self, batch: Batch) -> FakeLaunched:
        """Compute at once, or do what the faults say."""
        texts = _decode(batch)
        if self._faults.delay_s:
            time.sleep(self._faults.delay_s)
        if self._hits(texts, self._faults.fail_on):
            raise RuntimeError(f"told to fail on {self._faults.fail_on!r}")
        if self._hits(texts, self._faults.die_on):
            raise SystemExit(f"told to die on {self._faults.die_on!r}")
        rows = np.repeat(np.array(batch.lengths, dtype=np.float32)[:, None], EMBEDDING_DIMENSION, axis=1)
        if self._hits(texts, self._faults.wrong_count_on):
            rows = rows[:-1]
        if self._faults.nan_on:
            rows[[self._faults.nan_on in text for text in texts]] = np.nan
        return FakeLaunched(rows)

    @staticmethod
    def _hits(texts: list[str], word: str) -> bool:
        return bool(word) and any(word in text for text in texts)


@dataclass(frozen=True, slots=True)
class FakeLaunched:
    """Rows that were ready on return."""

    rows: Rows

    def collect(self) -> Rows:
        """The rows."""
        return self.rows


def tokenize(texts: list[str], *, truncate: bool) -> list[TokenIds]:
    """One token per character. Raises InputTooLong over MAX_TOKENS characters unless `truncate`."""
    for position, text in enumerate(texts):
        if len(text) > MAX_TOKENS and not truncate:
            raise InputTooLong(
                f"has {len(text)} tokens, the limit is {MAX_TOKENS};"
                " shorten it, or allow it to be cut with truncate=true",
                position=position,
            )
    return [np.array([ord(char) for char in text[:MAX_TOKENS]], dtype=np.int32) for text in texts]


def load_model(args: EngineArgs) -> LoadedModel:
    """Nothing is loaded. Raises StartupError for a fault in the model name that it does not understand."""
    faults = _parse_faults(args.model_name_or_path)
    info = ModelInfo(
        embedding_dimension=EMBEDDING_DIMENSION,
        max_tokens=MAX_TOKENS,
        capabilities=("embed",),
        dtype="float32",
        dtype_reason="the fake engine knows no other",
        device="cpu",
        attention="packed",
        attention_reason="nothing attends",
        pooling="none",
        prompts={},
        default_prompt_name=None,
        revision=None,
        source="built in",
    )
    return LoadedModel(
        info=info,
        replicas=[FakeBackend(faults) for _ in args.device_id or (0,)],
        tokenize=tokenize,
        max_batch_tokens=args.max_batch_tokens or 16_384,
        num_tokenizer_threads=1,
    )


def _parse_faults(model_name: str) -> Faults:
    given = dict(parse_qsl(model_name.partition("?")[2]))
    known = Faults.__dataclass_fields__
    unknown = given.keys() - known.keys()
    if unknown:
        raise StartupError(f"debugengine knows no fault {sorted(unknown)}; it knows {sorted(known)}")
    delay_s = _parse_seconds(given.pop("delay_s", "0"))
    return Faults(delay_s=delay_s, **given)


def _parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise StartupError(f"debugengine cannot wait delay_s={text!r}; give a number of seconds")
    return seconds


def _decode(batch: Batch) -> list[str]:
    ends = np.cumsum(batch.lengths)
    return [
        "".join(map(chr, batch.token_ids[end - length : end]))
        for end, length in zip(ends, batch.lengths, strict=True)
    ]
