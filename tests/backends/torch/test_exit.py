"""The interpreter ends cleanly while a device computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.event_loop import PATIENCE_S
from tests.support.small_models.embedders import save_small_model

pytestmark = [pytest.mark.model, pytest.mark.slow]

_PROGRAM = """
import asyncio, sys
from infinity_emb import AsyncEmbeddingEngine, EngineArgs, SyncEngineArray

args = EngineArgs(model_name_or_path=sys.argv[1], device="cpu", model_warmup=False)
texts = [f"text {number} " * 100 for number in range(1_000)]
"""
_USES = {
    "a loop that is left": """
engine = AsyncEmbeddingEngine.from_args(args)
loop = asyncio.new_event_loop()
loop.run_until_complete(engine.astart())
task = loop.create_task(engine.embed(texts))
while not engine.status().worker.num_batches:
    loop.run_until_complete(asyncio.sleep(0.01))
sys.stderr.close()  # the interpreter tells that a task was left
""",
    "an engine that is not stopped": """
async def main():
    engine = AsyncEmbeddingEngine.from_args(args)
    await engine.astart()
    task = asyncio.create_task(engine.embed(texts))
    while not engine.status().worker.num_batches:
        await asyncio.sleep(0.01)

asyncio.run(main())
""",
    "a synchronous array": """
array = SyncEngineArray([args])
future = array.embed(model=0, sentences=texts)
while not array[0].status().worker.num_batches:
    pass
""",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"), "bert")


@pytest.mark.parametrize("use", list(_USES))
def test_the_interpreter_ends_while_a_model_computes(use: str, model: Path) -> None:
    """It was aborted: `terminate called without an active exception`."""
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM + _USES[use], str(model)],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
