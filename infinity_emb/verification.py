"""Compares a model as it is served here with sentence-transformers, on the machine at hand.

Each input is asked for alone, all in one list, and all at once from many coroutines; every answer must be the
one that sentence-transformers gives for the input alone, in float32. Called by the command `verify`, which
prints the lines that are written here. Knows nothing of compute libraries: both sides come from the registry.
"""

from __future__ import annotations

import asyncio
import itertools
import textwrap
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from infinity_emb.agreement import BOUNDS, cosine, difference
from infinity_emb.backends.base import Reference, Rows
from infinity_emb.backends.registry import load_reference
from infinity_emb.config import EngineArgs
from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.errors import BadInput, ServingError, StartupError
from infinity_emb.primitives import EmbeddingDtype, InferenceEngine, ModelInfo
from infinity_emb.verification_questions import Question, left_out, questions

_LINE_LENGTH = 80


class Limits(NamedTuple):
    """How far answers may be from float32's.

    vector, score: of any number, as a part of the largest in its answer or of 1.
    cosine: the least of vectors.
    """

    vector: float
    cosine: float
    score: float


# By the number format that the model is served in. In float32 nothing but rounding may differ, of any engine.
LIMITS = {
    name: Limits(vector=bound.difference, cosine=bound.cosine, score=bound.difference)
    for name, bound in BOUNDS.items()
} | {"float32": Limits(vector=2e-5, cosine=0.99999, score=1e-5)}


@dataclass(frozen=True, slots=True)
class Check:
    """One question, asked in one way, and the largest difference found."""

    name: str
    way: str
    num_inputs: int
    max_difference: float  # of any number, as a part of the largest in its answer or of 1
    limit: float
    min_cosine: float | None  # of vectors; None for scores
    cosine_limit: float

    @property
    def is_passed(self) -> bool:
        """Whether both limits hold."""
        is_near = self.max_difference <= self.limit
        return is_near and (self.min_cosine is None or self.min_cosine >= self.cosine_limit)


def verify(args: EngineArgs, *, tell: Callable[[str], None] = lambda line: None) -> list[Check]:
    """Load the model twice, ask both, compare.

    tell: gets the table line by line, as it comes about.
    Raises StartupError where the model cannot be loaded, or where one of the two cannot compute it.
    """
    if args.engine is InferenceEngine.debugengine:
        raise StartupError("--engine debugengine has no model that could be compared; leave it out")
    # Steps of int8 would hide what is compared.
    args = replace(args, embedding_dtype=EmbeddingDtype.float32)
    engine = AsyncEmbeddingEngine.from_args(args)
    reference = load_reference(args)
    tell(header_of(args, engine.info))
    try:
        checks = asyncio.run(_check_all(engine, reference, tell))
    except ServingError as exc:
        raise StartupError(f"model {args.model_name_or_path!r} cannot be compared: {exc}") from exc
    tell(verdict_of(checks, reference.library))
    return checks


def header_of(args: EngineArgs, info: ModelInfo) -> str:
    """What is compared, and the head of the table."""
    columns = f"{'check':<31} {'inputs':>6} {'difference':>10} {'limit':>8} {'cosine':>10}"
    return (
        f"{args.model_name_or_path}\n{info.kind} by {info.engine} on {info.device}, {info.dtype},"
        f" attention {info.attention}; reference in float32\n{columns}"
    )


def row_of(check: Check) -> str:
    """One line of the table."""
    cosine = "" if check.min_cosine is None else f"{check.min_cosine:.7f}"
    row = (
        f"{f'{check.name}, {check.way}':<31} {check.num_inputs:>6} {check.max_difference:>10.1e}"
        f" {check.limit:>8.0e} {cosine:>10}"
    )
    return row.rstrip() if check.is_passed else f"{row}  DIFFERS"


def verdict_of(checks: Sequence[Check], library: str) -> str:
    """What all checks together say."""
    if not checks:
        return f"nothing could be compared with {library}"
    if wrong := [check for check in checks if not check.is_passed]:
        names = ", ".join(dict.fromkeys(check.name for check in wrong))
        verdict = f"differs from {library} in {len(wrong)} of {len(checks)} checks: {names}"
        return textwrap.fill(verdict, _LINE_LENGTH)
    limits = f"<= {max(check.limit for check in checks):.0e}"
    if any(check.min_cosine is not None for check in checks):
        limits += f", cosine >= {checks[0].cosine_limit}"
    return f"equal to {library} but for rounding: {limits}"


async def _check_all(
    engine: AsyncEmbeddingEngine, reference: Reference, tell: Callable[[str], None]
) -> list[Check]:
    checks = []
    limits = LIMITS[engine.info.dtype]
    async with engine:
        for question in questions(engine, reference):
            try:
                expected = question.expected()
            except BadInput as exc:
                tell(_remark(f"{question.name} is not compared: {exc}"))
                continue
            async for way, answers in _ask_in_every_way(question):
                checks.append(_compare(question, way, answers, expected, limits))
                tell(row_of(checks[-1]))
    for reason in left_out(engine.info, reference):
        tell(_remark(reason))
    return checks


def _remark(text: str) -> str:
    return textwrap.fill(text, _LINE_LENGTH)


async def _ask_in_every_way(question: Question) -> AsyncIterator[tuple[str, list[Rows]]]:
    inputs = question.inputs
    yield "one by one", [(await question.ask([each]))[0] for each in inputs]
    yield "in one list", await question.ask(inputs)
    at_once = await asyncio.gather(*(question.ask([each]) for each in inputs))
    yield "all at once", [answers[0] for answers in at_once]


def _compare(
    question: Question, way: str, answers: list[Rows], expected: list[Rows], limits: Limits
) -> Check:
    both = list(zip(answers, expected, strict=True))
    return Check(
        name=question.name,
        way=way,
        num_inputs=len(both),
        max_difference=max(itertools.starmap(difference, both)),
        limit=limits.score if question.is_score else limits.vector,
        min_cosine=None if question.is_score else min(itertools.starmap(cosine, both)),
        cosine_limit=limits.cosine,
    )
