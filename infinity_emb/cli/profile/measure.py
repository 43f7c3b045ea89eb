"""Send requests to a model through the whole server in this process, and time each stage.

One request at a time is sent to one replica, with as many sample texts as fit into a batch. So stages do not
overlap, and their times add up to that of the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infinity_emb.backends.base import NetworkTimer
from infinity_emb.backends.probes import short_texts
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.errors import StartupError, require_extra
from infinity_emb.scheduling.stages import ComputedBatch, RequestStages
from infinity_emb.server.requests.in_process import post_json
from infinity_emb.types import ModelInfo, ModelKind

NUM_WARM_UP = 3
MAX_REQUESTS = 50
MAX_SECONDS = 8.0
# A batch of the smallest token budget has room for this many short texts.
MAX_TEXTS = 32
_QUERY = "Which of these texts is about rivers, trains or money?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The mean time of the stages of a request.

    stage_s: in the order of the request; `batch` is split into `copy`, `layers` and `pool` if the engine can
        be timed inside, else into `forward` and `copy`.
    request_s: of a whole request, the rest included.
    products_s: of the matrix products of the layers alone; None if unknown.
    """

    model: str
    info: ModelInfo
    num_texts: int
    num_tokens: int
    num_requests: int
    stage_s: Mapping[str, float]
    request_s: float
    products_s: float | None

    @property
    def limit_share(self) -> float | None:
        """Return the fraction of the layers' time that their matrix products need."""
        layers_s = self.stage_s.get("layers", 0.0)
        return self.products_s / layers_s if self.products_s and layers_s else None

    @property
    def rest_s(self) -> float:
        """Return the time outside all stages: admission, the event loop and sending."""
        return self.request_s - sum(self.stage_s.values())

    @property
    def bottleneck(self) -> str:
        """Return the stage with the most time to gain; for the layers, the time above the device's limit."""
        gains = {**self.stage_s, "rest": self.rest_s}
        if "layers" in gains and self.products_s is not None:
            gains["layers"] -= self.products_s
        return max(gains, key=lambda stage: gains[stage])


def measure(args: EngineArgs) -> Profile:
    """Load the model and profile it. Raises StartupError when it cannot be loaded or served."""
    one_replica = args.device_id[:1] or (0,)
    # A cache would return the outputs of the first request.
    args = replace(args, device_id=one_replica, vector_disk_cache=False, vector_memory_cache_mb=0)
    return asyncio.run(_profile(AsyncEmbeddingEngine(args)))


async def _profile(engine: AsyncEmbeddingEngine) -> Profile:
    with require_extra("profile", "server"):
        from infinity_emb.server.app import build_app
    app = build_app(AsyncEngineArray([engine]), ServerConfig())
    async with app.router.lifespan_context(app):
        client = _Client(app, engine.info.kind)
        texts = await _fit_one_batch(client)
        model = engine.slot.model
        timer = model.time_network() if model is not None and model.time_network is not None else None
        products_s = await _time_products(timer, client, texts) if timer is not None else None
        with timer.timing() if timer is not None else contextlib.nullcontext():
            records = await _measure_requests(client, texts)
    return Profile(
        model=engine.engine_args.served_model_name,
        info=engine.info,
        num_texts=len(texts),
        num_tokens=records[0].num_tokens,
        num_requests=len(records),
        stage_s=_average_stages(records, timer),
        request_s=sum(record.request_s for record in records) / len(records),
        products_s=products_s,
    )


class _Record(RequestStages):
    """The stages of one request, its batches and its whole time."""

    def __init__(self) -> None:
        super().__init__()
        self.request_s = 0.0
        self.num_batches = self.num_tokens = 0

    def add_batch(self, batch: ComputedBatch, queued_s: float) -> None:
        super().add_batch(batch, queued_s)
        self.num_batches += 1
        self.num_tokens += batch.num_tokens


class _Client:
    """Send requests to the route for a kind of model, without a socket."""

    def __init__(self, app: Any, kind: ModelKind) -> None:
        self._app = app
        self._kind = kind

    async def post(self, texts: Sequence[str]) -> _Record:
        """Send one request and return its record. Raises StartupError when it fails."""
        path, body = _make_request(self._kind, texts)
        content = json.dumps(body).encode()
        record = _Record()
        response = await post_json(self._app, path, content, state={"stages": record})
        record.request_s = time.monotonic() - record.started_s
        if response.status != 200:
            raise StartupError(f"the model cannot be profiled: {response.body.decode()}")
        return record


def _make_request(kind: ModelKind, texts: Sequence[str]) -> tuple[str, dict[str, object]]:
    """Return the path and the body of a request of the model's main task."""
    match kind:
        case ModelKind.reranker:
            return "/rerank", {"query": _QUERY, "documents": texts}
        case ModelKind.classifier:
            return "/classify", {"input": texts}
        case ModelKind.sparse:
            return "/embed_sparse", {"inputs": texts}
        case _:
            return "/embeddings", {"input": texts}


async def _fit_one_batch(client: _Client) -> list[str]:
    """Return as many texts as fit into one batch; computing them is the warm-up."""
    texts = short_texts()[:MAX_TEXTS]
    for _ in range(NUM_WARM_UP):
        record = await client.post(texts)
        while record.num_batches > 1 and len(texts) > 1:
            texts = texts[: len(texts) // 2]
            record = await client.post(texts)
    return texts


async def _time_products(timer: NetworkTimer, client: _Client, texts: Sequence[str]) -> float | None:
    with timer.recording():
        await client.post(texts)
    return await asyncio.to_thread(timer.time_products)


async def _measure_requests(client: _Client, texts: Sequence[str]) -> list[_Record]:
    records: list[_Record] = []
    deadline_s = time.monotonic() + MAX_SECONDS
    while not records or (len(records) < MAX_REQUESTS and time.monotonic() < deadline_s):
        records.append(await client.post(texts))
    return records


def _average_stages(records: Sequence[_Record], timer: NetworkTimer | None) -> dict[str, float]:
    """Return the mean seconds of each stage, with the parts of the batch in its place."""
    sums: dict[str, float] = {}
    for record in records:
        for name, seconds in record.measure().items():
            sums[name] = sums.get(name, 0.0) + seconds
    forward_s = sums.pop("forward")
    if timer is None:
        parts = {"copy": sums["batch"] - forward_s, "forward": forward_s}
    else:
        pool_s = timer.network_s - timer.layers_s
        parts = {"copy": sums["batch"] - timer.network_s, "layers": timer.layers_s, "pool": pool_s}
    stages: dict[str, float] = {}
    for stage, seconds in sums.items():
        stages |= parts if stage == "batch" else {stage: seconds}
    return {stage: seconds / len(records) for stage, seconds in stages.items()}
