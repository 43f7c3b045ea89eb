"""Verdicts about models of the `mteb` package: the path each takes through this server, or why it has none.

Pure rules over the fields of mteb's `ModelMeta`; needs no mteb, loads no model and asks no hub. What each
loader of mteb does stands in `mteb_loaders`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from scripts.mteb_loaders import (
    LISTED_FOR_MULTI_VECTOR,
    LISTED_WITH_REVISION,
    LLM_RERANKERS,
    LOADERS,
    REMOTE_CODE,
    TEXT_ONLY,
    Loader,
    Way,
)


class Path(Enum):
    """How the server computes a model."""

    EMBEDDER = "embedder (packed or padded)"
    STATIC = "static"
    SPARSE = "sparse"
    LATE_INTERACTION = "late interaction"
    RERANKER = "reranker (classification head)"
    LLM_RERANKER = "reranker (LLM, yes/no logit)"
    IMAGE = "image and text"
    AUDIO = "audio"
    CANNOT = "cannot"


class Evidence(Enum):
    """What a verdict rests on."""

    SAME_CLASS = "As mteb itself loads them"
    FILES = "By what their folders are said to hold"
    NONE = "Not served"


class Meta(Protocol):
    """What is read of an mteb `ModelMeta`."""

    name: str | None
    loader: Any
    loader_kwargs: Mapping[str, Any]
    framework: Sequence[str]
    modalities: Sequence[str]
    model_type: Sequence[str]
    n_parameters: int | None
    n_embedding_parameters: int | None
    adapted_from: str | None
    extra_requirements_groups: Sequence[str] | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`has_settings`: mteb gives settings of the tokenizer or the folder, and the server does not."""

    path: Path
    needs_remote_code: bool
    reason: str
    evidence: Evidence
    has_settings: bool = False


NO_LOADER = "mteb names no way to load it"
TOO_OLD = "mteb holds it to a transformers older than the server's"
VIDEO = "made for video, which the server does not take"
LISTED = "mteb has code of its own; listed in sentence-transformers' documentation for MultiVectorEncoder"

# Arguments of mteb's loaders that can change a vector. Number formats and lengths are not among them, nor
# what a request can give as its `prompt`; a reranker's goes before the query alone, never the passage.
_SETTINGS = """
    add_eos_token attend_to_expansion_tokens config_kwargs include_prompt padding_side passage_prefix
    processor_kwargs tokenizer_kwargs
"""
SETTINGS = frozenset(_SETTINGS.split())
DECODERS = re.compile("qwen|llama|mistral|ministral|gemma", re.IGNORECASE)


def classify(meta: Meta, held_back: Collection[str] = ()) -> Verdict:
    """One model's verdict.

    held_back: mteb's extras that pin an older transformers, as `extras_held_back` answers.
    """
    name = loader_name(meta.loader)
    if meta.name in LISTED_FOR_MULTI_VECTOR:
        return _served(meta, name, LISTED, Evidence.FILES)
    if meta.name in LISTED_WITH_REVISION:
        return _served(meta, name, f"{LISTED}, at the revision named there", Evidence.FILES)
    loader = LOADERS.get(name)
    if loader is None:
        return _cannot(meta, name, f"unknown loader {name}" if name else NO_LOADER)
    if why_not := _why_not(meta, loader, held_back):
        return _cannot(meta, name, why_not)
    reason = f"tagged Sentence Transformers: {loader.reason}" if loader.way is Way.TAG else loader.reason
    return _served(meta, name, reason, Evidence.SAME_CLASS if loader.way is Way.SAME else Evidence.FILES)


def _why_not(meta: Meta, loader: Loader, held_back: Collection[str]) -> str:
    """The first reason against a model whose loader is known; nothing where there is none."""
    if loader.way is Way.NO:
        return loader.reason
    if loader.way is Way.TAG and "Sentence Transformers" not in meta.framework:
        return f"not tagged Sentence Transformers: {loader.reason}"
    if any(normal_extra(extra) in held_back for extra in meta.extra_requirements_groups or ()):
        return TOO_OLD
    is_for_video = "video" in meta.modalities and not {"image", "audio"} & set(meta.modalities)
    return VIDEO if is_for_video else ""


def loader_name(loader: Any) -> str:
    """`module.name` of a class, a function or a partial of one; nothing for None."""
    loader = getattr(loader, "func", loader)
    return f"{loader.__module__.rpartition('.')[2]}.{loader.__name__}" if loader else ""


def _cannot(meta: Meta, loader: str, reason: str) -> Verdict:
    return Verdict(Path.CANNOT, _needs_remote_code(meta, loader), reason, Evidence.NONE)


def _served(meta: Meta, loader: str, reason: str, evidence: Evidence) -> Verdict:
    has_settings = not SETTINGS.isdisjoint(meta.loader_kwargs)
    return Verdict(_path(meta, loader), _needs_remote_code(meta, loader), reason, evidence, has_settings)


def _needs_remote_code(meta: Meta, loader: str) -> bool:
    return loader in REMOTE_CODE or bool(meta.loader_kwargs.get("trust_remote_code"))


def _path(meta: Meta, loader: str) -> Path:
    modalities = {"text"} if loader in TEXT_ONLY else set(meta.modalities)
    if "late-interaction" in meta.model_type:
        return Path.LATE_INTERACTION
    if "cross-encoder" in meta.model_type:
        is_llm = loader in LLM_RERANKERS or DECODERS.search(meta.adapted_from or "")
        return Path.LLM_RERANKER if is_llm else Path.RERANKER
    if "sparse" in meta.model_type:
        return Path.SPARSE
    if "audio" in modalities:
        return Path.AUDIO
    if "image" in modalities:
        return Path.IMAGE
    is_table = meta.n_parameters is not None and meta.n_parameters == meta.n_embedding_parameters
    return Path.STATIC if is_table else Path.EMBEDDER


def extras_held_back(requirements: Iterable[str], transformers_version: str) -> frozenset[str]:
    """The extras whose requirement of transformers excludes this version.

    requirements: lines as in a wheel's `Requires-Dist`, e.g. `transformers<5; extra == "old"`.
    """
    from packaging.requirements import Requirement

    parsed = [Requirement(line) for line in requirements]
    return frozenset(
        normal_extra(extra)
        for each in parsed
        if each.name == "transformers" and not each.specifier.contains(transformers_version)
        for extra in re.findall(r"extra == [\"']([^\"']+)", str(each.marker))
    )


def normal_extra(name: str) -> str:
    """mteb spells one extra with `-` or `_`, as it likes."""
    return name.replace("_", "-")
