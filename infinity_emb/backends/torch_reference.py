"""sentence-transformers itself, as the reference that a served model is compared with.

It loads the model anew, in float32, and takes one input at a time, so that no padding enters its numbers.
Only its public methods are used; what they raise is translated here. Knows nothing of engines.
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

from infinity_emb.backends.base import Clip, Pair, Picture, Rows
from infinity_emb.backends.torch_device import choose_devices
from infinity_emb.backends.torch_models import load_sentence_transformers_model, sampling_rate_of
from infinity_emb.config import EngineArgs
from infinity_emb.errors import BackendFailed, BadInput, one_line
from infinity_emb.model_files import ModelFiles
from infinity_emb.model_kind import choose_kind
from infinity_emb.primitives import InferenceEngine


class Reference:
    """One model, computed by sentence-transformers.

    Every method raises BadInput for what sentence-transformers refuses, and BackendFailed where it fails.
    """

    def __init__(self, model: BaseModel) -> None:
        self._model: Any = model
        self.library = f"sentence-transformers {'.'.join(sentence_transformers.__version__.split('.')[:2])}"
        self.sampling_rate = sampling_rate_of(model)

    def embed(self, text: str, task: str | None = None) -> Rows:
        """(D,) float32; (n, D) of a late-interaction model; a sparse vector as (vocabulary,).

        task: None, "query" or "document".
        """
        return self._encode(text, task)

    def embed_media(self, media: Picture | Clip) -> Rows:
        """(D,) float32; (n, D) of a late-interaction model, to which it is a document."""
        task = "document" if isinstance(self._model, MultiVectorEncoder) else None
        if isinstance(media, Picture):
            from PIL import Image

            return self._encode(Image.fromarray(media.pixels), task)
        return self._encode({"array": media.samples, "sampling_rate": self.sampling_rate}, task)

    def score(self, query: str, documents: Sequence[str]) -> Rows:
        """(N,) float32, each document's score for the query."""
        if isinstance(self._model, CrossEncoder):
            scores = [self._predict((query, document)) for document in documents]
            return np.array(scores, dtype=np.float32).reshape(len(documents))
        with _translated():
            asked = self._model.encode_query([query], show_progress_bar=False)
            told = (
                self._model.encode_document([document], show_progress_bar=False) for document in documents
            )
            return np.array([float(self._model.similarity(asked, each)[0, 0]) for each in told], np.float32)

    def classify(self, text: str | Pair) -> Rows:
        """(L,) float32 logits."""
        given = tuple(text) if isinstance(text, Pair) else text
        return self._predict(given, activation_fn=torch.nn.Identity())

    def _encode(self, given: Any, task: str | None) -> Rows:
        encode: Callable[..., Any] = getattr(self._model, "encode" if task is None else f"encode_{task}")
        options: dict[str, Any] = {"show_progress_bar": False}
        if isinstance(self._model, SparseEncoder):
            options["convert_to_sparse_tensor"] = False
        elif isinstance(self._model, MultiVectorEncoder):
            options["convert_to_numpy"] = True
        with _translated():
            return _as_rows(encode([given], **options)[0])

    def _predict(self, given: Any, **options: Any) -> Rows:
        """(L,), also where there is one label. A text on its own must not stand in a list: `predict` takes
        a list of texts for a pair."""
        with _translated():
            answer = self._model.predict(given, convert_to_tensor=True, show_progress_bar=False, **options)
        return np.atleast_1d(_as_rows(answer))


def _as_rows(answer: Any) -> Rows:
    return np.asarray(answer.float().cpu() if isinstance(answer, torch.Tensor) else answer, dtype=np.float32)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """A ValueError says that an input is not for this model, such as a text that has no route through it."""
    try:
        yield
    except ValueError as exc:
        raise BadInput(f"sentence-transformers refuses it: {one_line(exc, 200)}") from exc
    except Exception as exc:  # whatever a model's own code raises
        raise BackendFailed(
            f"sentence-transformers raises {type(exc).__name__}: {one_line(exc, 200)}"
        ) from exc


def load_reference(args: EngineArgs, files: ModelFiles) -> Reference:
    """The model that `args` names, on the device that they name for torch. Raises StartupError."""
    kind = choose_kind(args, files.path)
    # Another engine's devices may be none that torch knows.
    device = choose_devices(args)[0] if args.engine is InferenceEngine.torch else torch.device("cpu")
    return Reference(load_sentence_transformers_model(args, files, kind, device, torch.float32))
