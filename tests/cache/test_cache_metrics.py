from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.test_metrics import read_metrics
from tests.support.tiny_server import build_debug_app, client_of, debug_args, embed

pytestmark = pytest.mark.anyio


async def test_each_model_says_what_its_cache_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path))
    cached = debug_args("cached", vector_memory_cache_mb=1, vector_disk_cache=True)
    async with client_of(build_debug_app(cached, debug_args("other"))) as client:
        await embed(client, ["hello", "hi"], model="cached")
        await embed(client, ["hi", "ho"], model="cached")
        metrics = await read_metrics(client)
    names = ("misses", "memory_hits", "disk_hits", "shared", "dropped", "unwritten")
    assert [metrics[f"infinity_cache_{name}_total", "cached"] for name in names] == [3, 1, 0, 0, 0, 0]
    assert metrics["infinity_cache_memory_bytes", "cached"] > 0
    assert metrics["infinity_cache_disk_bytes", "other"] == 0
    assert metrics["infinity_cache_misses_total", "other"] == 0
