"""Write docs/coverage.md: the models that the `mteb` package lists, and whether this server can load them.

    python -m scripts.mteb_coverage > docs/coverage.md

Needs the mteb package, which `make coverage-page` installs; the rules are in `mteb_verdicts`.
"""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata

from scripts.mteb_verdicts import Evidence, Path, Verdict, classify, find_excluded_extras

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
    """Hold the content of the page; `models` is name → verdict, in any order."""

    mteb_version: str
    transformers_version: str
    num_closed: int
    models: Mapping[str, Verdict]


def collect() -> Coverage:
    """Read the list of the installed mteb package. Raises ImportError if it is missing."""
    mteb = importlib.import_module("mteb")  # by name, so that types are checked without it
    transformers_version = metadata.version("transformers")
    excluded_extras = find_excluded_extras(metadata.requires("mteb") or (), transformers_version)
    models = mteb.get_model_metas()
    open_models = [model for model in models if model.open_weights]
    return Coverage(
        mteb_version=metadata.version("mteb"),
        transformers_version=transformers_version,
        num_closed=len(models) - len(open_models),
        models={str(model.name): classify(model, excluded_extras) for model in open_models},
    )


def format_page(coverage: Coverage) -> str:
    """Return the page as Markdown; the order of `coverage.models` does not matter."""
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
    parts = [introduction, _format_summary(models), _HOW_TO_READ, _format_paths(), *_format_sections(models)]
    return "\n".join(parts)


def _count(models: Mapping[str, Verdict], path: Path) -> int:
    return sum(verdict.path is path for verdict in models.values())


def _format_summary(models: Mapping[str, Verdict]) -> str:
    rows = [
        _format_summary_row(path.value, [verdict for verdict in models.values() if verdict.path is path])
        for path in Path
    ]
    head = [
        "## Summary\n",
        "| path | models | as mteb itself loads them | with remote code |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, _format_summary_row("**all open models**", models.values())]) + "\n"


def _format_summary_row(title: str, verdicts: Collection[Verdict]) -> str:
    num_same = sum(verdict.evidence is Evidence.SAME_CLASS for verdict in verdicts)
    num_remote = sum(verdict.needs_remote_code for verdict in verdicts)
    return f"| {title} | {len(verdicts)} | {num_same} | {num_remote} |"


def _format_paths() -> str:
    return "\n".join(["## The paths\n", *(f"- **{path.value}**: {EXPLAINED[path]}" for path in Path)]) + "\n"


def _format_sections(models: Mapping[str, Verdict]) -> Iterator[str]:
    for path in Path:
        yield f"## {path.value[0].upper()}{path.value[1:]}\n"
        if path is Path.CANNOT:
            yield _format_reasons(models)
        yield "\n".join(_format_models(models, path)) + "\n"


def _format_reasons(models: Mapping[str, Verdict]) -> str:
    rows = (f"| {reason} | {len(names)} |" for _, reason, names in group_by_reason(models, Path.CANNOT))
    return "\n".join(["| why | models |", "|---|---|", *rows]) + "\n"


def _format_models(models: Mapping[str, Verdict], path: Path) -> Iterator[str]:
    yield f"<details><summary>{_count(models, path)} models</summary>\n"
    for evidence, reason, names in group_by_reason(models, path):
        yield f"**{evidence.value}**: {reason} ({len(names)})\n"
        for organisation, members in group_by_organisation(names):
            marked = (name + _format_marks(models[f"{organisation}/{name}"]) for name in members)
            yield f"- {organisation}: {', '.join(marked)}"
        yield ""
    yield "</details>"


def _format_marks(verdict: Verdict) -> str:
    return "†" * verdict.needs_remote_code + "‡" * verdict.has_settings


def group_by_reason(models: Mapping[str, Verdict], path: Path) -> list[tuple[Evidence, str, list[str]]]:
    """Group the models of a path by evidence and reason, the largest group of an evidence first."""
    groups: defaultdict[tuple[Evidence, str], list[str]] = defaultdict(list)
    for name, verdict in models.items():
        if verdict.path is path:
            groups[verdict.evidence, verdict.reason].append(name)
    order = list(Evidence)
    keys = sorted(groups, key=lambda key: (order.index(key[0]), -len(groups[key]), key[1]))
    return [(evidence, reason, groups[evidence, reason]) for evidence, reason in keys]


def group_by_organisation(names: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield (org, its models) from `org/model` names, both in alphabetical order without regard to case."""
    organisations: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(names, key=lambda name: (name.casefold(), name)):
        organisation, _, model = name.partition("/")
        organisations[organisation].append(model)
    yield from organisations.items()


if __name__ == "__main__":
    sys.stdout.write(format_page(collect()))
