"""Read the arguments of an application: `args` in Serve's YAML."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infinity_emb.config.engine_args import EngineArgs, check_distinct_names
from infinity_emb.config.environment import collect_given
from infinity_emb.config.parsing import did_you_mean, read_names
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.errors import StartupError

ROUTER_NAME = "Router"
_NAMES = ("models", "server", "router")
# These routes would show or change one of several replicas, whichever the request reaches.
_DEFAULTS: Mapping[str, Any] = {"metrics": "off", "ui": False}
_REFUSED = ("admin_key", "batch_dir", "preload_only")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The models of an application, by the names of their deployments.

    server: options of `ServerConfig`, by field name.
    has_router: whether requests reach the models through a router, which several models need.
    """

    models: Mapping[str, EngineArgs]
    server: Mapping[str, Any]
    has_router: bool

    @classmethod
    def from_args(cls, args: Mapping[str, Any]) -> ServeOptions:
        """Read `models`, `server` and `router`; without `models`, the other options are those of one model.

        Raises StartupError.
        """
        given = dict(args)
        server = read_names(ServerConfig, given.pop("server", None) or {})
        router = given.pop("router", None)
        if "models" not in given:
            given = {"models": [given]}
        if unknown := [name for name in given if name not in _NAMES]:
            raise StartupError(f"args has no field {unknown[0]!r}{did_you_mean(unknown[0], _NAMES)}")
        models = [EngineArgs(**read_names(EngineArgs, _join_lists(model))) for model in given["models"]]
        if not models:
            raise StartupError("args has no models; give at least one")
        check_distinct_names(models)
        read_server_config(server)
        return cls(
            models=_name_deployments(models),
            server=server,
            has_router=len(models) > 1 if router is None else str(router).lower() == "true",
        )


def read_server_config(given: Mapping[str, Any]) -> ServerConfig:
    """Return the options of a replica's server; missing ones come from the replica's `INFINITY_*` variables.

    Raises StartupError, also for options that make no sense with several replicas.
    """
    values = {
        name: list(value) if isinstance(value, (list, tuple)) else [value]
        for name, value in {**_DEFAULTS, **given}.items()
    }
    config = ServerConfig.from_given(collect_given(ServerConfig, values, os.environ, is_per_model=False))
    for name in _REFUSED:
        if getattr(config, name):
            raise StartupError(
                f"{name} concerns one server, and Ray Serve has several replicas of it; leave it out"
            )
    return config


def _name_deployments(models: Sequence[EngineArgs]) -> dict[str, EngineArgs]:
    """Name the deployments after the served models; `-` replaces all but letters, digits, `.` and `_`."""
    named = {_UNSAFE.sub("-", args.served_model_name): args for args in models}
    if len(named) < len(models) or ROUTER_NAME in named:
        raise StartupError(
            f"the served names become {', '.join(map(repr, named))} as names of deployments, which must"
            f" differ from each other and from {ROUTER_NAME!r}; set served_model_name"
        )
    return named


def _join_lists(model: Mapping[str, Any]) -> dict[str, Any]:
    """Convert lists from YAML to tuples, as options have them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in model.items()}
