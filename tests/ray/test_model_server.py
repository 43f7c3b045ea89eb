"""A replica behind the router, in this process."""

from __future__ import annotations

import asyncio

import pytest

from infinity_emb.ray_serve.model_server import ModelReplica
from tests.support.fake_engines import fake_args

pytestmark = pytest.mark.filterwarnings("default")


def test_a_replica_that_is_stopped_while_it_loads_ends_without_an_error() -> None:
    """Serve calls `__del__` of a replica whose `__init__` has not returned."""

    async def stop_while_loading() -> None:
        replica = ModelReplica.__new__(ModelReplica)
        loading = asyncio.create_task(replica.__init__(fake_args(), {}))  # type: ignore[misc]
        await asyncio.sleep(0)
        await replica.__del__()
        await loading
        await replica.__del__()

    asyncio.run(stop_while_loading())
