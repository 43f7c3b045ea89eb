"""Weights in every number format and file, and pickles that must not run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import (
    Pooling,
)

from infinity_emb.errors import StartupError
from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import assert_served_alike, copied, load_embedder
from tests.parity.serving import assert_same_vectors
from tests.support.small_models import (
    HIDDEN_SIZE,
    save_pipeline,
    save_small_model,
)

pytestmark = pytest.mark.model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_in_half_precision_is_computed_in_float32(
    dtype: torch.dtype, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    path = save_small_model(tmp_path, "xlm-roberta", dtype=dtype)
    assert assert_served_alike(serve, path, texts[:8]).engine.info.dtype == "float32"


def test_weights_in_several_files(bert: Path, serve: Serve, texts: list[str], tmp_path: Path) -> None:
    path = copied(bert, tmp_path / "model")
    (path / "model.safetensors").unlink()
    network: Any = SentenceTransformer(str(bert), device="cpu")[0]
    network.model.save_pretrained(path, max_shard_size="40KB")
    assert len(list(path.glob("model-*.safetensors"))) > 1
    assert_same_vectors(
        assert_served_alike(serve, path, texts[:8]).embed(texts[:8]),
        references.vectors(load_embedder(bert).encode, texts[:8]),
    )


def test_weights_as_a_pickle_of_tensors(bert: Path, serve: Serve, texts: list[str], tmp_path: Path) -> None:
    path = copied(bert, tmp_path / "model")
    network: Any = SentenceTransformer(str(bert), device="cpu")[0]
    (path / "model.safetensors").unlink()
    torch.save(network.model.state_dict(), path / "pytorch_model.bin")
    assert_served_alike(serve, path, texts[:8])


class Bomb:
    """Writes a file when it is unpickled by a reader that runs code."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("is_zipped", [True, False])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "1_Dense/pytorch_model.bin", "sparse_linear.pt"])
def test_a_pickle_that_would_run_code_is_refused(
    name: str, is_zipped: bool, bert: Path, serve: Serve, tmp_path: Path
) -> None:
    trace = tmp_path / "it-ran"
    bomb = {"weight": Bomb(trace)}
    path = tmp_path / "model"
    if name.startswith("1_Dense"):
        save_pipeline(path, [Pooling(HIDDEN_SIZE), Dense(HIDDEN_SIZE, 8)])
        modules = json.loads((path / "modules.json").read_text())
        copied(bert, tmp_path / "whole")
        for file in (tmp_path / "whole").iterdir():
            if file.is_file():
                (path / file.name).write_bytes(file.read_bytes())
        first = json.loads((bert / "modules.json").read_text())[0]
        later = ({**each, "idx": each["idx"] + 1, "name": str(each["idx"] + 1)} for each in modules)
        modules = [first, *later]
        (path / "modules.json").write_text(json.dumps(modules))
        (path / "1_Dense" / "model.safetensors").unlink()
    else:
        copied(bert, path)
        if name.startswith("pytorch_model"):
            (path / "model.safetensors").unlink()
        else:
            torch.save(torch.nn.Linear(HIDDEN_SIZE, 8).state_dict(), path / "colbert_linear.pt")
    if is_zipped:
        torch.save(bomb, path / name)
    else:
        (path / name).write_bytes(pickle.dumps(bomb))

    with pytest.raises(StartupError, match=r"could not be loaded|does not hold a linear layer"):
        serve(path)
    assert not trace.exists()
