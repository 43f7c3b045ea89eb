"""Texts that a model's own network has answered, for a stand-in that is to answer the same.

Knows nothing of where a stand-in comes from, nor of how near it has to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor

from infinity_emb.backends.network_stand_in import StandIn
from infinity_emb.errors import StartupError
from infinity_emb.primitives import ModelKind

# Of different lengths, so that padding is compared as well.
_TEXTS = (
    "The quick brown fox: 3.14 EUR, isn't it?",
    "Größe, naïve café, 東京; snake_case() over two\nlines. " * 6,
    "rivers",
)


@dataclass(frozen=True, slots=True)
class Probe:
    """What the module's network was given and what it answered.

    features: as the module takes them, on the CPU.
    rows: (T, H) of the tokens that are no padding, or (B, L) scores; float32. None of a network that has no
    weights to answer by.
    """

    transformer: Transformer
    features: Mapping[str, Any]
    rows: Tensor | None

    @classmethod
    def of(cls, transformer: Transformer, kind: ModelKind, *, has_weights: bool = True) -> Probe:
        """Ask the network that is in the module now."""
        inputs: list[Any] = [{"text": text} for text in _TEXTS]
        if kind is ModelKind.reranker:
            inputs = [(_TEXTS[0], text) for text in _TEXTS]
        features = transformer.preprocess(inputs)
        return cls(transformer, features, _rows(transformer, features) if has_weights else None)

    def difference(self, network: StandIn) -> float:
        """How far the two answers that differ most are apart, of the largest or of 1; infinite for NaN.

        0 where there is nothing to compare with.

        Raises StartupError for a stand-in that cannot compute.
        """
        original: Any = self.transformer.model
        stand_in: Any = network  # it has what the module uses of a network of torch
        moved = {
            name: each.to(network.device) if isinstance(each, Tensor) else each
            for name, each in self.features.items()
        }
        self.transformer.model = stand_in
        try:
            found = _rows(self.transformer, moved)
        except Exception as exc:  # whatever its library raises on its first inputs
            reason = " ".join(str(exc).split())[:300]
            raise StartupError(f"it cannot compute ({type(exc).__name__}: {reason})") from exc
        finally:
            self.transformer.model = original
        expected = found if self.rows is None else self.rows
        if found.shape != expected.shape or not torch.isfinite(found).all():
            return float("inf")
        return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


@torch.inference_mode()
def _rows(transformer: Transformer, features: Mapping[str, Any]) -> Tensor:
    answer: Tensor = transformer.forward(dict(features))[transformer.module_output_name].float().cpu()
    return answer[features["attention_mask"].bool().cpu()] if answer.ndim == 3 else answer
