"""Decide how this server loads each model of the `mteb` package, or why it cannot.

The rules read the fields of mteb's `ModelMeta` and the groups of loaders in `mteb_loaders`; they import no
mteb and load no model.
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
    """Name the path by which the server computes a model."""

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
    """Name the evidence for a verdict."""

    SAME_CLASS = "As mteb itself loads them"
    FILES = "By what their folders are said to hold"
    NONE = "Not served"


class Meta(Protocol):
    """Declare the fields that are read from mteb's `ModelMeta`."""

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
    """Hold the result for one model.

    has_settings: mteb sets options of the tokenizer or the config that the server leaves alone.
    """

    path: Path
    needs_remote_code: bool
    reason: str
    evidence: Evidence
    has_settings: bool = False


NO_LOADER = "mteb names no way to load it"
TOO_OLD = "mteb holds it to a transformers older than the server's"
VIDEO = "made for video, which the server does not take"
LISTED = "mteb has code of its own; listed in sentence-transformers' documentation for MultiVectorEncoder"

# Arguments of mteb's loaders that can change a vector. Left out: dtypes, lengths, and what a request can send
# as its `prompt`, which a reranker puts before the query and never before the passage.
_SETTINGS = """
    add_eos_token attend_to_expansion_tokens config_kwargs include_prompt padding_side passage_prefix
    processor_kwargs tokenizer_kwargs
"""
SETTINGS = frozenset(_SETTINGS.split())
DECODERS = re.compile("qwen|llama|mistral|ministral|gemma", re.IGNORECASE)


def classify(meta: Meta, excluded_extras: Collection[str] = ()) -> Verdict:
    """Return the verdict for one model.

    excluded_extras: mteb's extras that pin an older transformers, from `find_excluded_extras`.
    """
    name = name_loader(meta.loader)
    if meta.name in LISTED_FOR_MULTI_VECTOR:
        return _served(meta, name, LISTED, Evidence.FILES)
    if meta.name in LISTED_WITH_REVISION:
        return _served(meta, name, f"{LISTED}, at the revision named there", Evidence.FILES)
    loader = LOADERS.get(name)
    if loader is None:
        return _cannot(meta, name, f"unknown loader {name}" if name else NO_LOADER)
    if objection := _find_objection(meta, loader, excluded_extras):
        return _cannot(meta, name, objection)
    reason = f"tagged Sentence Transformers: {loader.reason}" if loader.way is Way.TAG else loader.reason
    return _served(meta, name, reason, Evidence.SAME_CLASS if loader.way is Way.SAME else Evidence.FILES)


def _find_objection(meta: Meta, loader: Loader, excluded_extras: Collection[str]) -> str:
    """Return the first reason why a model with a known loader cannot be served; "" without one."""
    if loader.way is Way.NO:
        return loader.reason
    if loader.way is Way.TAG and "Sentence Transformers" not in meta.framework:
        return f"not tagged Sentence Transformers: {loader.reason}"
    if any(normalize_extra(extra) in excluded_extras for extra in meta.extra_requirements_groups or ()):
        return TOO_OLD
    is_for_video = "video" in meta.modalities and not {"image", "audio"} & set(meta.modalities)
    return VIDEO if is_for_video else ""


def name_loader(loader: Any) -> str:
    """Return `module.name` of a class, a function or a partial of one; "" for None."""
    loader = getattr(loader, "func", loader)
    return f"{loader.__module__.rpartition('.')[2]}.{loader.__name__}" if loader else ""


def _cannot(meta: Meta, loader: str, reason: str) -> Verdict:
    return Verdict(Path.CANNOT, _needs_remote_code(meta, loader), reason, Evidence.NONE)


def _served(meta: Meta, loader: str, reason: str, evidence: Evidence) -> Verdict:
    has_settings = not SETTINGS.isdisjoint(meta.loader_kwargs)
    return Verdict(_find_path(meta, loader), _needs_remote_code(meta, loader), reason, evidence, has_settings)


def _needs_remote_code(meta: Meta, loader: str) -> bool:
    return loader in REMOTE_CODE or bool(meta.loader_kwargs.get("trust_remote_code"))


def _find_path(meta: Meta, loader: str) -> Path:
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


def find_excluded_extras(requirements: Iterable[str], transformers_version: str) -> frozenset[str]:
    """Return the extras whose requirement of transformers excludes this version.

    requirements: lines as in a wheel's `Requires-Dist`, e.g. `transformers<5; extra == "old"`.
    """
    from packaging.requirements import Requirement

    parsed = [Requirement(line) for line in requirements]
    return frozenset(
        normalize_extra(extra)
        for requirement in parsed
        if requirement.name == "transformers" and not requirement.specifier.contains(transformers_version)
        for extra in re.findall(r"extra == [\"']([^\"']+)", str(requirement.marker))
    )


def normalize_extra(name: str) -> str:
    """Return the spelling with `-`; mteb mixes `-` and `_`."""
    return name.replace("_", "-")
