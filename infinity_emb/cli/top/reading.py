"""Read the metrics and models of a server."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from infinity_emb.cli.remote_server import RemoteServer
from infinity_emb.cli.top.figures import Figures, ModelFigures, derive_figures, describe_models
from infinity_emb.cli.top.samples import Samples, Window
from infinity_emb.errors import StartupError

# A metric that every response of this server has.
_OWN_METRIC = "infinity_max_batch_tokens"


@dataclass(frozen=True, slots=True)
class Reading:
    """The metrics and models of a server at one time; models: the entries of `/models`."""

    at_s: float
    models: list[Mapping[str, Any]]
    samples: Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The figures of the last seconds and since the start, and the models."""

    url: str
    queue_items: int
    pending_requests: int
    memory_bytes: float | None
    now: Figures
    since_start: Figures
    models: list[ModelFigures]

    def to_dict(self) -> dict[str, Any]:
        """Return the values of a JSON object."""
        return asdict(self)


def read_server(server: RemoteServer) -> Reading:
    """Read both once. Raises StartupError if the server cannot be reached or is not infinity_emb."""
    models = server.get_json("/models")
    entries = models.get("data") if isinstance(models, dict) else None
    if not isinstance(entries, list) or not all(isinstance(each, dict) and "id" in each for each in entries):
        raise StartupError(f"{server.url}/models lists no models; is this the address of a model server?")
    return Reading(time.monotonic(), entries, _read_metrics(server))


def _read_metrics(server: RemoteServer) -> Samples:
    """Read `/metrics`, which is below a prefix only if a proxy adds one."""
    answer = server.get("/metrics")
    if answer.status == 404 and server.origin != server.url:
        answer = server.get("/metrics", at_origin=True)
    if answer.status == 404:
        raise StartupError(
            f"{server.origin}/metrics does not exist; start the server with --metrics open, or give the"
            " address of infinity_emb itself"
        )
    if answer.status != 200 or _OWN_METRIC not in answer.text:
        raise StartupError(f"{server.origin}/metrics ({answer.status}) has no metrics of infinity_emb")
    try:
        return Samples(answer.text)
    except ValueError as exc:
        raise StartupError(f"{server.origin}/metrics is not in Prometheus' text format: {exc}") from exc


def compare_readings(url: str, first: Reading, last: Reading) -> Snapshot:
    """Compute the figures between two readings."""
    window = Window(first.samples, last.samples, last.at_s - first.at_s)
    started_at = last.samples.sum("process_start_time_seconds")
    uptime_s = max(0.0, time.time() - started_at) if started_at else 0.0
    models = describe_models(last.models, window)
    return Snapshot(
        url=url,
        queue_items=sum(model.queue_items for model in models),
        pending_requests=sum(model.pending_requests for model in models),
        memory_bytes=last.samples.sum("process_resident_memory_bytes"),
        now=derive_figures(window),
        since_start=derive_figures(Window(Samples(), last.samples, uptime_s)),
        models=models,
    )
