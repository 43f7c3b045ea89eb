"""The rules behind docs/coverage.md on stand-in models, and the page against its own lists. Needs no mteb."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from types import SimpleNamespace
from typing import Any

import pytest

from scripts import mteb_loaders
from scripts.mteb_coverage import EXPLAINED, Coverage, format_page
from scripts.mteb_loaders import LISTED_FOR_MULTI_VECTOR, LISTED_WITH_REVISION, LOADERS, REMOTE_CODE, Way
from scripts.mteb_verdicts import (
    NO_LOADER,
    TOO_OLD,
    VIDEO,
    Evidence,
    Path,
    Verdict,
    classify,
    find_excluded_extras,
    name_loader,
)

PAGE = (FilePath(__file__).parents[1] / "docs" / "coverage.md").read_text(encoding="utf-8")

PLAIN = "sentence_transformer_wrapper.SentenceTransformerEncoderWrapper"
CROSS_ENCODER = "sentence_transformer_wrapper.CrossEncoderWrapper"


def loader(name: str) -> Any:
    module, _, function = name.rpartition(".")
    return SimpleNamespace(__module__=f"mteb.models.{module}", __name__=function) if name else None


@dataclass
class Model:
    """What the rules read of mteb's ModelMeta, by default a plain text embedder."""

    loader: Any = field(default_factory=lambda: loader(PLAIN))
    name: str | None = "someone/model"
    loader_kwargs: Mapping[str, Any] = field(default_factory=dict)
    framework: Sequence[str] = ("PyTorch", "Sentence Transformers")
    modalities: Sequence[str] = ("text",)
    model_type: Sequence[str] = ("dense",)
    n_parameters: int | None = 100
    n_embedding_parameters: int | None = 20
    adapted_from: str | None = None
    extra_requirements_groups: Sequence[str] | None = None


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (Model(), Path.EMBEDDER),
        (Model(n_parameters=None, n_embedding_parameters=None), Path.EMBEDDER),
        (Model(model_type=["dense", "router"]), Path.EMBEDDER),
        (Model(n_embedding_parameters=100), Path.STATIC),
        (
            Model(loader("sentence_transformer_wrapper.SparseEncoderWrapper"), model_type=["sparse"]),
            Path.SPARSE,
        ),
        (
            Model(loader("pylate_models.MultiVectorModel"), model_type=["late-interaction"]),
            Path.LATE_INTERACTION,
        ),
        (Model(loader(CROSS_ENCODER), model_type=["cross-encoder"]), Path.RERANKER),
        (
            Model(loader(CROSS_ENCODER), model_type=["cross-encoder"], adapted_from="Qwen/Qwen3-4B"),
            Path.LLM_RERANKER,
        ),
        (
            Model(loader("qwen3_reranker.Qwen3RerankerWrapper"), model_type=["cross-encoder"]),
            Path.LLM_RERANKER,
        ),
        (Model(loader("clip_models.CLIPModel"), modalities=["image", "text"], framework=[]), Path.IMAGE),
        (Model(modalities=["text", "image", "video"]), Path.IMAGE),
        (
            Model(loader("clap_models.ClapZeroShotWrapper"), modalities=["audio", "text"], framework=[]),
            Path.AUDIO,
        ),
        (Model(modalities=["text", "image", "audio", "video"]), Path.AUDIO),
        (Model(loader("nanovdr_models.NanoVDRWrapper"), modalities=["text", "image"]), Path.EMBEDDER),
    ],
)
def test_a_model_that_is_opened_takes_the_path_of_its_type_and_modalities(model: Model, path: Path) -> None:
    assert classify(model).path is path


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Model(None), NO_LOADER),
        (Model(loader("new_models.NewWrapper")), "unknown loader new_models.NewWrapper"),
        (Model(loader("other_models.instruct_loader")), "unknown loader other_models.instruct_loader"),
        (Model(loader("llm2vec_models.loader_inner")), "needs `llm2vec`"),
        (Model(modalities=["video", "text"]), VIDEO),
        (Model(extra_requirements_groups=["fine", "out_of_date"]), TOO_OLD),
    ],
)
def test_a_model_that_is_not_opened_says_why(model: Model, reason: str) -> None:
    assert classify(model, excluded_extras={"out-of-date"}) == Verdict(
        Path.CANNOT, False, reason, Evidence.NONE
    )


def test_a_custom_loader_counts_only_where_the_folder_is_tagged() -> None:
    tagged = Model(loader("rerankers_custom.BGEReranker"), model_type=["cross-encoder"])
    assert classify(tagged).path is Path.RERANKER
    assert classify(tagged).evidence is Evidence.FILES

    tagged.framework = ["PyTorch"]
    assert classify(tagged).path is Path.CANNOT
    assert classify(tagged).reason.startswith("not tagged Sentence Transformers")


def test_only_a_loader_of_the_same_class_is_the_best_evidence() -> None:
    assert classify(Model()).evidence is Evidence.SAME_CLASS
    assert classify(Model(loader("pylate_models.MultiVectorModel"))).evidence is Evidence.FILES


