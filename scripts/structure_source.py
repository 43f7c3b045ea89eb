"""Figures about the source of a package, read from its files: nothing is imported to measure them."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.structure_verbs import VERBS

OBLIQUE = re.compile(r"^(What|Whether|How|Where|Of|As|Which|Who|Whose|Likewise|The same)\b|nows nothing of")
BROAD_EXCEPTIONS = {"Exception", "BaseException"}
NUM_WORST = 3

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef | ast.Module


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure, and the places that a reader should look at first."""

    value: int
    worst: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A parsed file; `name` is relative to the folder of the package."""

    name: str
    text: str
    tree: ast.Module

    def place(self, node: Documented | ast.expr | ast.ExceptHandler) -> str:
        """Return `file:line name`."""
        line = getattr(node, "lineno", 1)
        return f"{self.name}:{line} {getattr(node, 'name', None) or ''}".rstrip()


def measure_source(package: Path) -> Mapping[str, Finding]:
    """Measure the package in this folder. Raises FileNotFoundError where there is none."""
    if not (package / "__init__.py").is_file():
        raise FileNotFoundError(f"{package} is not the folder of a package")
    files = list(read_files(package))
    return {
        "top-level entries": _find_top_level_entries(package),
        "package lines": Finding(sum(_count_lines(file) for file in files)),
        **_find_longest(files),
        "type-ignore + noqa": _find_text(files, r"type: ignore|# noqa"),
        "broad excepts": _find_all(files, _broad_excepts),
        "object.__setattr__": _find_text(files, r"\bobject\.__setattr__\("),
        "functions named *_of": _find_all(files, _functions_named_of),
        '"Knows nothing"': _find_text(files, r"nows\s+nothing"),
        "oblique docstrings": _find_all(files, _oblique_docstrings),
        "docstrings without a verb": _find_all(files, _docstrings_without_verb),
    }


def read_files(package: Path) -> Iterator[SourceFile]:
    """Parse every Python file of the folder."""
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        yield SourceFile(path.relative_to(package).as_posix(), text, ast.parse(text))


def opens_with_verb(docstring: str) -> bool:
    """Return true for an imperative: "Load the model.", "Raises BadInput where …"."""
    first = re.match(r"[A-Z][a-z]+(-[a-z]+)?\b", docstring.strip())
    return first is not None and first.group().lower() in VERBS


def _find_top_level_entries(package: Path) -> Finding:
    entries = [
        path.name
        for path in package.iterdir()
        if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__")
    ]
    return Finding(len(entries))


def _find_longest(files: Iterable[SourceFile]) -> Mapping[str, Finding]:
    files = list(files)
    functions = [(file, node) for file in files for node in _functions(file)]
    classes = [
        (file, node) for file in files for node in ast.walk(file.tree) if isinstance(node, ast.ClassDef)
    ]
    return {
        "longest file": _find_largest((_count_lines(file), file.name) for file in files),
        "longest function": _find_largest((_length(node), file.place(node)) for file, node in functions),
        "longest class": _find_largest((_length(node), file.place(node)) for file, node in classes),
        "most methods": _find_largest((_count_methods(node), file.place(node)) for file, node in classes),
    }


def _find_largest(measured: Iterable[tuple[int, str]]) -> Finding:
    ordered = sorted(measured, key=lambda each: (-each[0], each[1]))
    worst = [f"{place} ({value})" for value, place in ordered[:NUM_WORST]]
    return Finding(ordered[0][0] if ordered else 0, worst)


def _find_text(files: Iterable[SourceFile], pattern: str) -> Finding:
    counts = {file.name: len(re.findall(pattern, file.text)) for file in files}
    return _count_by_file(counts)


def _find_all(files: Iterable[SourceFile], find: Callable[[SourceFile], Iterable[str]]) -> Finding:
    """Count what `find` yields, and name the files with most of it, each with its first place."""
    places = {file.name: list(find(file)) for file in files}
    counts = {name: len(found) for name, found in places.items()}
    ordered = sorted((name for name in places if places[name]), key=lambda name: -counts[name])
    return Finding(
        sum(counts.values()), [f"{places[name][0]} ({counts[name]})" for name in ordered[:NUM_WORST]]
    )


def _count_by_file(counts: Mapping[str, int]) -> Finding:
    ordered = sorted((name for name in counts if counts[name]), key=lambda name: -counts[name])
    return Finding(sum(counts.values()), [f"{name} ({counts[name]})" for name in ordered[:NUM_WORST]])


def _broad_excepts(file: SourceFile) -> Iterator[str]:
    for node in ast.walk(file.tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if any(each is None or getattr(each, "id", "") in BROAD_EXCEPTIONS for each in caught):
                yield file.place(node)


def _functions_named_of(file: SourceFile) -> Iterator[str]:
    return (file.place(node) for node in _functions(file) if node.name.endswith("_of"))


def _oblique_docstrings(file: SourceFile) -> Iterator[str]:
    for node in ast.walk(file.tree):
        if isinstance(node, Documented) and OBLIQUE.search(ast.get_docstring(node) or ""):
            yield file.place(node)


def _docstrings_without_verb(file: SourceFile) -> Iterator[str]:
    """Yield functions and methods. Properties and functions inside functions may open with a noun."""
    for node in _functions_outside_functions(file.tree):
        docstring = ast.get_docstring(node)
        if docstring and not _is_property(node) and not opens_with_verb(docstring):
            yield file.place(node)


def _functions_outside_functions(node: ast.AST) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield child
        else:
            yield from _functions_outside_functions(child)


def _is_property(node: Function) -> bool:
    names = (ast.unparse(decorator) for decorator in node.decorator_list)
    return any(name.endswith(("property", ".setter")) for name in names)


def _functions(file: SourceFile) -> Iterator[Function]:
    return (node for node in ast.walk(file.tree) if isinstance(node, Function))


def _count_methods(node: ast.ClassDef) -> int:
    return sum(isinstance(each, Function) for each in node.body)


def _count_lines(file: SourceFile) -> int:
    return len(file.text.splitlines())


def _length(node: Function | ast.ClassDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1
