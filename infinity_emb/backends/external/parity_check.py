"""Compare a network that another library computes with torch's outputs for probe texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor

from infinity_emb.backends.accuracy import Accuracy, center, compare
from infinity_emb.backends.external.network import ExternalNetwork
from infinity_emb.backends.out_of_memory import is_out_of_memory
from infinity_emb.backends.probes import PARITY_TEXTS
from infinity_emb.errors import StartupError, one_line
from infinity_emb.types import ModelKind


@dataclass(frozen=True, slots=True)
class Probe:
    """Inputs of a network, and the outputs that torch computes for them.

    features: inputs of the module, on the CPU.
    rows: (T, H) of the tokens without padding, or (B, L) scores; float32. None if the network has no weights.
    """

    transformer: Transformer
    features: Mapping[str, Any]
    rows: Tensor | None

    @classmethod
    def of(cls, transformer: Transformer, kind: ModelKind, *, has_weights: bool = True) -> Probe:
        """Compute the outputs of the module's current network."""
        inputs: list[Any] = [{"text": text} for text in PARITY_TEXTS]
        if kind is ModelKind.reranker:
            inputs = [(PARITY_TEXTS[0], text) for text in PARITY_TEXTS]
        features = transformer.preprocess(inputs)
        rows = _rows(transformer, features) if has_weights else None
        return cls(transformer, features, rows)

    def compare(self, network: ExternalNetwork) -> Accuracy:
        """Compare another network with torch's outputs; without torch weights the difference is 0.

        Raises StartupError if the network cannot compute, and the library's error if memory is insufficient.
        """
        original: Any = self.transformer.model
        external: Any = network  # it has the attributes of a torch network that the module uses
        moved = {
            name: each.to(network.device) if isinstance(each, Tensor) else each
            for name, each in self.features.items()
        }
        self.transformer.model = external
        try:
            found = _rows(self.transformer, moved)
        except Exception as exc:  # libraries raise errors of many types
            if is_out_of_memory(exc):
                raise
            reason = one_line(exc, 300)
            raise StartupError(f"it cannot compute ({type(exc).__name__}: {reason})") from exc
        finally:
            self.transformer.model = original
        vectors = found.numpy()
        expected = vectors if self.rows is None else self.rows.numpy()
        accuracy = compare([vectors], [expected], are_scores=True)
        if (
            math.isinf(accuracy.max_difference)
            or self.rows is None
            or self.transformer.transformer_task == "sequence-classification"
        ):
            return accuracy
        centered = compare([center(vectors)], [center(expected)])
        return accuracy._replace(mean_cosine=centered.mean_cosine)


@torch.inference_mode()
def _rows(transformer: Transformer, features: Mapping[str, Any]) -> Tensor:
    answer: Tensor = transformer.forward(dict(features))[transformer.module_output_name].float().cpu()
    return answer[features["attention_mask"].bool().cpu()] if answer.ndim == 3 else answer
