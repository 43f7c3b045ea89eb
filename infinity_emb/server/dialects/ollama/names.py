"""Resolve model names as Ollama does: the registry, the namespace and the tag may be left out.

Source: https://github.com/ollama/ollama/blob/main/types/model/name.go
"""

from __future__ import annotations

from infinity_emb.engine.array import Resolved
from infinity_emb.server.requests.call import Call, note_model

_SCHEMES = ("https://", "http://")
_REGISTRY = "registry.ollama.ai/"
_NAMESPACE = "library/"


def match_name(call: Call, name: str | None) -> Resolved | None:
    """Return the engine that is served under a form of the name, or None.

    The name as it stands takes precedence. Raises EngineNotReady.
    """
    match = call.models.array.match
    for form in _list_forms(name) if name else ():
        if (resolved := match(form)) is not None:
            note_model(call.request.scope, resolved.engine)
            return resolved
    return None


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
