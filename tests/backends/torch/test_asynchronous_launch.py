"""Launching a packed batch never waits for the device, so that batches overlap on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
from torch.utils._python_dispatch import TorchDispatchMode

from infinity_emb.items import InputOptions, Pair, number_inputs
from tests.support.accelerated_models import load_folder
from tests.support.small_models import save_small_classifier, save_small_model


class _Questions(TorchDispatchMode):
    """Notes the operators whose answer the host must wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(operator)
        if name.split(".")[1] in _WAITING_OPERATORS or (
            name == "aten.repeat_interleave.Tensor" and (kwargs or {}).get("output_size") is None
        ):
            self.asked.append(name)
        if name == "aten.index.Tensor" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        ):
            self.asked.append("indexing by a mask")
        return operator(*args, **(kwargs or {}))


_WAITING_OPERATORS = frozenset(
    {
        "item",
        "_local_scalar_dense",
        "is_nonzero",
        "nonzero",
        "masked_select",
        "bincount",
        "equal",
        "_unique2",
    }
)


def _launch_and_listen(path: Path, *inputs: str | Pair) -> tuple[str, list[str]]:
    """How the model was packed, and what launching a batch asked of the device."""
    model = load_folder(path, device="cpu", model_warmup=False)
    batch = model.encode(number_inputs(inputs), InputOptions())
    with _Questions() as questions:
        model.replicas[0].launch(batch)
    return f"{model.info.attention}: {model.info.attention_reason}", questions.asked


_LENGTHS = (40, 3, 17, 3)


@pytest.mark.model
@pytest.mark.parametrize(
    ("model_type", "pooling_mode"),
    [
        ("bert", "mean"),
        ("bert", "cls"),
        ("bert", "lasttoken"),
        ("xlm-roberta", "mean"),
        ("modernbert", "mean"),
        ("qwen3", "lasttoken"),
        ("mistral", "lasttoken"),
        ("gemma3_text", "mean"),
    ],
)
def test_launching_a_packed_batch_asks_nothing_of_the_device(
    model_type: str, pooling_mode: str, tmp_path: Path
) -> None:
    """On a GPU one question, `.item()` or `if tensor:`, waits for all batches before, so that none overlap.

    transformers asked one in its decoders as long as a mask function was registered for our kernels.
    """
    path = save_small_model(tmp_path, model_type, pooling_mode=pooling_mode)
    how, asked = _launch_and_listen(path, *("word5 " * length for length in _LENGTHS))

    assert how.startswith("packed: ")
    assert asked == []


@pytest.mark.model
@pytest.mark.parametrize(
    ("model_type", "reads", "config"),
    [
        ("bert", "first", {}),
        ("xlm-roberta", "first", {}),
        ("modernbert", "first", {}),
        ("modernbert", "all", {"classifier_pooling": "mean"}),
        ("qwen3", "last", {}),
    ],
)
def test_launching_a_packed_batch_of_pairs_asks_nothing_of_the_device(
    model_type: str, reads: str, config: dict[str, str], tmp_path: Path
) -> None:
    path = save_small_classifier(tmp_path, model_type, num_labels=1, **config)
    how, asked = _launch_and_listen(path, *(Pair("word5", "word6 " * length) for length in _LENGTHS))

    assert how.startswith("packed: ")
    assert f"{reads} rows to the head" in how
    assert asked == []
