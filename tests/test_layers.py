"""The import rules of docs/architecture.md, read from the source: nothing is imported to check them."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "infinity_emb"
ROOT = Path(__file__).parents[1] / PACKAGE

ARCHITECTURE = ROOT.parent / "docs" / "architecture.md"


def read_layers(page: str) -> list[list[str]]:
    """Return the rows of the page's table of layers, lowest first; each is a list of folders and modules."""
    section = page.partition("## Layers")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| *\d+ *\|([^|]*)\|", section, re.MULTILINE)
    return [re.findall(r"`([\w.]+)`", row) for row in rows]


LAYERS = read_layers(ARCHITECTURE.read_text(encoding="utf-8"))

# Engines are folders of `backends`. An engine that computes the network alone takes the pipeline around it
# from `torch`, through `external`; `auto` asks `torch` for the names of devices.
BUILT_ON = {
    "auto": {"torch"},
    "external": {"torch"},
    "onnx": {"external", "torch"},
    "openvino": {"external", "torch"},
    "ctranslate2": {"external", "torch"},
}

# Foreign package → the folders and modules that may import it.
TORCH = (
    "backends.torch",
    "backends.external",
    "backends.onnx",
    "backends.openvino",
    "backends.ctranslate2",
)
HOMES: dict[str, tuple[str, ...]] = {
    "numpy": ("",),
    "torch": TORCH,
    "transformers": TORCH,
    "sentence_transformers": TORCH,
    "tokenizers": (
        "preprocessing.fast_tokenizer",
        "preprocessing.text_truncation",
        "backends.static",
        "backends.torch.vocabulary",
        "backends.torch.tokenizer_check",
    ),
    "huggingface_hub": ("hub",),
    "tiktoken": ("preprocessing.token_ids",),
    "tqdm": ("engine.progress", "hub.download_counter"),
    "cachetools": ("cache.memory_tier",),
    # Images and audio are decoded in one place; torch models are handed images as PIL objects.
    "PIL": ("preprocessing.media.decode", "backends.torch"),
    "soundfile": ("preprocessing.media.decode",),
    "soxr": ("preprocessing.media.decode",),
    "httpx2": ("preprocessing.media.fetch", "bulk.server_executor"),
    "pyarrow": ("bulk", "ray_data"),
    "lance": ("bulk.lance_dataset",),
    # For type checkers alone: no start imports it.
    "typing_extensions": ("errors",),
    # The app's type; uvicorn is handed an app.
    "fastapi": ("server", "cli.uvicorn_server", "cli.front_ends", "ray_serve"),
    "python_multipart": ("server",),
    "starlette": ("server", "cli.front_ends", "ray_serve"),
    "pydantic": ("server",),
    "pydantic_core": ("server",),
    "prometheus_client": ("server", "cli.top", "cli.front_ends"),
    "fastapi_swagger": ("server",),
    "opentelemetry": ("server.tracing",),
    "swagger_ui_bundle": ("server",),
    "orjson": ("server", "bulk", "cli.front_ends", "ray_serve"),
    "pybase64": ("server",),
    # zstd of Python 3.14, and its backport.
    "backports": ("server",),
    "compression": ("server",),
    "ml_dtypes": ("server",),
    "uvicorn": ("cli",),
    "uvloop": ("cli.bench", "cli.front_ends"),
    "httptools": ("cli",),
    "rich": ("cli",),
    "torchao": ("backends.torch.int8",),
    "onnx": ("backends.external.onnx_weights",),
    "google": ("backends.external.onnx_weights",),  # protobuf, which onnx is built on
    "onnxruntime": ("backends.onnx",),
    "openvino": ("backends.openvino",),
    "ctranslate2": ("backends.ctranslate2",),
    "ray": ("ray_data", "ray_serve"),
}


class Import(NamedTuple):
    """`module` imports `target`; ours are named without the package."""

    module: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.module} imports {self.target} in line {self.line}"


def list_module_names() -> dict[str, Path]:
    """Every module of the package: `worker`, `server.app`; a package by its folder; the package itself ``."""
    names = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = list_module_names()


