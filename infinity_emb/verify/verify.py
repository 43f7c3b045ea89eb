"""Compare a served model with sentence-transformers on this machine.

Inputs are computed one by one, in one list and concurrently; every output must equal that of
sentence-transformers for the input alone, in float32.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from infinity_emb.backends.accuracy import Bound, compare, find_bound
from infinity_emb.backends.base import Reference
from infinity_emb.backends.registry import load_reference
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.errors import BadInput, ServingError, StartupError
from infinity_emb.items import Float32Array
from infinity_emb.types import EmbeddingDtype, InferenceEngine, ModelInfo
from infinity_emb.verify.cases import Case, build_cases, explain_omissions

_LINE_LENGTH = 80


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one case, computed in one mode."""

    name: str
    mode: str
    num_inputs: int
    max_difference: float  # of any number, relative to the largest of its output or to 1
    limit: float
    min_cosine: float | None  # of vectors; None for scores
    cosine_limit: float

    @property
    def is_passed(self) -> bool:
        """Return whether both limits hold."""
        is_near = self.max_difference <= self.limit
        return is_near and (self.min_cosine is None or self.min_cosine >= self.cosine_limit)


def verify(args: EngineArgs, *, write_line: Callable[[str], None] = lambda line: None) -> list[Check]:
    """Load the model twice, compute every case with both, and compare.

    write_line: called with each line of the table as soon as it is known.
    Raises StartupError when the model cannot be loaded, or one of the two fails to compute.
    """
    if args.engine is InferenceEngine.debugengine:
        raise StartupError("--engine debugengine has no model to compare; leave it out")
    # Quantization would hide differences.
    args = replace(args, embedding_dtype=EmbeddingDtype.float32)
    with _relay_warnings(write_line):
        engine = AsyncEmbeddingEngine.from_args(args)
        reference = load_reference(args)
    write_line(format_header(args, engine.info))
    try:
        checks = asyncio.run(_check_all(engine, reference, write_line))
    except ServingError as exc:
        raise StartupError(f"model {args.model_name_or_path!r} cannot be compared: {exc}") from exc
    write_line(format_verdict(checks, reference.library))
    return checks


@contextlib.contextmanager
def _relay_warnings(write_line: Callable[[str], None]) -> Iterator[None]:
    """Pass warnings that are logged inside the block to `write_line` only, each message once."""
    handler = _LineHandler(write_line)
    package = logging.getLogger("infinity_emb")
    package.addHandler(handler)
    propagate, package.propagate = package.propagate, False
    try:
        yield
    finally:
        package.propagate = propagate
        package.removeHandler(handler)


class _LineHandler(logging.Handler):
    def __init__(self, write_line: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._write_line = write_line
        self._written: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the message unless it has been written."""
        message = record.getMessage()
        if message not in self._written:
            self._written.add(message)
            self._write_line(_wrap(f"warning: {message}"))


def format_header(args: EngineArgs, info: ModelInfo) -> str:
    """Format the model and the header of the table."""
    columns = f"{'check':<31} {'inputs':>6} {'difference':>10} {'limit':>8} {'cosine':>10}"
    return (
        f"{args.model_name_or_path}\n{info.kind} by {info.engine} on {info.device}, {info.dtype},"
        f" attention {info.attention}; reference in float32\n{columns}"
    )


def format_row(check: Check) -> str:
    """Format one line of the table."""
    cosine = "" if check.min_cosine is None else f"{check.min_cosine:.7f}"
    row = (
        f"{f'{check.name}, {check.mode}':<31} {check.num_inputs:>6} {check.max_difference:>10.1e}"
        f" {check.limit:>8.0e} {cosine:>10}"
    )
    return row.rstrip() if check.is_passed else f"{row}  DIFFERS"


def format_verdict(checks: Sequence[Check], library: str) -> str:
    """Format the result of all checks."""
    if not checks:
        return f"nothing could be compared with {library}"
    if wrong := [check for check in checks if not check.is_passed]:
        names = ", ".join(dict.fromkeys(check.name for check in wrong))
        verdict = f"differs from {library} in {len(wrong)} of {len(checks)} checks: {names}"
        return textwrap.fill(verdict, _LINE_LENGTH)
    limits = f"<= {max(check.limit for check in checks):.0e}"
    if any(check.min_cosine is not None for check in checks):
        limits += f", cosine >= {checks[0].cosine_limit}"
    return f"equal to {library} up to rounding: {limits}"


async def _check_all(
    engine: AsyncEmbeddingEngine, reference: Reference, write_line: Callable[[str], None]
) -> list[Check]:
    checks = []
    bound = find_bound("reference", engine.info.dtype)
    async with engine:
        for case in build_cases(engine, reference):
            try:
                expected = case.expected()
            except BadInput as exc:
                write_line(_wrap(f"{case.name} is not compared: {exc}"))
                continue
            async for mode, outputs in _compute_in_every_mode(case):
                checks.append(_compare(case, mode, outputs, expected, bound))
                write_line(format_row(checks[-1]))
    for reason in explain_omissions(engine.info, reference):
        write_line(_wrap(reason))
    return checks


def _wrap(text: str) -> str:
    return textwrap.fill(text, _LINE_LENGTH)


async def _compute_in_every_mode(case: Case) -> AsyncIterator[tuple[str, list[Float32Array]]]:
    inputs = case.inputs
    yield "one by one", [(await case.compute([value]))[0] for value in inputs]
    yield "in one list", await case.compute(inputs)
    concurrent = await asyncio.gather(*(case.compute([value]) for value in inputs))
    yield "all at once", [outputs[0] for outputs in concurrent]


def _compare(
    case: Case, mode: str, outputs: list[Float32Array], expected: list[Float32Array], bound: Bound
) -> Check:
    found = compare(outputs, expected, are_scores=case.is_score)
    return Check(
        name=case.name,
        mode=mode,
        num_inputs=len(outputs),
        max_difference=found.max_difference,
        limit=bound.max_score_difference if case.is_score else bound.max_difference,
        min_cosine=found.min_cosine,
        cosine_limit=bound.min_cosine,
    )
