"""Build engines around the fake model, whose vectors hold the number of characters of a text."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from infinity_emb.backends import fake
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.host import BATCH_GRACE_S
from infinity_emb.engine.parts import EngineParts, assemble_parts
from infinity_emb.engine.slot import DRAIN_TIMEOUT_S
from infinity_emb.items import Encoded, Input, InputOptions, Outputs, number_inputs
from infinity_emb.types import InferenceEngine
from tests.support.event_loop import run
from tests.support.gated_backend import GatedBackend

Encode = Callable[..., list[Encoded]]


def fake_args(faults: str = "", **options: Any) -> EngineArgs:
    """Describe a fake model; `faults` is a query string such as `fail_on=poison`."""
    options = {"served_model_name": "debug", **options}
    return EngineArgs(model_name_or_path=f"debug?{faults}", engine=InferenceEngine.debugengine, **options)


def fake_engine(faults: str = "", **options: Any) -> AsyncEmbeddingEngine:
    return AsyncEmbeddingEngine.from_args(fake_args(faults, **options))


def fake_parts(faults: str = "", *, encode: Encode = fake.encode, **changes: Any) -> EngineParts:
    """Assemble an engine. `changes`: options, and with the prefix `model_` fields of the loaded model."""
    args = fake_args(faults, **{name: value for name, value in changes.items() if not _is_field(name)})
    model = replace(
        fake.load_model(args),
        encode=encode,
        **{name.removeprefix("model_"): value for name, value in changes.items() if _is_field(name)},
    )
    return assemble_parts(model, args, lambda: model)


def gated_parts(
    faults: str = "",
    *,
    encode: Encode = fake.encode,
    batch_grace_s: float = BATCH_GRACE_S,
    **options: Any,
) -> tuple[EngineParts, GatedBackend]:
    """Assemble an engine with a backend that computes nothing until its gate is open."""
    args = fake_args(faults, **options)
    model = fake.load_model(args)
    backend = GatedBackend(model.replicas[0])
    model = replace(model, replicas=[backend], encode=encode)
    return assemble_parts(model, args, lambda: model, batch_grace_s=batch_grace_s), backend


def call(engine: AsyncEmbeddingEngine, task: str, *args: Any, **kwargs: Any) -> Any:
    """Start the engine, call one task such as `embed` or `tokenizer.decode`, and stop it."""

    async def main() -> Any:
        async with engine:
            return await operator.attrgetter(task)(engine)(*args, **kwargs)

    return run(main())


@asynccontextmanager
async def started(parts: EngineParts) -> AsyncIterator[EngineParts]:
    """Start the engine, and stop it at the end of the block."""
    parts.slot.start()
    try:
        yield parts
    finally:
        await parts.slot.stop(DRAIN_TIMEOUT_S)


async def compute(parts: EngineParts, inputs: Sequence[Input], **options: Any) -> Outputs:
    """Send a request through gate and runner, as every task does."""
    async with parts.gate.request(len(inputs)) as open_model:
        return await open_model.runner.run(number_inputs(inputs), InputOptions(**options))


async def embed(parts: EngineParts, texts: list[str], **options: Any) -> list[int]:
    """Return the length of each text, as its vector tells it."""
    return read_lengths(await compute(parts, texts, **options))


def read_lengths(outputs: Outputs) -> list[int]:
    """Return the lengths of texts that the vectors of the fake model hold."""
    dense = outputs.by_name["dense"]
    assert (dense == dense[:, :1]).all()
    return [int(length) for length in dense[:, 0]]


def read_vector_lengths(vectors: Sequence[npt.NDArray[Any]]) -> list[int]:
    """Return the lengths of texts that these vectors of the fake model hold."""
    return [int(vector[0]) for vector in vectors]


async def run_ready_tasks(num_turns: int = 5) -> None:
    """Let every task that can run do so, a few times."""
    for _ in range(num_turns):
        await asyncio.sleep(0)


def assert_is_idle(parts: EngineParts) -> None:
    """Check that no request and no input is left."""
    status = parts.take_status()
    assert (status.num_requests, status.num_items, status.num_waiting_items) == (0, 0, 0)


def _is_field(name: str) -> bool:
    return name.startswith("model_") and name not in ("model_name_or_path", "model_kind", "model_warmup")
