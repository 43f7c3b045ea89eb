"""Models that a start makes faster, and the same ones without, and batches for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from torch import nn

from benchmarks.gpu.emulated_cuda import record
from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.closeness import Scores, compare_texts
from infinity_emb.backends.torch import acceleration
from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.load import load_model
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.hub.resolve import resolve_model_files
from infinity_emb.items import Encoded
from tests.support.model_kinds import TEXTS, list_kinds

_KINDS = list_kinds()


def shorten_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a start read few texts and capture no graphs."""
    monkeypatch.setattr(acceleration, "short_texts", lambda: TEXTS)
    monkeypatch.setattr(acceleration, "passages", lambda: [TEXTS[0] * 2])
    monkeypatch.setattr(acceleration, "count_bytes_for_graphs", lambda device: 0)


def load_folder(path: Path, **options: Any) -> LoadedModel:
    args = EngineArgs(model_name_or_path=str(path), **options)
    return load_model(args, resolve_model_files(args.model_name_or_path))


def load_backend(folder: Path, kind: str, *, device: str = "cuda", **options: Any) -> TorchBackend:
    return get_backend(load_folder(_KINDS[kind].save(folder), device=device, max_batch_tokens=512, **options))


def get_backend(model: LoadedModel) -> TorchBackend:
    backend = model.replicas[0]
    assert isinstance(backend, TorchBackend)
    return backend


def count_modules(backend: TorchBackend, module_class: type[nn.Module]) -> int:
    return sum(isinstance(module, module_class) for module in backend.torch_model.model.modules())


def make_batch(*lengths: int, **options: Any) -> list[Encoded]:
    generator = np.random.default_rng(sum(lengths))
    return [Encoded(generator.integers(5, 100, length, dtype=np.int32), **options) for length in lengths]


def score(rows: Any) -> Scores:
    return Scores(compare_texts(list(rows)))


class Run(NamedTuple):
    """Vectors of a batch on an emulated device, and the names of the kernels that computed them."""

    vectors: Any
    kernels: list[str]


def run(backend: TorchBackend, batch: list[Encoded]) -> Run:
    with record() as log:
        in_flight = backend.launch(batch)
    return Run(np.asarray(in_flight.result()["dense"]), [each.name for each in log.launches])
