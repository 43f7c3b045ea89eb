"""docs/coverage.md: which of the models that the `mteb` package lists this server loads, and by which path.

    python -m scripts.mteb_coverage > docs/coverage.md

Asks the installed mteb package for its list and writes the page; the rules are those of `mteb_verdicts`.
`make coverage-page` brings that package, which nothing else here needs.
"""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata

from scripts.mteb_verdicts import Evidence, Path, Verdict, classify, extras_held_back

EXPLAINED: Mapping[Path, str] = {
    Path.EMBEDDER: "one vector a text. Whether batches are packed or padded is decided when the model is"
    " loaded, by its architecture; `/models` says which.",
    Path.STATIC: "one vector a text, looked up in a table of tokens and averaged; here, the models that have"
    " no other parameters according to mteb.",
    Path.SPARSE: "a weight for each token of a vocabulary, by `SparseEncoder`.",
    Path.LATE_INTERACTION: "one vector a token, by `MultiVectorEncoder`; some take page images too.",
    Path.RERANKER: "a score for a pair of texts, from a classifier's output.",
    Path.LLM_RERANKER: "a score for a pair of texts, from a language model's next token. The folder decides"
    " between head and logit; here, what mteb says is made of a Qwen, Llama, Mistral or Gemma.",
    Path.IMAGE: "vectors of images, and of texts where the model has them. Video is not taken.",
    Path.AUDIO: "vectors of audio, and of what else the model takes; video is not taken.",
    Path.CANNOT: "no path; the reasons stand at the end.",
}

_INTRODUCTION = """\
# The models of mteb

Made by `make coverage-page`; edit the rules in `scripts/` instead.

mteb {mteb_version} lists {num_all} models. {num_closed} are closed, most of them APIs, and are left out.
Of the **{num_open} open models**, **{num_served} have a path** through sentence-transformers 6.2 with
transformers {transformers_version}, and {num_cannot} have none. Which of the paths this version of the
server has is said in the README.
"""

_HOW_TO_READ = """\
## How to read it

This is derived from mteb's metadata and from reading its loaders, not from loading each model. "As mteb
itself loads them" means that mteb opens the model with the class of sentence-transformers that the server
uses, which is the best evidence here; everything else rests on what a folder is said to hold: its format, a
tag of mteb's, or a list in the documentation of sentence-transformers. That a model has a path does not say
that its vectors are mteb's, that it fits into memory, or that it is fast.

- † runs Python from the model's folder and needs `--trust-remote-code`, says mteb. It may be wrong in both
  directions, and remote code may fail under a newer transformers.
- ‡ mteb gives settings of the tokenizer or the configuration that the server does not give, such as an end
  token. The vectors may differ where the folder does not say the same.
- Metadata does not show which further packages a model needs (einops, peft, a quantisation library, …), nor
  what its instruction is: that stands on the model's card.
"""


@dataclass(frozen=True, slots=True)
class Coverage:
    """Everything that the page says, in any order; `models` is name → verdict."""

    mteb_version: str
    transformers_version: str
    num_closed: int
    models: Mapping[str, Verdict]


def collect() -> Coverage:
    """Ask the installed mteb package. Raises ImportError where it is missing."""
    mteb = importlib.import_module("mteb")  # by name, so that types are checked without it
    transformers_version = metadata.version("transformers")
    held_back = extras_held_back(metadata.requires("mteb") or (), transformers_version)
    every = mteb.get_model_metas()
    is_open = [each for each in every if each.open_weights]
    return Coverage(
        mteb_version=metadata.version("mteb"),
        transformers_version=transformers_version,
        num_closed=len(every) - len(is_open),
        models={str(each.name): classify(each, held_back) for each in is_open},
    )


def coverage_page(coverage: Coverage) -> str:
    """The page as Markdown; the order of `coverage.models` does not matter."""
    models = coverage.models
    num_cannot = _count(models, Path.CANNOT)
    introduction = _INTRODUCTION.format(
        mteb_version=coverage.mteb_version,
        transformers_version=coverage.transformers_version,
        num_all=len(models) + coverage.num_closed,
        num_closed=coverage.num_closed,
        num_open=len(models),
        num_served=len(models) - num_cannot,
        num_cannot=num_cannot,
    )
    parts = [introduction, _summary(models), _HOW_TO_READ, _paths(), *_sections(models)]
    return "\n".join(parts)


def _count(models: Mapping[str, Verdict], path: Path) -> int:
    return sum(verdict.path is path for verdict in models.values())


def _summary(models: Mapping[str, Verdict]) -> str:
    rows = [
        _summary_row(path.value, [each for each in models.values() if each.path is path]) for path in Path
    ]
    head = [
        "## Summary\n",
        "| path | models | as mteb itself loads them | with remote code |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, _summary_row("**all open models**", models.values())]) + "\n"


def _summary_row(title: str, verdicts: Collection[Verdict]) -> str:
    num_same = sum(each.evidence is Evidence.SAME_CLASS for each in verdicts)
    num_remote = sum(each.needs_remote_code for each in verdicts)
    return f"| {title} | {len(verdicts)} | {num_same} | {num_remote} |"


def _paths() -> str:
    return "\n".join(["## The paths\n", *(f"- **{path.value}**: {EXPLAINED[path]}" for path in Path)]) + "\n"


def _sections(models: Mapping[str, Verdict]) -> Iterator[str]:
    for path in Path:
        yield f"## {path.value[0].upper()}{path.value[1:]}\n"
        if path is Path.CANNOT:
            yield _reasons(models)
        yield "\n".join(_fold(models, path)) + "\n"


def _reasons(models: Mapping[str, Verdict]) -> str:
    rows = (f"| {reason} | {len(names)} |" for _, reason, names in grouped(models, Path.CANNOT))
    return "\n".join(["| why | models |", "|---|---|", *rows]) + "\n"


def _fold(models: Mapping[str, Verdict], path: Path) -> Iterator[str]:
    yield f"<details><summary>{_count(models, path)} models</summary>\n"
    for evidence, reason, names in grouped(models, path):
        yield f"**{evidence.value}**: {reason} ({len(names)})\n"
        for organisation, members in by_organisation(names):
            marked = (name + _marks(models[f"{organisation}/{name}"]) for name in members)
            yield f"- {organisation}: {', '.join(marked)}"
        yield ""
    yield "</details>"


def _marks(verdict: Verdict) -> str:
    return "†" * verdict.needs_remote_code + "‡" * verdict.has_settings


def grouped(models: Mapping[str, Verdict], path: Path) -> list[tuple[Evidence, str, list[str]]]:
    """The models of a path by evidence and reason, the largest group of an evidence first."""
    groups: defaultdict[tuple[Evidence, str], list[str]] = defaultdict(list)
    for name, verdict in models.items():
        if verdict.path is path:
            groups[verdict.evidence, verdict.reason].append(name)
    order = list(Evidence)
    keys = sorted(groups, key=lambda key: (order.index(key[0]), -len(groups[key]), key[1]))
    return [(evidence, reason, groups[evidence, reason]) for evidence, reason in keys]


def by_organisation(names: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """`org/model` names → (org, its models), both in alphabetical order without regard to case."""
    organisations: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(names, key=lambda name: (name.casefold(), name)):
        organisation, _, model = name.partition("/")
        organisations[organisation].append(model)
    yield from organisations.items()


if __name__ == "__main__":
    sys.stdout.write(coverage_page(collect()))
