"""Let concurrent requests share the computation of equal inputs, for one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from infinity_emb.items import ItemOutput
from infinity_emb.scheduling.fair_queue import Flow

OutputFuture: TypeAlias = "asyncio.Future[ItemOutput | None]"


@dataclass(frozen=True, slots=True)
class Claims:
    """The keys that this request has to compute, and those that other requests are computing."""

    own: Mapping[bytes, OutputFuture]
    others: Mapping[bytes, OutputFuture]

    def resolve(self, outputs: Mapping[bytes, ItemOutput]) -> None:
        """Hand the outputs of own keys to the requests that wait for them."""
        for key, output in outputs.items():
            self.own[key].set_result(output)

    async def wait_for_others(self) -> dict[bytes, ItemOutput]:
        """Return what other requests computed; the outputs of failed and cancelled ones are missing."""
        if not self.others:
            return {}
        await asyncio.wait(self.others.values())  # unlike `gather`, leaves the futures alone when cancelled
        results = {key: future.result() for key, future in self.others.items()}
        return {key: output for key, output in results.items() if output is not None}


class SingleFlight:
    """The keys that requests are computing."""

    def __init__(self) -> None:
        self._futures: dict[tuple[Flow, bytes], OutputFuture] = {}

    @contextmanager
    def claim(self, flow: Flow, keys: Sequence[bytes]) -> Iterator[Claims]:
        """Claim the keys that no other request has claimed, until the end of the block.

        keys: all different.
        flow: only requests of one flow share, so that none waits behind another client or lane.
        """
        loop = asyncio.get_running_loop()
        others = {key: future for key in keys if (future := self._futures.get((flow, key))) is not None}
        own: dict[bytes, OutputFuture] = {key: loop.create_future() for key in keys if key not in others}
        self._futures |= {(flow, key): future for key, future in own.items()}
        try:
            yield Claims(own, others)
        finally:
            for key, future in own.items():
                del self._futures[flow, key]
                if not future.done():
                    future.set_result(None)
