from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.tiny_server import build_debug_app, client_of, debug_args, embed

pytestmark = pytest.mark.anyio


async def test_an_event_loop_that_was_held_answers_each_request_once_and_drops_what_is_late() -> None:
    """The device goes on meanwhile; who gave itself less time is told so, the others have answers."""
    app = build_debug_app(debug_args("debug?delay_s=0.05", batch_size=2))
    async with client_of(app) as client:
        patient = [asyncio.create_task(embed(client, f"text {number}")) for number in range(12)]
        hurried = [asyncio.create_task(embed(client, f"late {number}", timeout=0.2)) for number in range(12)]
        asyncio.get_running_loop().call_later(0.1, time.sleep, 1.0)
        statuses = [answer.status_code for answer in await asyncio.gather(*patient, *hurried)]

        assert statuses[:12] == [200] * 12
        assert set(statuses[12:]) <= {200, 504}
        engine = app.engine_array[0]
        assert statuses.count(504) == engine.status().num_timed_out_requests > 0
        assert engine.status().num_items == 0
        assert (await embed(client, "afterwards")).status_code == 200
