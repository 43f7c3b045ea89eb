"""The import rules of docs/architecture.md, read from the source: nothing is imported to check them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "infinity_emb"
ROOT = Path(__file__).parents[1] / PACKAGE

# Imports point down. A name stands for the module and, for a package, for everything in it that has no
# line of its own.
FLOORS: dict[str, int] = {
    # F0 words
    "primitives": 0,
    "errors": 0,
    "options": 0,
    "config": 0,
    # F1 rules
    "admission": 1,
    "agreement": 1,
    "backends.base": 1,
    "batching": 1,
    "media_hosts": 1,
    "caller": 1,
    "computed": 1,
    "embedding": 1,
    "fairness": 1,
    "pieces": 1,
    "postprocess": 1,
    "progress": 1,
    "prompts": 1,
    "public_addresses": 1,
    "scoring": 1,
    "token_budget": 1,
    # F2 adapters
    "backends": 2,
    "cache": 4,
    "cache.entry_bytes": 2,
    "cache.key_filter": 2,
    "cache.keys": 2,
    "cache.memory": 2,
    "cache.stats": 2,
    "cache.vector_file": 2,
    "calibration": 2,
    "hardware": 2,
    "home": 2,
    "media": 2,
    "media_sources": 2,
    "model_files": 2,
    "model_kind": 2,
    "model_version": 2,
    "pipeline_tokenizing": 2,
    "repository_files": 2,
    "token_ids": 2,
    "tokenizing": 2,
    "vocabulary": 2,
    # F3 worker
    "pending": 3,
    "watchdog": 3,
    "worker": 3,
    # F4 engine
    "calibrator": 4,
    "completion": 4,
    "one_model": 4,
    "embedding_tasks": 4,
    "scoring_tasks": 4,
    "token_tasks": 4,
    "engine": 4,
    "engine_array": 4,
    "media_inputs": 4,
    "residence": 4,
    "running_model": 4,
    # F5 server
    "server": 5,
    # F6 entry points
    "args": 6,
    "cli": 6,
    "env": 6,
    "infinity_server": 6,
    "log_handler": 6,
    "sync_engine": 6,
    "verification": 6,
    "verification_questions": 6,
    "__main__": 6,
}

# The modules of one engine do not know those of another; those that all engines share stand in neither.
ENGINES: dict[str, set[str]] = {
    "auto": {
        "backends.auto",
        "backends.auto_choice",
        "backends.auto_measure",
        "backends.auto_memory",
    },
    "torch": {
        "backends.m3_heads",
        "backends.packed_attention",
        "backends.packed_heads",
        "backends.torch_backend",
        "backends.torch_cores",
        "backends.torch_device",
        "backends.torch_doors",
        "backends.torch_inputs",
        "backends.torch_int8",
        "backends.torch_layout",
        "backends.torch_loading",
        "backends.torch_models",
        "backends.torch_outputs",
        "backends.torch_prepare",
        "backends.torch_quantized",
        "backends.torch_reference",
        "backends.torch_smoothing",
        "backends.torch_vocabulary",
    },
    "network": {
        "backends.network_loading",
        "backends.network_empty",
        "backends.network_probe",
        "backends.network_stand_in",
    },
    "graph": {
        "backends.graph_files",
        "backends.graph_inputs",
        "backends.graph_loading",
        "backends.onnx_export",
        "backends.onnx_weights",
    },
    "onnx": {
        "backends.onnx_backend",
        "backends.onnx_network",
        "backends.onnx_profiles",
        "backends.onnx_session",
    },
    "openvino": {
        "backends.openvino_backend",
        "backends.openvino_compiling",
        "backends.openvino_device",
        "backends.openvino_library",
        "backends.openvino_network",
    },
    "ctranslate2": {
        "backends.ct2_backend",
        "backends.ct2_bert",
        "backends.ct2_conversion",
        "backends.ct2_encoder",
        "backends.ct2_network",
        "backends.ct2_spec",
        "backends.ct2_t5",
    },
    "static": {"backends.static", "backends.static_backend", "backends.static_table"},
    "fake": {"backends.fake", "backends.fake_vocabulary"},
}
# An engine that computes the network alone has the pipeline around it from torch, through `network`;
# `auto` asks torch for the names of devices.
BUILT_ON = {
    "auto": {"torch"},
    "network": {"torch"},
    "graph": {"network", "torch"},
    "onnx": {"graph", "network", "torch"},
    "openvino": {"graph", "network", "torch"},
    "ctranslate2": {"network", "torch"},
}
SHARED_BY_ENGINES = {
    "backends",
    "backends.base",
    "backends.made_once",
    "backends.registry",
    "backends.warmup",
}

# Foreign package → where it may be imported: in modules whose names begin so, where it ends in `.` or `_`.
TORCH = (
    "backends.torch_",
    "backends.packed_attention",
    "backends.packed_heads",
    "backends.m3_heads",
    "backends.network_",
    "backends.graph_",
    "backends.onnx_",
    "backends.openvino_",
    "backends.ct2_",
)
HOMES: dict[str, tuple[str, ...]] = {
    "numpy": ("",),
    "torch": TORCH,
    "transformers": TORCH,
    "sentence_transformers": TORCH,
    "tokenizers": ("tokenizing", "backends.static", "backends.torch_vocabulary"),
    "huggingface_hub": ("model_files", "repository_files"),
    "tiktoken": ("token_ids",),
    "tqdm": ("progress",),
    # Images and audio: decoded in one place; torch models are handed images in a form of their own.
    "PIL": ("media", "backends.torch_"),
    "soundfile": ("media",),
    "soxr": ("media",),
    "httpx2": ("media_sources",),
    # For type checkers alone: no start imports it.
    "typing_extensions": ("errors",),
    # The app's type; uvicorn is handed an app.
    "fastapi": ("server.", "cli.uvicorn_server"),
    "starlette": ("server.",),
    "pydantic": ("server.",),
    "pydantic_core": ("server.",),
    "prometheus_client": ("server.",),
    "fastapi_swagger": ("server.",),
    "swagger_ui_bundle": ("server.",),
    "orjson": ("server.",),
    "pybase64": ("server.",),
    "ml_dtypes": ("server.",),
    "uvicorn": ("cli.",),
    "typer": ("cli.",),
    "click": ("cli.",),
    "rich": ("cli.",),
    "torchao": ("backends.torch_quantized",),
    "onnxruntime": ("backends.onnx_",),
    "openvino": ("backends.openvino_",),
    "ctranslate2": ("backends.ct2_",),
    "ray": (),
}


class Import(NamedTuple):
    """`module` imports `target`; ours are named without the package."""

    module: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.module} imports {self.target} in line {self.line}"


def module_names() -> dict[str, Path]:
    """Every module of the package: `worker`, `server.app`; a package by its folder; the package itself ``."""
    names = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = module_names()


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


def floor_of(module: str) -> int | None:
    """The floor of a module, or of the nearest package around it that has one."""
    while module:
        if module in FLOORS:
            return FLOORS[module]
        module = module.rpartition(".")[0]
    return None


def is_at(module: str, home: str) -> bool:
    return module.startswith(home) if not home or home[-1] in "._" else module == home


def listed(imports: list[Import]) -> str:
    return "\n".join(f"  {each}" for each in imports)


def test_every_module_has_a_floor() -> None:
    homeless = [module for module in MODULES if module and floor_of(module) is None]
    assert not homeless, (
        f"{homeless} stand on no floor: add them to FLOORS in {Path(__file__).name}, on the lowest floor that"
        " their imports allow (docs/architecture.md tells what each floor is for)"
    )


def test_every_line_of_the_tables_is_about_something_that_exists() -> None:
    named = {*FLOORS, *SHARED_BY_ENGINES, *(module for modules in ENGINES.values() for module in modules)}
    assert named <= MODULES.keys(), f"no such modules: {sorted(named - MODULES.keys())}; take them out"


def test_imports_point_down() -> None:
    upwards = [
        each for each in OWN if each.module and (floor_of(each.module) or 0) < (floor_of(each.target) or 0)
    ]
    assert not upwards, (
        "these imports point up; move what is needed down, or hand it over as an argument:\n"
        + listed(upwards)
    )


def test_nobody_inside_imports_the_package_for_its_public_names() -> None:
    """`from infinity_emb import EngineArgs` would reach any floor; only the version has no other home."""
    through_the_top = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
                wanted = {alias.name for alias in node.names if alias.name not in MODULES}
                if wanted - {"__version__"}:
                    through_the_top.append(Import(module, f"{PACKAGE}.{min(wanted)}", node.lineno))
    assert not through_the_top, "import from the module itself:\n" + listed(through_the_top)


def test_engines_do_not_import_each_other() -> None:
    sideways = [
        each
        for each in OWN
        for engine, modules in ENGINES.items()
        if each.module in modules and each.target.startswith("backends.")
        if each.target
        not in modules.union(SHARED_BY_ENGINES, *(ENGINES[name] for name in BUILT_ON.get(engine, ())))
    ]
    assert not sideways, "these backends import a module of another engine:\n" + listed(sideways)


def test_what_engines_share_imports_none_of_them_and_every_backend_module_belongs_somewhere() -> None:
    owned = {module for modules in ENGINES.values() for module in modules}
    assert not [each for each in OWN if each.module in SHARED_BY_ENGINES and each.target in owned]
    homeless = {
        module
        for module in MODULES
        if module.startswith("backends.") and module not in owned | SHARED_BY_ENGINES
    }
    assert not homeless, f"add {sorted(homeless)} to ENGINES or SHARED_BY_ENGINES in {Path(__file__).name}"


def test_nobody_but_the_registry_knows_an_engine() -> None:
    """And the registry only by a string: each library is imported when somebody asks for it."""
    owned = {module for modules in ENGINES.values() for module in modules}
    wrong = [each for each in OWN if each.target in owned and each.module not in owned]
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
        ("from infinity_emb import worker", ["infinity_emb.worker"]),
        ("from infinity_emb import __version__", ["infinity_emb"]),
        (
            "from infinity_emb.backends import fake, base",
            ["infinity_emb.backends.fake", "infinity_emb.backends.base"],
        ),
        ("from infinity_emb.worker import Item", ["infinity_emb.worker"]),
        ("from . import errors", ["infinity_emb.server.errors"]),
        ("from .errors import HANDLERS", ["infinity_emb.server.errors"]),
        ("from .. import worker", ["infinity_emb.worker"]),
        ("from ..worker import Item", ["infinity_emb.worker"]),
    ],
)
def test_every_kind_of_import_is_seen(source: str, targets: list[str]) -> None:
    assert sorted(target for target, _ in imports_of("server.app", source)) == sorted(targets)


def test_a_relative_import_of_a_package_starts_in_that_package() -> None:
    source = "from .app import build_app"
    assert list(imports_of("server", source, is_package=True)) == [("infinity_emb.server.app", 1)]


def test_the_floor_of_a_module_is_that_of_the_nearest_package() -> None:
    assert (floor_of("backends.base"), floor_of("backends.fake"), floor_of("server.app")) == (1, 2, 5)
    assert floor_of("no_such_module") is None
