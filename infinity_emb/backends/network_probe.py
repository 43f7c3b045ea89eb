"""Texts that a model's own network has answered, for a stand-in that is to answer the same.

Knows nothing of where a stand-in comes from, nor of how near it has to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor

from infinity_emb.backends.network_stand_in import StandIn
from infinity_emb.backends.torch_device import is_out_of_memory
from infinity_emb.errors import StartupError, one_line
from infinity_emb.primitives import ModelKind

# Of different lengths, so that padding is compared as well.
_TEXTS = (
    "The quick brown fox: 3.14 EUR, isn't it?",
    "Größe, naïve café, 東京; snake_case() over two\nlines. " * 6,
    "rivers",
)


class Nearness(NamedTuple):
    """How near two answers are.

    difference: of the two numbers that differ most, of the largest in the answer or of 1; infinite for NaN.
    likeness: mean cosine of what sets each token apart from the others; None of scores, and of nothing to
    compare with.
    """

    difference: float
    likeness: float | None


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

    def compare(self, network: StandIn) -> Nearness:
        """What the stand-in answers with what the network did. No difference where that has no weights.

        Raises StartupError for a stand-in that cannot compute, and what says that memory is lacking.
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
            if is_out_of_memory(exc):
                raise
            reason = one_line(exc, 300)
            raise StartupError(f"it cannot compute ({type(exc).__name__}: {reason})") from exc
        finally:
            self.transformer.model = original
        expected = found if self.rows is None else self.rows
        if found.shape != expected.shape or not torch.isfinite(found).all():
            return Nearness(float("inf"), None)
        difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
        has_likeness = (
            self.rows is not None and self.transformer.transformer_task != "sequence-classification"
        )
        return Nearness(difference, _likeness(found, expected) if has_likeness else None)


@torch.inference_mode()
def _rows(transformer: Transformer, features: Mapping[str, Any]) -> Tensor:
    answer: Tensor = transformer.forward(dict(features))[transformer.module_output_name].float().cpu()
    return answer[features["attention_mask"].bool().cpu()] if answer.ndim == 3 else answer


def _likeness(rows: Tensor, expected: Tensor) -> float:
    """(T, D) each. What all rows share is left out: it may be most of a row, and alike for other weights."""
    ours, theirs = (_apart(each) for each in (rows, expected))
    return float(torch.nn.functional.cosine_similarity(ours, theirs, dim=1).mean())


def _apart(rows: Tensor) -> Tensor:
    rows = rows - rows.mean(dim=0)
    return rows - rows.mean(dim=1, keepdim=True)