def imports_of(module: str, source: str, *, is_package: bool = False) -> Iterator[tuple[str, int]]:
    """(full name, line) of what a module imports: also in functions and under TYPE_CHECKING, and both for
    `from package import submodule` and for `from module import name`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node, is_package=is_package)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                is_module = submodule.removeprefix(f"{PACKAGE}.") in MODULES
                yield (submodule if is_module and base.startswith(PACKAGE) else base), node.lineno


def _absolute(module: str, node: ast.ImportFrom, *, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    folder = [PACKAGE, *filter(None, module.split("."))]
    folder = folder[: len(folder) - node.level + is_package]
    return ".".join([*folder, *filter(None, [node.module])])


def read_imports() -> tuple[list[Import], list[Import]]:
    """Imports of our own modules, and of foreign packages; the standard library is left out."""
    own, foreign = [], []
    for module, path in MODULES.items():
        for target, line in imports_of(module, path.read_text(), is_package=path.name == "__init__.py"):
            top = target.partition(".")[0]
            if top == PACKAGE:
                own.append(Import(module, target.removeprefix(PACKAGE).removeprefix("."), line))
            elif top not in sys.stdlib_module_names:
                foreign.append(Import(module, top, line))
    return own, foreign


OWN, FOREIGN = read_imports()


def layer_of(module: str) -> int | None:
    """Return the layer of a top-level folder or module; names of infinity_emb 0.0.77 are above all."""
    name = module.partition(".")[0]
    return next((number for number, names in enumerate(LAYERS) if name in names), None)


def is_at(module: str, home: str) -> bool:
    return not home or module == home or module.startswith(f"{home}.")


def engine_of(module: str) -> str | None:
    """Return the engine that a module of `backends` belongs to; None for what engines share."""
    parts = module.split(".")
    if parts[0] != "backends" or len(parts) < 2:
        return None
    is_engine = (ROOT / "backends" / parts[1]).is_dir() or parts[1].startswith("fake")
    return parts[1].partition("_")[0] if is_engine else None


def listed(imports: list[Import]) -> str:
    return "\n".join(f"  {each}" for each in imports)


def test_every_folder_and_module_has_a_layer_in_the_architecture_page() -> None:
    top_level = {module.partition(".")[0] for module in MODULES if module}
    named = {name for names in LAYERS for name in names}
    assert top_level == named, (
        f"{sorted(top_level ^ named)} stand in the package or in the table of layers of docs/architecture.md,"
        " but not in both"
    )


def test_imports_point_down() -> None:
    """Within a layer too: what stands beside something else in the table does not import it."""
    upwards = [
        each
        for each in OWN
        if each.module
        and each.module.partition(".")[0] != each.target.partition(".")[0]
        and (layer_of(each.module) or 0) <= (layer_of(each.target) or 0)
    ]
    assert not upwards, (
        "these imports point up; move what is needed down, or hand it over as an argument:\n"
        + listed(upwards)
    )


def test_nobody_inside_imports_the_package_for_its_public_names() -> None:
    """`from infinity_emb import EngineArgs` would reach any layer."""
    through_the_top = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
                wanted = {alias.name for alias in node.names if alias.name not in MODULES}
                if wanted:
                    through_the_top.append(Import(module, f"{PACKAGE}.{min(wanted)}", node.lineno))
    assert not through_the_top, "import from the module itself:\n" + listed(through_the_top)


def test_engines_do_not_import_each_other() -> None:
    sideways = [
        each
        for each in OWN
        if (engine := engine_of(each.module)) and (target := engine_of(each.target))
        if target != engine and target not in BUILT_ON.get(engine, ())
    ]
    assert not sideways, "these backends import a module of another engine:\n" + listed(sideways)


def test_only_the_registry_leads_to_an_engine_and_by_a_string() -> None:
    """Each library is imported when somebody asks for it."""
    wrong = [each for each in OWN if engine_of(each.target) and not engine_of(each.module)]
    assert not wrong, "only backends/registry.py leads to an engine, by a string:\n" + listed(wrong)


def test_no_module_imports_itself_through_others() -> None:
    """Not even in a function: what needs a lazy import to break a cycle stands in the wrong module."""
    edges: dict[str, set[str]] = {module: set() for module in MODULES}
    for each in OWN:
        if each.module and each.target and each.module != each.target:
            edges[each.module].add(each.target)
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a cycle: {' → '.join((*path[path.index(module) :], module))}"
        if module not in finished:
            for target in sorted(edges.get(module, ())):
                visit(target, (*path, module))
            finished.add(module)

    for module in edges:
        visit(module, ())


def test_each_foreign_package_is_imported_at_home_alone() -> None:
    unknown = [each for each in FOREIGN if each.target not in HOMES]
    assert not unknown, (
        f"add the home of these packages to HOMES in {Path(__file__).name}:\n{listed(unknown)}"
    )
    astray = [each for each in FOREIGN if not any(is_at(each.module, home) for home in HOMES[each.target])]
    assert not astray, "these foreign packages are imported outside of their home:\n" + listed(astray)


# The reading itself


@pytest.mark.parametrize(
    ("source", "targets"),
    [
        ("import torch", ["torch"]),
        ("import torch.nn as nn, os", ["torch.nn", "os"]),
        ("def f():\n    from torch import Tensor", ["torch"]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fastapi", ["typing", "fastapi"]),
        ("try:\n    import orjson\nexcept ImportError:\n    pass", ["orjson"]),
        ("from infinity_emb import scheduling", ["infinity_emb.scheduling"]),
        ("from infinity_emb import __version__", ["infinity_emb"]),
        (
            "from infinity_emb.backends import fake, base",
            ["infinity_emb.backends.fake", "infinity_emb.backends.base"],
        ),
        ("from infinity_emb.scheduling.worker_pool import Item", ["infinity_emb.scheduling.worker_pool"]),
        ("from . import metrics", ["infinity_emb.server.metrics"]),
        ("from .metrics import x", ["infinity_emb.server.metrics"]),
        ("from .. import scheduling", ["infinity_emb.scheduling"]),
        ("from ..scheduling import Item", ["infinity_emb.scheduling"]),
    ],
)
def test_every_kind_of_import_is_seen(source: str, targets: list[str]) -> None:
    assert sorted(target for target, _ in imports_of("server.app", source)) == sorted(targets)


def test_a_relative_import_of_a_package_starts_in_that_package() -> None:
    source = "from .app import build_app"
    assert list(imports_of("server", source, is_package=True)) == [("infinity_emb.server.app", 1)]


def test_the_table_of_layers_is_read_from_the_page() -> None:
    assert read_layers("## Layers\n| 1 | `a` `b` | x |\n| 2 | `c` | y |\n## Other\n| 3 | `d` |") == [
        ["a", "b"],
        ["c"],
    ]
    assert len(LAYERS) > 5
    assert layer_of("no_such_module") is None
