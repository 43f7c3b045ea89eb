"""What kind of model a folder holds, by its own files: embedder, reranker, classifier, sparse, multi-vector.

Knows nothing of any compute library. Sources: sentence-transformers' `config_sentence_transformers.json`
(`model_type`), and transformers' `config.json` (`architectures`, `id2label`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from infinity_emb.errors import StartupError

ModelKind = Literal["embedder", "reranker", "classifier", "sparse", "multivector"]

_OF_MODEL_TYPE: dict[str, ModelKind] = {
    "SentenceTransformer": "embedder",
    "CrossEncoder": "reranker",
    "SparseEncoder": "sparse",
    "MultiVectorEncoder": "multivector",
}


def detect_kind(folder: Path) -> ModelKind:
    """The kind that the folder's files state. Raises StartupError for a file that is no JSON object.

    Without a statement, a sequence classifier is a reranker when it has one label and a classifier
    otherwise (two labels where the file does not say, as transformers has it); all else is an embedder.
    """
    stated = _read_object(folder / "config_sentence_transformers.json").get("model_type")
    if stated in _OF_MODEL_TYPE:
        return _OF_MODEL_TYPE[stated]
    config = _read_object(folder / "config.json")
    is_pipeline = (folder / "modules.json").exists()
    if is_pipeline or not any("SequenceClassification" in name for name in config.get("architectures") or ()):
        return "embedder"
    num_labels = len(config.get("id2label") or {}) or config.get("num_labels", 2)
    return "reranker" if num_labels == 1 else "classifier"


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise StartupError(f"{path} is not valid JSON ({exc}); download or save the model again") from exc
    if not isinstance(value, dict):
        raise StartupError(f"{path} is not a JSON object; download or save the model again")
    return value
