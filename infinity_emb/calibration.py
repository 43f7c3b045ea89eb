"""Ranges for int8 and uint8 vectors: the texts they come from, and the file that keeps the texts' vectors.

The rows themselves are kept, not their ranges: vectors that are cut to fewer dimensions are scaled back to
length 1 and so have ranges of their own. Knows nothing of engines or models: whoever owns a model embeds the
texts and hands the rows over.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import io
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from infinity_emb.backends.base import Rows
from infinity_emb.errors import StartupError
from infinity_emb.home import write_whole
from infinity_emb.postprocess import Ranges, find_ranges, shorten_rows

RECOMMENDED_NUM_TEXTS = 100
MAX_TEXTS = 10_000
MAX_TEXT_CHARS = 100_000

_NUM_REMEMBERED_RANGES = 32  # clients choose the number of dimensions, so what is remembered has a limit
_CHECKSUM_SIZE_BYTES = hashlib.sha256().digest_size

logger = logging.getLogger("infinity_emb")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationKey:
    """All that calibration rows depend on; rows of another key are other rows.

    model: its name, by which people find the file.
    version: as `model_version.py` tells it.
    """

    model: str
    version: str
    default_prompt: str
    embedding_dimension: int
    texts: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """The same for equal keys, in every process."""
        return json.dumps(asdict(self), sort_keys=True).encode()


class CalibrationFile:
    """The calibration rows of one model: in memory once they are known, and in a file for the next start.

    The file is an .npy array followed by the SHA-256 of key and array. Nothing is locked: processes that
    start together each put a whole file in place, and the last one stays.
    """

    def __init__(self, folder: Path, key: CalibrationKey) -> None:
        self._key = key
        digest = hashlib.sha256(key.to_bytes()).hexdigest()
        name = re.sub(r"[^\w.-]+", "-", key.model, flags=re.ASCII)[-60:]
        self.path = folder / f"{name}-{digest[:32]}.npy"
        self._rows: Rows | None = None
        self._remembered_ranges = functools.lru_cache(_NUM_REMEMBERED_RANGES)(self._find_ranges)

    def load(self) -> Rows | None:
        """The rows that an earlier start saved, or None; a damaged or unreadable file is logged and left out.

        Returns (N, D) float32, as `save` got them.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            logger.warning("cannot read the calibration file %s (%s); it is computed anew", self.path, exc)
            return None
        array, checksum = content[:-_CHECKSUM_SIZE_BYTES], content[-_CHECKSUM_SIZE_BYTES:]
        if self._checksum(array) != checksum:
            logger.warning("the calibration file %s is damaged; it is computed anew", self.path)
            return None
        rows: Rows = np.load(io.BytesIO(array), allow_pickle=False)
        self._remember(rows)
        return rows

    def save(self, rows: Rows) -> None:
        """Keep the rows in memory, and in the file where its folder can be written; else log a warning.

        rows: (N, D) float32, full vectors: one of each text of the key, or more where a text has a row per
        token.
        """
        num_texts, dimension = len(self._key.texts), self._key.embedding_dimension
        assert rows.dtype == np.float32, rows.dtype
        assert rows.shape == (max(len(rows), num_texts), dimension), (
            f"rows of shape {rows.shape} for {num_texts} texts and {dimension} dimensions"
        )
        assert np.isfinite(rows).all()
        self._remember(rows)
        buffer = io.BytesIO()
        np.save(buffer, rows, allow_pickle=False)
        array = buffer.getvalue()
        try:
            write_whole(self.path, array + self._checksum(array))
        except OSError as exc:
            logger.warning(
                "cannot write the calibration file %s (%s), so the next start computes it again; set"
                " INFINITY_HOME to a folder that can be written",
                self.path,
                exc,
            )

    def ranges(self, dimensions: int | None = None) -> Ranges:
        """The ranges of vectors that were cut to so many dimensions, or of full ones.

        dimensions: as `check_dimensions` has let it through. `load` or `save` has brought the rows before.
        """
        return self._remembered_ranges(dimensions or self._key.embedding_dimension)

    def _remember(self, rows: Rows) -> None:
        self._rows = rows
        self._remembered_ranges.cache_clear()

    def _find_ranges(self, dimensions: int) -> Ranges:
        assert self._rows is not None, "ranges are asked for before there are rows"
        return find_ranges(shorten_rows(self._rows, dimensions))

    def _checksum(self, array: bytes) -> bytes:
        """With the key: a file that was copied to another key's name is not taken for that key's."""
        return hashlib.sha256(self._key.to_bytes() + array).digest()


def calibration_texts() -> list[str]:
    """About 400 texts of many kinds and languages that come with the package; always the same of one version.

    Another text makes other ranges, and int8 vectors that are stored already no longer match new ones: a
    change of the file belongs under "Changed" in the changelog.
    """
    resource = importlib.resources.files("infinity_emb") / "calibration_texts.txt"
    return _nonblank(resource.read_text(encoding="utf-8").split("\n"))


def read_texts(path: Path) -> list[str]:
    """The texts of a user's own calibration file, UTF-8 with one text a line; blank lines are left out.

    Raises StartupError where the file cannot be read, is not UTF-8, holds fewer than 2 different texts, over
    10 000 texts, or one of over 100 000 characters. Logs a warning below 100 texts.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:  # a byte order mark is no part of the first text
            texts = _read_lines(file, path)
    except OSError as exc:
        raise StartupError(
            f"cannot read the calibration file {str(path)!r} ({exc.strerror or exc}); give a text file"
            " with one text a line"
        ) from exc
    except UnicodeDecodeError as exc:
        raise StartupError(
            f"the calibration file {str(path)!r} is not UTF-8 ({exc.reason}); save it in that encoding"
        ) from exc
    _check_variety(texts, path)
    return texts


def _nonblank(lines: Iterable[str]) -> list[str]:
    return [text for line in lines if (text := line.strip())]


def _read_lines(file: TextIO, path: Path) -> list[str]:
    """Bounded, whatever file was given by mistake."""
    texts: list[str] = []
    while line := file.readline(MAX_TEXT_CHARS + 1):
        if len(line.rstrip("\n")) > MAX_TEXT_CHARS:
            raise StartupError(
                f"the calibration file {str(path)!r} holds a line of over {MAX_TEXT_CHARS} characters, the"
                " limit; give one text a line"
            )
        texts += _nonblank([line])
        if len(texts) > MAX_TEXTS:
            raise StartupError(
                f"the calibration file {str(path)!r} holds over {MAX_TEXTS} texts, the limit; give a random"
                " sample of them"
            )
    return texts


def _check_variety(texts: list[str], path: Path) -> None:
    num_different = len(set(texts))
    if num_different < 2:  # every range would be empty and every vector the same
        raise StartupError(
            f"the calibration file {str(path)!r} holds {num_different} different texts, at least 2 are"
            f" needed; give {RECOMMENDED_NUM_TEXTS} or more, like those that will be embedded, one a line"
        )
    if num_different < RECOMMENDED_NUM_TEXTS:
        logger.warning(
            "the calibration file %s holds %d different texts; with fewer than %d many values of other texts"
            " lie outside the ranges and are clipped",
            path,
            num_different,
            RECOMMENDED_NUM_TEXTS,
        )
