"""Compute with sentence-transformers itself, the reference for a served model.

The model is loaded again, in float32, and computes one input at a time, without padding. Only public methods
are used; their exceptions are translated here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import sentence_transformers
import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SparseEncoder
from sentence_transformers.base.model import BaseModel

from infinity_emb.backends.torch.device import choose_devices
from infinity_emb.backends.torch.st_introspection import get_sampling_rate
from infinity_emb.backends.torch.st_load import load_sentence_transformers_model
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import BackendFailed, BadInput, one_line
from infinity_emb.hub.detect import choose_kind
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.items import AudioInput, Float32Array, ImageInput, Pair
from infinity_emb.types import InferenceEngine


class Reference:
    """Implement `backends.base.Reference` with sentence-transformers.

    Every method raises BadInput for an input that the library refuses, and BackendFailed if it fails.
    """

    def __init__(self, model: BaseModel) -> None:
        self._model: Any = model
        self.library = f"sentence-transformers {'.'.join(sentence_transformers.__version__.split('.')[:2])}"
        self.sampling_rate = get_sampling_rate(model)

    def embed(self, text: str, task: str | None = None) -> Float32Array:
        """Return (D,) float32; (n, D) of a late-interaction model; (vocabulary,) of a sparse model.

        task: None, "query" or "document".
        """
        return self._encode(text, task)

    def embed_media(self, media: ImageInput | AudioInput) -> Float32Array:
        """Return (D,) float32; (n, D) of a late-interaction model, as for a document."""
        task = "document" if isinstance(self._model, MultiVectorEncoder) else None
        if isinstance(media, ImageInput):
            from PIL import Image

            return self._encode(Image.fromarray(media.pixels), task)
        return self._encode({"array": media.samples, "sampling_rate": self.sampling_rate}, task)

    def score(self, query: str, documents: Sequence[str]) -> Float32Array:
        """Return (N,) float32, the score of each document."""
        if isinstance(self._model, CrossEncoder):
            scores = [self._predict((query, document)) for document in documents]
            return np.array(scores, dtype=np.float32).reshape(len(documents))
        with _translate_errors():
            query_vectors = self._model.encode_query([query], show_progress_bar=False)
            similarities = []
            for document in documents:
                vectors = self._model.encode_document([document], show_progress_bar=False)
                similarities.append(float(self._model.similarity(query_vectors, vectors)[0, 0]))
            return np.array(similarities, dtype=np.float32)

    def classify(self, text: str | Pair) -> Float32Array:
        """Return (L,) float32 logits."""
        value = tuple(text) if isinstance(text, Pair) else text
        return self._predict(value, activation_fn=torch.nn.Identity())

    def _encode(self, value: Any, task: str | None) -> Float32Array:
        encode: Callable[..., Any] = getattr(self._model, "encode" if task is None else f"encode_{task}")
        options: dict[str, Any] = {"show_progress_bar": False}
        if isinstance(self._model, SparseEncoder):
            options["convert_to_sparse_tensor"] = False
        elif isinstance(self._model, MultiVectorEncoder):
            options["convert_to_numpy"] = True
        with _translate_errors():
            return _to_array(encode([value], **options)[0])

    def _predict(self, value: Any, **options: Any) -> Float32Array:
        """Return (L,), even for one label.

        A single text is not passed in a list, which `predict` would take for a pair.
        """
        with _translate_errors():
            output = self._model.predict(value, convert_to_tensor=True, show_progress_bar=False, **options)
        return np.atleast_1d(_to_array(output))


def _to_array(output: Any) -> Float32Array:
    return np.asarray(output.float().cpu() if isinstance(output, torch.Tensor) else output, dtype=np.float32)


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    """Translate exceptions: a ValueError means an input that the model does not take."""
    try:
        yield
    except ValueError as exc:
        raise BadInput(f"sentence-transformers refuses it: {one_line(exc, 200)}") from exc
    except Exception as exc:  # a model's code may raise anything
        raise BackendFailed(
            f"sentence-transformers raises {type(exc).__name__}: {one_line(exc, 200)}"
        ) from exc


def load_reference(options: LoadOptions, files: ModelFiles) -> Reference:
    """Load the model on the device of the options. Raise StartupError."""
    kind = choose_kind(options, files.path)
    # torch may not support another engine's device.
    device = choose_devices(options)[0] if options.engine is InferenceEngine.torch else torch.device("cpu")
    return Reference(load_sentence_transformers_model(options, files, kind, device, torch.float32))