@pytest.mark.parametrize("name", ["vidore/colpali-v1.3", "nomic-ai/colnomic-embed-multimodal-3b"])
def test_what_sentence_transformers_documents_counts_whatever_mteb_uses(name: str) -> None:
    model = Model(
        loader("colpali_models.ColPaliWrapper"),
        name=name,
        model_type=["late-interaction"],
        modalities=["image", "text"],
        extra_requirements_groups=["out_of_date"],
    )
    assert classify(model, excluded_extras={"out-of-date"}).path is Path.LATE_INTERACTION
    assert classify(model).evidence is Evidence.FILES

    model.name = "someone/else"
    assert classify(model).reason == "needs `colpali_engine` or a fork of it"


def test_remote_code_is_needed_where_the_model_or_its_loader_says_so() -> None:
    assert not classify(Model()).needs_remote_code
    assert not classify(Model(loader_kwargs={"trust_remote_code": False})).needs_remote_code
    assert classify(Model(loader_kwargs={"trust_remote_code": True})).needs_remote_code
    assert classify(Model(loader("rerankers_custom.JinaReranker"))).needs_remote_code


def test_settings_that_change_a_vector_are_told_from_those_that_do_not() -> None:
    assert classify(Model(loader_kwargs={"add_eos_token": True})).has_settings
    assert not classify(Model(loader_kwargs={"max_seq_length": 512, "model_kwargs": {}})).has_settings
    assert not classify(Model(loader_kwargs={"query_prefix": "[Q] "})).has_settings, "is sent as `prompt`"


def test_a_loader_is_named_by_module_and_name_through_a_partial_too() -> None:
    assert name_loader(functools.partial(classify)) == name_loader(classify) == "mteb_verdicts.classify"
    assert name_loader(Model) == f"{__name__.rpartition('.')[2]}.Model"
    assert name_loader(None) == ""


def test_extras_are_excluded_that_pin_another_transformers() -> None:
    requirements = [
        "transformers<6.0.0,>=4.40.0",
        "torch<1; extra == 'torch-alone'",
        "transformers<5; extra == 'old'",
        'transformers[torch]==4.49.0; extra == "pinned-too"',
        "transformers>=5; extra == 'new'",
    ]
    assert find_excluded_extras(requirements, "5.23.0") == {"old", "pinned-too"}
    assert find_excluded_extras(requirements, "4.49.0") == {"new"}


def test_each_loader_stands_in_one_group() -> None:
    groups = (mteb_loaders._SAME, mteb_loaders._FILES, mteb_loaders._TAG, mteb_loaders._NO)
    names = [name for group in groups for line in group.values() for name in line.split()]

    assert len(names) == len(set(names)) == len(LOADERS)
    assert {each.way for each in LOADERS.values()} == set(Way)
    assert set(LOADERS) >= REMOTE_CODE
    assert not LISTED_FOR_MULTI_VECTOR & LISTED_WITH_REVISION


def test_every_path_is_explained_on_the_page() -> None:
    assert set(EXPLAINED) == set(Path)
    for path in Path:
        assert f"- **{path.value}**: " in PAGE


def test_the_committed_page_is_what_its_own_lists_render_to() -> None:
    """When this fails: make coverage-page. All counts of the page are made from the lists, so they agree."""
    coverage = read_page(PAGE)
    assert format_page(coverage) == PAGE
    assert len(coverage.models) > 800


def test_the_numbers_of_the_summary_add_up() -> None:
    summary = re.findall(r"^\| (.+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    *rows, total = [tuple(map(int, counts)) for _, *counts in summary]
    reasons = re.findall(r"^\| .+ \| (\d+) \|$", PAGE.partition("## Cannot")[2], re.MULTILINE)
    num_cannot = rows[list(Path).index(Path.CANNOT)][0]
    stated = re.search(
        r"lists (\d+) models. (\d+) are closed.*?\*\*(\d+) open models\*\*, \*\*(\d+) have a path",
        PAGE,
        re.DOTALL,
    )

    assert [title for title, *_ in summary[:-1]] == [path.value for path in Path]
    assert tuple(map(sum, zip(*rows, strict=True))) == total
    assert sum(map(int, reasons)) == num_cannot
    assert stated is not None
    num_all, num_closed, num_open, num_served = map(int, stated.groups())
    assert (num_all - num_closed, num_open, num_served) == (total[0], total[0], total[0] - num_cannot)


def test_no_model_of_the_page_has_a_loader_that_nobody_has_read() -> None:
    assert "unknown loader" not in PAGE


def read_page(page: str) -> Coverage:
    """The page read back: versions, closed models, and each model with its verdict."""
    head = re.search(
        r"mteb (\S+) lists \d+ models. (\d+) are closed.*?transformers (\d\S+),", page, re.DOTALL
    )
    assert head is not None
    models: dict[str, Verdict] = {}
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        for path in Path:
            if section.partition("\n")[0].casefold() == path.value.casefold():
                models |= read_section(section, path)
    return Coverage(head[1], head[3], int(head[2]), models)


def read_section(section: str, path: Path) -> dict[str, Verdict]:
    models: dict[str, Verdict] = {}
    for evidence, reason, lines in re.findall(
        r"^\*\*(.+?)\*\*: (.+) \(\d+\)\n\n((?:- .+\n)+)", section, re.MULTILINE
    ):
        for organisation, members in re.findall(r"^- (.+?): (.+)$", lines, re.MULTILINE):
            for name in members.split(", "):
                models[f"{organisation}/{name.rstrip('†‡')}"] = Verdict(
                    path, "†" in name, reason, Evidence(evidence), "‡" in name
                )
    return models
