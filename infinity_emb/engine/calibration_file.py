"""Keep the vectors of a model's calibration texts, and find quantization ranges in them.

The vectors are kept, not their ranges: vectors cut to fewer dimensions are rescaled to length 1, so each
number of dimensions has different ranges.
"""

from __future__ import annotations

import functools
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from infinity_emb.items import Float32Array
from infinity_emb.postprocessing import QuantizationRanges, compute_ranges, normalize, truncate_dimensions
from infinity_emb.storage.keyed_file import KeyedFile

MAX_CACHED_RANGES = 32  # clients choose the number of dimensions


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationKey:
    """Identify calibration vectors by everything that they depend on.

    model: part of the file's name.
    version: from `hub/version.py`.
    """

    model: str
    version: str
    default_prompt: str
    embedding_dimension: int
    texts: tuple[str, ...]

    def to_json(self) -> str:
        """Serialize the key, identically in every process."""
        return json.dumps(asdict(self), sort_keys=True)


class CalibrationFile:
    """Hold the calibration vectors of one model in memory, and in a file for the next start.

    The file is an .npy array followed by a checksum; numpy can open it.
    """

    def __init__(self, folder: Path, key: CalibrationKey) -> None:
        self._key = key
        self._file = KeyedFile(
            folder=folder, purpose="calibration file", name=key.model, key=key.to_json(), suffix=".npy"
        )
        self._vectors: Float32Array | None = None
        self._cached_ranges = functools.lru_cache(MAX_CACHED_RANGES)(self._compute_ranges)

    @property
    def path(self) -> Path:
        """Return the path of the file, which may not exist yet."""
        return self._file.path

    @property
    def num_cached_ranges(self) -> int:
        """Return how many numbers of dimensions have cached ranges."""
        return self._cached_ranges.cache_info().currsize

    def load(self) -> Float32Array | None:
        """Load the vectors that an earlier start saved; return None when there is no valid file.

        Returns (N, D) float32, as given to `save`.
        """
        array = self._file.read()
        if array is None:
            return None
        vectors: Float32Array = np.load(io.BytesIO(array), allow_pickle=False)
        self._set(vectors)
        return vectors

    def save(self, vectors: Float32Array) -> None:
        """Keep the vectors in memory and write the file.

        vectors: (N, D) float32, all dimensions: one per text of the key, or more where a text has one per
        token.
        """
        num_texts, dimension = len(self._key.texts), self._key.embedding_dimension
        assert vectors.dtype == np.float32, vectors.dtype
        assert vectors.shape == (max(len(vectors), num_texts), dimension), (
            f"vectors of shape {vectors.shape} for {num_texts} texts and {dimension} dimensions"
        )
        assert np.isfinite(vectors).all()
        self._set(vectors)
        buffer = io.BytesIO()
        np.save(buffer, vectors, allow_pickle=False)
        self._file.write(buffer.getvalue())

    def ranges(self, dimensions: int | None = None, *, is_normalized: bool = False) -> QuantizationRanges:
        """Return the ranges of vectors cut to `dimensions`; call `load` or `save` first.

        is_normalized: scale vectors to length 1 even if they are not cut.
        """
        return self._cached_ranges(dimensions or self._key.embedding_dimension, is_normalized)

    def _set(self, vectors: Float32Array) -> None:
        self._vectors = vectors
        self._cached_ranges.cache_clear()

    def _compute_ranges(self, dimensions: int, is_normalized: bool) -> QuantizationRanges:
        assert self._vectors is not None, "`ranges` was called before `load` or `save`"
        vectors = truncate_dimensions(self._vectors, dimensions)
        return compute_ranges(normalize(vectors) if is_normalized else vectors)
