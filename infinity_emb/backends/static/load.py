"""Load a static model without torch: a vector is the mean of the table rows of its tokens.

Supports models of StaticEmbedding (sentence-transformers) and of model2vec. Outputs are those of the former,
which includes unknown tokens; model2vec leaves them out.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tokenizers import Tokenizer

from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.static.backend import StaticBackend, StaticEncoder
from infinity_emb.backends.static.table import read_table
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import StartupError
from infinity_emb.hardware import num_tokenizer_threads
from infinity_emb.hub.detect import list_module_names, read_object
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.preprocessing.fast_tokenizer import FastTokenizer, open_tokenizer
from infinity_emb.preprocessing.vocabulary import FastVocabulary
from infinity_emb.types import Device, Dtype, ModelInfo, ModelKind, PoolingMethod

# A few milliseconds of work; from 4096 to 65,536 the measured rate was the same within the noise.
DEFAULT_BATCH_TOKENS = 8192
_CONFIG = "config_sentence_transformers.json"
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")

logger = logging.getLogger("infinity_emb")


@dataclass(frozen=True, slots=True)
class StaticParts:
    """Paths of the parts of a static model."""

    table: Path
    tokenizer: Path
    is_normalized: bool


def is_static(folder: Path) -> bool:
    """Return true for a static model that needs no torch. Raises StartupError for invalid JSON."""
    return find_parts(folder) is not None


def find_parts(folder: Path) -> StaticParts | None:
    """Find the parts of a static model; return None for any other, and for one that needs torch.

    `modules.json` lists StaticEmbedding, then Normalize or nothing. The oldest folders of model2vec have no
    such file; their `config.json` has the same information.
    """
    if read_object(folder / _CONFIG).get("model_type", "SentenceTransformer") != "SentenceTransformer":
        return None
    names = list_module_names(folder)
    if names:
        return _find_module_parts(folder, names)
    config = read_object(folder / "config.json")
    if config.get("model_type") != "model2vec" and config.get("architectures") != ["StaticModel"]:
        return None
    return _find_files(folder, is_normalized=bool(config.get("normalize")))


def _find_module_parts(folder: Path, names: list[str]) -> StaticParts | None:
    if names[0] != "StaticEmbedding" or set(names[1:]) - {"Normalize"}:
        return None
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    if not all(_is_known(module) for module in modules):
        return None
    first, *others = (folder / module["path"] for module in modules)
    if not all(_is_plain_normalize(each) for each in others):
        return None
    return _find_files(first, is_normalized=bool(others))


def _is_known(module: dict[str, Any]) -> bool:
    """Return true for a class of sentence-transformers with its files inside the folder."""
    path = PurePosixPath(str(module.get("path", "..")))
    is_inside = not path.is_absolute() and ".." not in path.parts
    return is_inside and not module.get("kwargs") and module["type"].startswith("sentence_transformers.")


def _is_plain_normalize(folder: Path) -> bool:
    """Return true if the module normalizes the sentence vector and no other feature."""
    config = read_object(folder / "config.json")
    names = {config.get(f"module_{side}_name") for side in ("input", "output")}
    return names <= {None, "sentence_embedding"}


def _find_files(folder: Path, *, is_normalized: bool) -> StaticParts | None:
    table = folder / "model.safetensors"
    if not table.exists() and (folder / "pytorch_model.bin").exists():
        return None  # a pickle, which only torch reads
    return StaticParts(table, folder / "tokenizer.json", is_normalized)


def load_model(args: LoadOptions, files: ModelFiles) -> LoadedModel:
    """Load a model that `is_static` has accepted. Raises StartupError for what cannot be served."""
    parts = find_parts(files.path)
    assert parts is not None, f"{files.path} is not a static model"
    _check_options(args)
    tokenizer, truncation = _read_tokenizer(parts.tokenizer)
    table = read_table(parts.table)
    _check_num_rows(tokenizer, len(table), parts.table)
    info = _describe(files, truncation, width=table.shape[1])
    raw = FastTokenizer(
        tokenizer, truncation_side=info.truncation_side, adds_special_tokens=False, allows_empty=True
    )
    return LoadedModel(
        info=info,
        replicas=[
            StaticBackend(table, is_normalized=parts.is_normalized, dimension=info.embedding_dimension)
        ],
        encode=StaticEncoder(raw, info.max_tokens),
        max_batch_tokens=args.max_batch_tokens or DEFAULT_BATCH_TOKENS,
        num_tokenizer_threads=num_tokenizer_threads(args.tokenizer_threads),
        split=raw.split,
        vocabulary=FastVocabulary(raw, num_embeddings=len(table)),
        prepares_inline=True,
    )


def _check_options(args: LoadOptions) -> None:
    """Refuse another pooling; warn of options that have no effect."""
    if args.pooling_method not in (PoolingMethod.auto, PoolingMethod.mean):
        raise StartupError(
            f"--pooling-method {args.pooling_method} cannot be used: a static model supports mean only"
        )
    idle = []
    if args.device not in (Device.auto, Device.cpu):
        idle.append(f"--device {args.device}")
    if args.dtype not in (Dtype.auto, Dtype.float32):
        idle.append(f"--dtype {args.dtype}")
    if idle:
        logger.warning(
            "%s is a static model, which numpy computes on the CPU in float32; %s has no effect",
            args.model_name_or_path,
            " and ".join(idle),
        )


def _check_num_rows(tokenizer: Tokenizer, num_rows: int, path: Path) -> None:
    num_tokens = tokenizer.get_vocab_size()
    if num_tokens > num_rows:
        logger.warning(
            "the tokenizer has %d tokens, and %s only %d rows: it may be another model's; texts with tokens"
            " beyond them fail",
            num_tokens,
            path,
            num_rows,
        )


def _read_tokenizer(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """Return the tokenizer and its truncation settings, {} if it does not truncate."""
    if not path.exists():
        raise StartupError(f"{path} is missing, and a static model needs its tokenizer; save the model again")
    try:
        tokenizer = open_tokenizer(path)
    except StartupError as exc:
        raise StartupError(f"{path} is not a tokenizer file ({exc}); save the model again") from exc
    return tokenizer, tokenizer.truncation or {}


def _describe(files: ModelFiles, truncation: dict[str, Any], *, width: int) -> ModelInfo:
    path = files.path / _CONFIG
    config = read_object(path)
    prompts, default_prompt_name = _read_prompts(config, path)
    similarity = config.get("similarity_fn_name")
    return ModelInfo(
        kind=ModelKind.embedder,
        capabilities=("embed", "rerank"),
        outputs=("dense",),
        embedding_dimension=_read_dimension(config, width, path),
        max_tokens=truncation.get("max_length"),
        truncation_side=truncation.get("direction", "right"),
        dtype="float32",
        dtype_reason="the only dtype of static models",
        device="cpu",
        attention="none",
        attention_reason="a static model has no attention",
        pooling="mean",
        similarity=similarity if similarity in _SIMILARITIES else "cosine",
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        revision=files.revision,
        source=files.source,
        files_version=files.version,
    )


def _read_prompts(config: dict[str, Any], path: Path) -> tuple[dict[str, str], str | None]:
    """Return the prompts of sentence-transformers: query and document always exist, and may be empty."""
    prompts = {"query": "", "document": ""}
    prompts |= {name: prompt or "" for name, prompt in (config.get("prompts") or {}).items()}
    default_name = config.get("default_prompt_name")
    if default_name is not None and default_name not in prompts:
        raise StartupError(
            f"{path} names {default_name!r} as default prompt, but has {sorted(prompts)}; correct the file"
        )
    return prompts, default_name


def _read_dimension(config: dict[str, Any], width: int, path: Path) -> int:
    """Return the number of values of a vector."""
    wanted = config.get("truncate_dim")
    if wanted is None:
        return width
    if not isinstance(wanted, int) or wanted < 1:
        raise StartupError(
            f"{path} has truncate_dim={wanted!r}, but it must be a whole number above 0; correct it"
        )
    return min(width, wanted)
