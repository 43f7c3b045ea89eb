"""Let the last layer of a network compute only the tokens that pooling or a head reads.

The layer needs the keys and values of all tokens, but the query, output and feed-forward part of only one
token per text. A hook computes the keys and values and passes the layer that token alone; attention takes the
keys and values from the packed layout.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import nn

from infinity_emb.backends.torch.input_layout import InputLayout, PooledToken

# Attributes of the projections to keys and values, in the layers of encoders with learned positions. Encoders
# with rotary positions are excluded: these would be applied to the wrong keys.
_PROJECTIONS = (("attention.self", "key", "value"), ("attention", "k_lin", "v_lin"))
_READ_VECTORS = (Transformer, Pooling, Dense, Normalize)


def find_pooled_token(model: BaseModel, network: nn.Module, layout: InputLayout) -> PooledToken | None:
    """Return which token of each text is read, if it is only one and the last layer is known."""
    if _find_last_layer(network) is None:
        return None
    if layout.reads in ("first", "last"):
        return "first" if layout.reads == "first" else "last"
    if layout.reads != "flat" or not all(isinstance(module, _READ_VECTORS) for module in model):
        return None
    modes = [module.pooling_mode for module in model if isinstance(module, Pooling)]
    names: dict[Any, PooledToken] = {"cls": "first", "lasttoken": "last"}
    mode = modes[0] if len(modes) == 1 else None
    return names.get(mode[0] if isinstance(mode, (list, tuple)) and len(mode) == 1 else mode)


def install(network: nn.Module) -> None:
    """Add the hook to the last layer, if it is known; it has no effect without pooled rows in the input."""
    layer = _find_last_layer(network)
    if layer is not None and _keep_pooled not in layer._forward_pre_hooks.values():
        layer.register_forward_pre_hook(_keep_pooled, with_kwargs=True)


def uninstall(network: nn.Module) -> None:
    """Undo `install`."""
    layer = _find_last_layer(network)
    if layer is None:
        return
    for key, hook in list(layer._forward_pre_hooks.items()):
        if hook is _keep_pooled:
            del layer._forward_pre_hooks[key]
            layer._forward_pre_hooks_with_kwargs.pop(key, None)


def _find_last_layer(network: nn.Module) -> nn.Module | None:
    """Return the last layer of the only stack of layers with known projections."""
    stacks = [module for module in network.modules() if isinstance(module, nn.ModuleList) and len(module)]
    last = [stack[-1] for stack in stacks if _find_projections(stack[-1]) is not None]
    return last[0] if len(last) == 1 else None


def _find_projections(layer: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    for path, key, value in _PROJECTIONS:
        module: Any = layer
        for name in path.split("."):
            module = getattr(module, name, None)
        to_key, to_value = getattr(module, key, None), getattr(module, value, None)
        if isinstance(to_key, nn.Module) and isinstance(to_value, nn.Module):
            return to_key, to_value
    return None


def _keep_pooled(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Replace the hidden states (1, T, H) by those of the pooled tokens (1, B, H)."""
    layout = kwargs.get("packed_layout")
    projections = _find_projections(layer)
    if layout is None or layout.pooled is None or projections is None:
        return None
    hidden = args[0]
    key, value = (project(hidden) for project in projections)
    pooled = replace(layout.pooled, key=key, value=value)
    changed = {**kwargs, "packed_layout": replace(layout, pooled=pooled)}
    return (hidden[:, layout.pooled.indices], *args[1:]), changed
