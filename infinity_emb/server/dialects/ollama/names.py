"""Resolve model names as Ollama does: the registry, the namespace and the tag may be left out.

Source: https://github.com/ollama/ollama/blob/main/types/model/name.go
"""

from __future__ import annotations

from infinity_emb.engine.array import AsyncEngineArray, Resolved
from infinity_emb.server.requests.call import Call
from infinity_emb.types import Capability

_SCHEMES = ("https://", "http://")
_REGISTRY = "registry.ollama.ai/"
_NAMESPACE = "library/"


def find_served_name(array: AsyncEngineArray, name: str) -> str | None:
    """Return the form of a name under which a model is served, or None.

    The name as it stands takes precedence.
    """
    return next((form for form in _list_forms(name) if array.match(form)), None)


def resolve_name(call: Call, name: str | None, capability: Capability) -> Resolved:
    """Return the engine for the requested model, or the default one for the task.

    Raises UnknownModel and EngineNotReady.
    """
    return call.find_engine(name and (find_served_name(call.models.array, name) or name), capability)


def _list_forms(name: str) -> list[str]:
    """Return a name as it stands, then without the registry, and with and without the default namespace."""
    local = name
    for scheme in _SCHEMES:
        local = _remove_prefix(local, scheme)
    if local.count("/") > 1:
        local = _remove_prefix(local, _REGISTRY)
    short = _remove_prefix(local, _NAMESPACE)
    return list(dict.fromkeys([name, local, short, local if "/" in local else _NAMESPACE + local]))


def _remove_prefix(name: str, prefix: str) -> str:
    """Remove a prefix in any case."""
    return name[len(prefix) :] if name.casefold().startswith(prefix) else name
