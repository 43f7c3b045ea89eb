"""A static model whose table is a pickle is read by torch, which must not run what is in it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from infinity_emb.errors import StartupError
from tests.backends.static.test_load import save_model

pytestmark = pytest.mark.model


class Bomb:
    """Writes a file when it is unpickled by a reader that runs code."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (open, (str(self.trace), "w"))


def test_the_bomb_would_go_off(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "it-ran"))).close()
    assert (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("is_zipped", [True, False])
@pytest.mark.parametrize("has_modules", [True, False])
def test_a_table_that_would_run_code_is_refused(is_zipped: bool, has_modules: bool, tmp_path: Path) -> None:
    trace, folder = tmp_path / "it-ran", save_model(tmp_path / "model")
    [table] = folder.rglob("model.safetensors")
    table.unlink()
    bomb = {"embedding.weight": Bomb(trace)}
    if is_zipped:
        torch.save(bomb, table.with_name("pytorch_model.bin"))
    else:
        table.with_name("pytorch_model.bin").write_bytes(pickle.dumps(bomb))
    if not has_modules:
        (folder / "modules.json").unlink()
        (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))

    with pytest.raises(StartupError):
        AsyncEmbeddingEngine.from_args(EngineArgs(model_name_or_path=str(folder)))
    assert not trace.exists()
