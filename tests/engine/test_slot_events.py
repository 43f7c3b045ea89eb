"""Load, unload, cancel and restart in random order: every request ends exactly once."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.errors import EngineNotReady, StartupError
from tests.support.event_loop import run
from tests.support.fake_engines import fake_engine


async def embed_length(engine: AsyncEmbeddingEngine, text: str) -> int:
    """Return the length of a text, as its vector tells it."""
    [vector], _ = await engine.embed([text])
    return int(vector[0])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["ask", "ask", "ask", "cancel", "idle", "reload", "break", "mend", "wait", "restart"]
        ),
        max_size=25,
    )
)
def test_every_request_ends_once_whatever_happens_to_the_model(events: list[str]) -> None:
    async def main(fault: Path) -> None:
        engine = fake_engine(f"load_fails={fault}&load_delay_s=0.002&delay_s=0.001")
        await engine.astart()
        asked: list[asyncio.Task[int]] = []
        cancelled: set[asyncio.Task[int]] = set()
        reloads: list[asyncio.Task[None]] = []
        was_broken = was_restarted = False
        for event in events:
            if event == "ask":
                asked.append(asyncio.create_task(embed_length(engine, "a" * (1 + len(asked)))))
            elif event == "cancel" and asked and asked[-1].cancel():
                cancelled.add(asked[-1])
            elif event == "idle":
                engine.slot.unload_if_idle()
            elif event == "reload":
                reloads.append(asyncio.create_task(engine.slot.reload()))
            elif event == "break":
                was_broken = True
                fault.write_text("broken weights")
            elif event == "mend":
                fault.unlink(missing_ok=True)
            elif event == "restart":
                was_restarted = True
                await engine.astop()
                await engine.astart()
            await asyncio.sleep(0.003 if event == "wait" else 0)
        fault.unlink(missing_ok=True)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for number, (task, answer) in enumerate(zip(asked, answers, strict=True), start=1):
            if task in cancelled:
                assert answer == number or isinstance(answer, asyncio.CancelledError)
            elif was_broken or was_restarted:
                assert answer == number or isinstance(answer, EngineNotReady)
            else:
                assert answer == number
        for outcome in await asyncio.gather(*reloads, return_exceptions=True):
            assert outcome is None or isinstance(outcome, (StartupError, EngineNotReady))
        assert await embed_length(engine, "still here") == 10
        assert engine.overload_status().results_absolute == 0
        await engine.astop()
        assert engine.status().num_items == 0

    with tempfile.TemporaryDirectory() as folder:
        run(main(Path(folder) / "fault"))
