"""The command `models`: list cached models, download one, and show what a model needs."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from infinity_emb.cli.log_setup import configure_logging
from infinity_emb.cli.tool import Tool, format_bytes, print_line, print_table
from infinity_emb.hardware import free_memory_bytes

if TYPE_CHECKING:
    from infinity_emb.hub.cached_models import CachedModel
    from infinity_emb.hub.model_needs import ModelNeeds

# Extra → a package that it installs.
_PACKAGES = {"torch": "sentence_transformers", "onnx": "onnxruntime", "vision": "PIL", "audio": "soundfile"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `list`, `download` and `show`."""
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    for name, help_text in (
        ("list", "List the models on this machine: size, kind, last use."),
        ("download", "Download the files that serving a model needs, and print their folder."),
        ("show", "Show what a model needs: files, memory, engines, packages."),
    ):
        action = actions.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        if name != "list":
            action.add_argument("model", metavar="MODEL", help="hub id or local directory")
            action.add_argument("--revision", help="branch, tag or commit of the hub model")
        if name != "download":
            action.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Run one action. Raises StartupError."""
    configure_logging("info" if options.action == "download" else "warning")
    actions = {"list": _list, "download": _download, "show": _show}
    actions[options.action](options)
    return 0


def _list(options: argparse.Namespace) -> None:
    from infinity_emb.hub.cached_models import list_cached_models

    listing = list_cached_models()
    if options.json:
        print_line(json.dumps([_to_dict(model) for model in listing.models]))
        return
    if listing.models:
        heading = ["model", "kind", "size", "revisions", "last used", ""]
        rows = [_to_cells(model, datetime.now(timezone.utc)) for model in listing.models]
        print_table([heading, *rows], right_aligned=(2, 3))
    total = sum(model.size_bytes for model in listing.models)
    num_models = f"{len(listing.models)} model{'s' * (len(listing.models) != 1)}"
    print_line(f"{num_models}, {format_bytes(total)}; the cache is {listing.folder}")
    for warning in listing.warnings:
        print_line(f"not read: {warning}")


def _to_cells(model: CachedModel, now: datetime) -> list[str]:
    return [
        model.name,
        str(model.kind or "?"),
        format_bytes(model.size_bytes),
        str(model.num_revisions),
        _format_age((now - model.last_used).total_seconds()),
        model.problem,
    ]


def _format_age(seconds: float) -> str:
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        number = int(seconds // length)
        if number:
            return f"{number} {unit}{'s' * (number > 1)} ago"
    return "just now"


def _to_dict(model: CachedModel) -> dict[str, object]:
    return {
        "model": model.name,
        "kind": str(model.kind) if model.kind else None,
        "size_bytes": model.size_bytes,
        "num_revisions": model.num_revisions,
        "last_used": model.last_used.isoformat(timespec="seconds"),
        "problem": model.problem or None,
        "path": str(model.path),
    }


def _download(options: argparse.Namespace) -> None:
    from infinity_emb.hub.resolve import resolve_model_files

    files = resolve_model_files(options.model, revision=options.revision, graph_suffices=True)
    print_line(str(files.path))


def _show(options: argparse.Namespace) -> None:
    from infinity_emb.hub.model_needs import find_needs

    needs = find_needs(options.model, options.revision)
    missing = [extra for extra in needs.extras if importlib.util.find_spec(_PACKAGES[extra]) is None]
    memory = estimate_memory(needs)
    if options.json:
        figures = {
            "model": needs.name,
            "source": needs.source,
            "revision": needs.revision,
            "kind": str(needs.kind),
            "files": dict(needs.sizes),
            "download_bytes": needs.download_bytes,
            "num_parameters": needs.num_parameters,
            "memory_bytes": memory,
            "engines": list(_list_engines(needs)),
            "extras": list(needs.extras),
            "missing_extras": missing,
            "needs_own_code": needs.own_code,
        }
        print_line(json.dumps(figures))
        return
    revision = f", {needs.revision}" if needs.revision else ""
    print_line(f"{needs.name}: {needs.kind}, {_SOURCES[needs.source]}{revision}")
    for label, text in _describe(needs, memory, missing):
        print_line(f"  {label:<11} {text}")


_SOURCES = {
    "folder": "in a local folder",
    "package": "in an installed package",
    "cache": "in the cache",
    "hub": "on the hub",
}


def estimate_memory(needs: ModelNeeds) -> dict[str, int]:
    """Return the size of the weights by dtype."""
    return {"float32": 4 * needs.num_parameters, "float16": 2 * needs.num_parameters}


def _describe(needs: ModelNeeds, memory: dict[str, int], missing: list[str]) -> Iterator[tuple[str, str]]:
    total = format_bytes(sum(needs.sizes.values()))
    download = f"{format_bytes(needs.download_bytes)} to download" if needs.download_bytes else "all here"
    yield "files", f"{len(needs.sizes)}, {total}; {download}"
    if needs.num_parameters:
        free = free_memory_bytes()
        here = f"; {format_bytes(free)} are free here" if free is not None else ""
        yield "parameters", f"{needs.num_parameters / 1e6:.3g} million"
        in_float32, in_half = map(format_bytes, memory.values())
        yield "memory", f"{in_float32} in float32 (CPU), {in_half} in half precision (GPU), and batches{here}"
    yield "engines", ", ".join(_list_engines(needs))
    names = ",".join(needs.extras)
    packages = f"infinity-emb[{names}]" if names else "infinity-emb"
    missed = f"; not installed: {', '.join(missing)}" if missing else "; all installed"
    yield "packages", packages + missed
    if needs.own_code:
        yield "own code", "names Python code of its repository, which runs with --trust-remote-code only"


def _list_engines(needs: ModelNeeds) -> Iterator[str]:
    if needs.is_static:
        yield "numpy, without torch"
        return
    if needs.num_parameters:
        yield "torch"
    if needs.graphs:
        yield f"onnx or openvino ({needs.graphs[0]})"
    elif needs.num_parameters:
        yield "onnx, openvino and ctranslate2 after a conversion, where the architecture allows it"


TOOL = Tool(
    summary="List, download and examine models.",
    details="HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE work as in huggingface_hub.",
    add_arguments=add_arguments,
    run=run,
)
