"""Serve one library behind a plain FastAPI app, as many people do; run by the interpreter of a peer.

    python app.py sentence-transformers MODEL PORT

Imports nothing of this repository: the packages of a peer's environment are all that it has.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

Embed = Callable[[list[str]], Any]


class Request(BaseModel):
    """The part of OpenAI's request that is measured."""

    input: str | list[str]


def load_sentence_transformers(model: str) -> Embed:
    """Load a model as the documentation of sentence-transformers does."""
    loaded = importlib.import_module("sentence_transformers").SentenceTransformer(model, device="cpu")
    return lambda texts: loaded.encode(texts, batch_size=32, show_progress_bar=False)


def load_fastembed(folder: str) -> Embed:
    """Load an exported graph as the documentation of fastembed does for models of users."""
    fastembed = importlib.import_module("fastembed")
    description = importlib.import_module("fastembed.common.model_description")
    dim = json.loads(Path(folder, "config.json").read_text())["hidden_size"]
    fastembed.TextEmbedding.add_custom_model(
        model="local",
        pooling=description.PoolingType.MEAN,
        normalization=True,
        sources=description.ModelSource(hf="local"),
        dim=dim,
        model_file="model.onnx",
    )
    loaded = fastembed.TextEmbedding("local", specific_model_path=folder)
    return lambda texts: list(loaded.embed(texts, batch_size=32))


LOADERS = {"sentence-transformers": load_sentence_transformers, "fastembed": load_fastembed}


def build_app(embed: Embed) -> FastAPI:
    """Build an app with one route for vectors and one for readiness."""
    app = FastAPI()
    # One call at a time has all cores. Without it up to 40 threads share them, and each call gets slower.
    lock = threading.Lock()

    @app.get("/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/embeddings")
    def embeddings(request: Request) -> dict[str, Any]:
        texts = [request.input] if isinstance(request.input, str) else request.input
        with lock:
            vectors = embed(texts)
        data = [
            {"object": "embedding", "index": index, "embedding": vector.tolist()}
            for index, vector in enumerate(vectors)
        ]
        return {"object": "list", "data": data}

    return app


def main() -> None:
    """Load the model and serve it on the loopback."""
    library, model, port = sys.argv[1:]
    embed = LOADERS[library](model)
    embed(["warm up"])
    uvicorn.run(build_app(embed), host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
