"""Build the Serve application: a deployment per model, and the router in front of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve

from infinity_emb.ray_serve.model_server import ModelReplica, ModelServer
from infinity_emb.ray_serve.options import ROUTER_NAME, ServeOptions
from infinity_emb.ray_serve.router import Router

# The model's own queue refuses what it cannot compute in time, so no replica needs a smaller limit.
MAX_ONGOING_REQUESTS = 4096
_SHARED: Mapping[str, Any] = {
    "max_ongoing_requests": MAX_ONGOING_REQUESTS,
    "health_check_period_s": 5,
    "graceful_shutdown_timeout_s": 30,
    "logging_config": {"enable_access_log": False},  # the plain server has none either
}
# Without autoscaling_config: Serve would then ignore a num_replicas of its YAML.
MODEL_DEFAULTS: Mapping[str, Any] = {**_SHARED, "ray_actor_options": {"num_cpus": 1}}
ROUTER_DEFAULTS: Mapping[str, Any] = {
    **_SHARED,
    "num_replicas": 2,
    "ray_actor_options": {"num_cpus": 0.5},
}


def build(args: dict[str, Any]) -> Any:
    """Return the application of `import_path: infinity_emb.ray_serve:build`.

    args: `models`, the options of each model; `server`, options of the HTTP server; `router`, true for a
        router in front of a single model too. Without `models`, the other keys are options of one model.
    Each deployment has the name of its model; `deployments` in Serve's YAML sets replicas and devices.
    Raises StartupError.
    """
    options = ServeOptions.from_args(args)
    server = dict(options.server)
    kind = ModelReplica if options.has_router else ModelServer
    models = {
        name: serve.deployment(kind, name=name, **MODEL_DEFAULTS).bind(model, server)
        for name, model in options.models.items()
    }
    if not options.has_router:
        [only] = models.values()
        return only
    router = serve.deployment(Router, name=ROUTER_NAME, **ROUTER_DEFAULTS)
    return router.bind(list(options.models.values()), list(models.values()), server)
