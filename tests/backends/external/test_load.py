"""How near a stand-in has to be to torch, by its number format, and who may be further away."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from infinity_emb.backends.external.load import describe_difference
from infinity_emb.backends.external.network import ExternalNetwork
from infinity_emb.backends.external.parity_check import Probe
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.types import Dtype, ModelKind
from tests.support.small_models import save_network

# transformers' default configurations name start and end tokens outside of the small vocabularies.
pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]

ARGS = EngineArgs(model_name_or_path="m")


class _Network(ExternalNetwork):
    """What another network of torch answers."""

    def __init__(self, transformer: Transformer, network: Any) -> None:
        super().__init__(transformer, torch.device("cpu"), torch.float32)
        self._network = network.eval()

    @torch.inference_mode()
    def compute(self, features: dict[str, Any]) -> Tensor:
        given = {name: each for name, each in features.items() if isinstance(each, Tensor)}
        answer: Tensor = self._network(**given, return_dict=True)[self.output_name]
        return answer


def other_weights(network: Any) -> Any:
    torch.manual_seed(1)
    other = type(network)(network.config)
    if hasattr(other, "classifier"):
        torch.nn.init.constant_(other.classifier.bias, 3.0)  # as scores of trained models are far from 0
    return other


def rounded(network: Any, num_bits: int) -> Any:
    """The same with one scale for each matrix, as the coarsest files have it."""
    other = type(network)(network.config)
    other.load_state_dict(network.state_dict())
    steps = 2 ** (num_bits - 1) - 1
    with torch.no_grad():
        for weights in other.parameters():
            scale = weights.abs().max().clamp(min=1e-9) / steps
            weights.copy_((weights / scale).round() * scale)
    return other


KINDS = {
    "feature-extraction": (AutoModel, ModelKind.embedder),
    "fill-mask": (AutoModelForMaskedLM, ModelKind.sparse),
    "sequence-classification": (AutoModelForSequenceClassification, ModelKind.reranker),
}


@pytest.fixture(scope="module", params=KINDS)
def probe(request: Any, tmp_path_factory: Any) -> Probe:
    auto_class, kind = KINDS[request.param]
    options = {"num_labels": 1} if kind is ModelKind.reranker else {}
    folder: Path = save_network(tmp_path_factory.mktemp("m"), "bert", auto_class, spread=1, **options)
    transformer = Transformer(str(folder), transformer_task=request.param)
    transformer.model.eval()
    return Probe.of(transformer, kind)


def difference(probe: Probe, change: Callable[[Any], Any], dtype: Dtype, *, is_named: bool = False) -> str:
    network = _Network(probe.transformer, change(probe.transformer.model))
    return describe_difference(network, probe, ARGS, origin="a file", dtype=dtype, is_named=is_named)


@pytest.mark.parametrize("dtype", [Dtype.int8, Dtype.float16, Dtype.bfloat16, Dtype.float32])
def test_a_graph_of_other_weights_is_refused_in_every_format(probe: Probe, dtype: Dtype) -> None:
    """A stale file of 8 bits was served, and its answers had nothing to do with the model's."""
    with pytest.raises(
        StartupError, match=r"^a file of model 'm' (has a mean cosine of|differs from torch by)"
    ):
        difference(probe, other_weights, dtype)


@pytest.mark.parametrize("dtype", [Dtype.int8, Dtype.float16, Dtype.float32])
def test_a_graph_of_other_weights_is_served_with_a_warning_where_it_is_named(
    probe: Probe, dtype: Dtype, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        told = difference(probe, other_weights, dtype, is_named=True)
    assert "as if it came from other weights" in told
    assert "a file is served as requested, although it" in caplog.text


def test_formats_that_round_may_differ(probe: Probe, caplog: pytest.LogCaptureFixture) -> None:
    told = [difference(probe, lambda network: rounded(network, 8), Dtype.int8)]
    told.append(difference(probe, lambda network: rounded(network, 6), Dtype.int8))
    told.append(difference(probe, lambda network: rounded(network, 11), Dtype.float16))
    told.append(difference(probe, lambda network: rounded(network, 9), Dtype.bfloat16))
    assert all(each.startswith("difference to torch ") and "weights" not in each for each in told)
    with pytest.raises(StartupError, match="the limit is 1e-04; use --engine torch"):
        difference(probe, lambda network: rounded(network, 8), Dtype.float32)
    difference(probe, lambda network: rounded(network, 8), Dtype.float32, is_named=True)
    assert not caplog.text


def test_no_number_is_refused_even_where_it_is_named(probe: Probe) -> None:
    def broken(network: Any) -> Any:
        other = other_weights(network)
        next(other.parameters()).data.fill_(float("nan"))
        return other

    with pytest.raises(StartupError, match="differs from torch by inf"):
        difference(probe, broken, Dtype.int8, is_named=True)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (torch.OutOfMemoryError("9 bytes"), torch.OutOfMemoryError),
        (MemoryError(), MemoryError),
        (RuntimeError("shapes do not match"), StartupError),
    ],
)
def test_lack_of_memory_says_nothing_of_the_graph(
    probe: Probe, raised: Exception, expected: type[Exception]
) -> None:
    """The model may fit where another one is unloaded."""

    class Failing(_Network):
        def compute(self, features: dict[str, Any]) -> Tensor:
            raise raised

    network = Failing(probe.transformer, probe.transformer.model)
    with pytest.raises(expected):
        describe_difference(network, probe, ARGS, origin="a file", dtype=Dtype.int8)
