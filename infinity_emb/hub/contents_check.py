"""Refuse an incomplete model folder, before a library fails on it or fills the gaps with defaults.

Only files that are read to load the model are checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infinity_emb.errors import StartupError
from infinity_emb.hub.detect import detect_kind, read_object
from infinity_emb.hub.file_selection import is_weights, select_needed_files
from infinity_emb.hub.module_check import check_modules
from infinity_emb.hub.modules import list_modules
from infinity_emb.hub.weight_files import explain_broken_weights
from infinity_emb.types import ModelKind

_LFS_PREFIX = b"version https://git-lfs.github.com/spec/"
_BOM = b"\xef\xbb\xbf"
# Text files that the libraries read; others, such as evaluation results, may be broken.
_READ_TEXTS = re.compile(
    r"modules\.json|config_sentence_transformers\.json|(?!generation_)(\w+[_-])*config\.json"
    r"|tokenizer\.json|vocab\.(json|txt)|merges\.txt|(special_tokens_map|added_tokens|idf)\.json"
    r"|.*\.index\.json"
)
# Files that are not read if the one that comes first exists.
_READ_INSTEAD = {
    "tokenizer.json": ("vocab.json", "vocab.txt", "merges.txt"),
    "model.safetensors": ("model.safetensors.index.json",),
}
# Where a limit of texts or vectors is written; transformers writes 1e30 for no limit.
_LIMITS = (
    ("sentence_bert_config.json", ("max_seq_length", "query_length", "document_length")),
    ("tokenizer_config.json", ("model_max_length",)),
    ("config_sentence_transformers.json", ("truncate_dim",)),
)


def check_contents(folder: Path, *, is_pooling_given: bool = False) -> None:
    """Raise StartupError naming the first file that is missing, unreadable or wrong, and the remedy.

    is_pooling_given: an option says how token vectors are pooled, so that the files need not.
    """
    for path in _list_files([folder]):
        _check_file(path)
    modules = list_modules(folder)
    for path in _list_files([module.path for module in modules if module.path != folder]):
        _check_file(path)
    check_modules(folder, modules, is_pooling_given=is_pooling_given)
    _check_prompts(folder)
    _check_labels(folder)
    for module_folder in {folder, *(module.path for module in modules)}:
        _check_limits(module_folder)
        _check_quantization(module_folder)
        _check_shards(module_folder)


def explain_unreadable_weights(folder: Path) -> str:
    """Return what is wrong with a weight file that a library could not read, and the remedy, or ""."""
    folders = [folder, *(module.path for module in list_modules(folder))]
    for path in filter(lambda each: is_weights(each.name), _list_files(folders)):
        problem = explain_broken_weights(path)
        if problem:
            return f"{path} {problem}; copy or download it again"
    return ""


def _list_files(folders: list[Path]) -> Iterator[Path]:
    """Return the files in the folders that torch reads, without those in subfolders."""
    for folder in dict.fromkeys(folders):
        if not folder.is_dir():
            continue
        files = {path.name: path for path in folder.iterdir() if path.is_file()}
        for name, unread in _READ_INSTEAD.items():
            if name in files:
                files = {each: path for each, path in files.items() if each not in unread}
        yield from (files[name] for name in select_needed_files(files) if _is_read(name))


def _is_read(name: str) -> bool:
    if is_weights(name):
        return name.startswith(("model", "pytorch_model", "adapter_model"))
    return not name.endswith((".json", ".txt")) or _READ_TEXTS.fullmatch(name) is not None


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            beginning = file.read(len(_LFS_PREFIX))
    except PermissionError as exc:
        raise StartupError(
            f"{path} may not be read by the user of this process; give it read permission (chmod a+r)"
        ) from exc
    if beginning == _LFS_PREFIX:
        raise StartupError(
            f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in that folder"
        )
    if path.suffix in (".json", ".txt") and beginning.startswith(_BOM):
        raise StartupError(
            f"{path} begins with a byte order mark, which the libraries do not read; save it as UTF-8"
            " without one"
        )
    if path.suffix in (".json", ".txt") and not beginning:
        raise StartupError(f"{path} is empty; copy or download it again")


def _check_shards(folder: Path) -> None:
    unsharded = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    for path in unsharded:  # libraries read the first one that exists
        if path.exists():
            return
        if (index := _get_index(path)).is_file():
            _check_index(index)
            return
    for path in unsharded:
        shards = sorted(folder.glob(f"{path.stem}-*-of-*{path.suffix}"))
        if shards:
            raise StartupError(
                f"{_get_index(path)} is missing, without which {shards[0].name} and the other parts of the"
                " weights are not read; copy or download it, too"
            )


def _get_index(weights: Path) -> Path:
    return weights.with_name(f"{weights.name}.index.json")


def _check_index(index: Path) -> None:
    """Raise StartupError for an index that the libraries cannot read, and for parts that are missing."""
    content = read_object(index)
    shards = content.get("weight_map")
    if not isinstance(shards, dict) or not shards or "metadata" not in content:
        raise StartupError(
            f"{index} needs the objects 'weight_map' and 'metadata'; copy or download it again"
        )
    names = set(shards.values())
    missing = sorted(str(name) for name in names if not (index.parent / str(name)).is_file())
    if missing:
        raise StartupError(
            f"{index.parent / missing[0]} is missing ({len(missing)} of the {len(names)} parts that"
            f" {index.name} lists are); copy or download the model again"
        )


def _check_prompts(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    config = read_object(path)
    prompts = config.get("prompts", {})
    if not isinstance(prompts, dict) or not all(isinstance(each, str | None) for each in prompts.values()):
        raise StartupError(
            f"{path} has prompts={_shorten(prompts)}, but they must be an object of texts; correct it"
        )


def _check_labels(folder: Path) -> None:
    path = folder / "config.json"
    names = read_object(path).get("id2label") or {}
    if detect_kind(folder) is not ModelKind.classifier:
        return
    if set(names) != {str(each) for each in range(len(names))}:
        raise StartupError(
            f"{path} numbers its labels {', '.join(map(str, names))} in id2label, but scores have the"
            f" numbers 0 to {len(names) - 1}; correct it"
        )


def _check_limits(folder: Path) -> None:
    for name, keys in _LIMITS:
        config = read_object(folder / name)
        for key in keys:
            value = config.get(key)
            if value is not None and not _is_limit(value):
                raise StartupError(
                    f"{folder / name} has {key}={_shorten(value)}, but it must be a whole number above 0, or"
                    " null; correct it"
                )


def _check_quantization(folder: Path) -> None:
    config = read_object(folder / "config.json")
    value = config.get("quantization_config")
    is_named = isinstance(value, dict) and not {"quant_method", "load_in_4bit", "load_in_8bit"}.isdisjoint(
        value
    )
    if value is not None and not is_named:
        raise StartupError(
            f"{folder / 'config.json'} has quantization_config={_shorten(value)}, but it must be an object"
            " with quant_method, or null; correct it"
        )


def _is_limit(value: object) -> bool:
    """Return true for values that both libraries accept as a number of tokens; 1e30 means no limit."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value > 0 if isinstance(value, int) else value > 10**9


def _shorten(value: Any) -> str:
    return json.dumps(value)[:80]
