"""A model with Python code of its own, as jina-clip has it: refused by default, and equal when trusted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from infinity_emb.errors import StartupError
from tests.support.small_models.media import random_images

pytestmark = pytest.mark.model

# A first module of two towers. Its features hold a list beside the arrays, as jina-clip's do.
CODE = """
import numpy as np
import torch
from sentence_transformers.base.modules import InputModule


class Towers(InputModule):
    modalities = ["text", "image"]

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(256, 8)
        self.colours = torch.nn.Linear(3, 8)

    def preprocess(self, inputs, prompt=None, **kwargs):
        kinds = ["text" if isinstance(each, str) else "image" for each in inputs]
        if kinds[0] == "image":
            pixels = [np.asarray(each.resize((4, 4)), dtype=np.float32) / 255 for each in inputs]
            return {"pixel_values": torch.from_numpy(np.stack(pixels)), "kinds": kinds, "modality": "image"}
        texts = [list(((prompt or "") + each).encode()) or [0] for each in inputs]
        width = max(map(len, texts))
        ids = torch.tensor([each + [0] * (width - len(each)) for each in texts])
        mask = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in texts])
        return {"input_ids": ids, "attention_mask": mask, "kinds": kinds, "modality": "text"}

    def forward(self, features, **kwargs):
        if features["kinds"][0] == "image":
            rows = self.colours(features["pixel_values"]).mean(dim=(1, 2))
        else:
            mask = features["attention_mask"].unsqueeze(-1).float()
            rows = (self.words(features["input_ids"]) * mask).sum(1) / mask.sum(1)
        features["sentence_embedding"] = rows
        return features

    def get_embedding_dimension(self):
        return 8

    def save(self, output_path, *args, **kwargs):
        pass

    @classmethod
    def load(cls, *args, **kwargs):
        return cls()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "towers.py").write_text(CODE)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "towers.Towers"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "config_sentence_transformers.json").write_text("{}")
    save_file({}, tmp_path / "model.safetensors")
    return tmp_path


def engine_of(folder: Path, *, trust_remote_code: bool) -> AsyncEmbeddingEngine:
    return AsyncEmbeddingEngine.from_args(
        EngineArgs(
            model_name_or_path=str(folder),
            device="cpu",
            model_warmup=False,
            trust_remote_code=trust_remote_code,
        )
    )


def test_a_models_own_code_is_not_run_unless_trusted(folder: Path) -> None:
    (folder / "towers.py").write_text(f"open({str(folder / 'was_run')!r}, 'w')\n{CODE}")
    with pytest.raises(StartupError, match="comes with its own Python code; --trust-remote-code"):
        engine_of(folder, trust_remote_code=False)
    assert not (folder / "was_run").exists()


def test_texts_and_images_of_a_models_own_code_equal_sentence_transformers(folder: Path) -> None:
    engine = engine_of(folder, trust_remote_code=True)
    reference = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    texts, images = ["a", "two words", "", "a longer text than the others"], random_images(3)

    async def embed() -> tuple[np.ndarray, np.ndarray]:
        async with engine:
            (rows, _), (pictures, _) = await asyncio.gather(
                engine.embed(texts), engine.image_embed(images=list(images))
            )
            return np.array(rows), np.array(pictures)

    rows, pictures = asyncio.run(embed())

    expected = np.concatenate([reference.encode([text], show_progress_bar=False) for text in texts])
    assert np.abs(rows - expected).max() <= 2e-5
    assert isinstance(images[0], Image.Image)
    expected = np.concatenate([reference.encode([image], show_progress_bar=False) for image in images])
    assert np.abs(pictures - expected).max() <= 2e-5
