"""Let the last layer of a network compute only the tokens that pooling or a head reads.

The layer needs the keys and values of all tokens, but the query, output and feed-forward part of only one
token per text. A hook computes the keys and values and passes the layer that token alone, with its rotary
angles; attention takes the keys and values from the packed layout. Names of modules tell a layer's kind.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import Tensor, nn

from infinity_emb.backends.torch.input_layout import InputLayout, PooledToken

Angles = tuple[Tensor, Tensor]  # cosines and sines of rotary positions


class _LayerKind(NamedTuple):
    """Name the parts of a layer.

    projections: to keys and values, or to queries as well, (1, T, H) → (1, T, H_kv * D).
    norm: before the attention, with rotary positions.
    """

    attention: str
    projections: tuple[str, ...]
    norm: str | None = None


_KINDS = (
    _LayerKind("attention.self", ("key", "value")),  # BERT
    _LayerKind("attention", ("k_lin", "v_lin")),  # DistilBERT
    _LayerKind("self_attn", ("k_proj", "v_proj"), "input_layernorm"),  # Llama, Mistral, Qwen, Gemma
    _LayerKind("attn", ("Wqkv",), "attn_norm"),  # ModernBERT
)
Projection = Callable[[nn.Module, Tensor, Angles | None], list[Tensor]]
_READ_VECTORS = (Transformer, Pooling, Dense, Normalize)


def find_pooled_token(model: BaseModel, network: nn.Module, layout: InputLayout) -> PooledToken | None:
    """Return which token of each text is read, if it is only one and the last layer is known."""
    # OLMo clips keys and values, which shows only where they are large.
    if _find_last_layer(network) is None or getattr(network.config, "clip_qkv", None) is not None:
        return None
    if layout.reads in ("first", "last"):
        return "first" if layout.reads == "first" else "last"
    if layout.reads != "flat" or not all(isinstance(module, _READ_VECTORS) for module in model):
        return None
    modes = [module.pooling_mode for module in model if isinstance(module, Pooling)]
    names: dict[Any, PooledToken] = {"cls": "first", "lasttoken": "last"}
    mode = modes[0] if len(modes) == 1 else None
    return names.get(mode[0] if isinstance(mode, (list, tuple)) and len(mode) == 1 else mode)


def install(network: nn.Module, *, is_checked: bool = False) -> None:
    """Add the hook to the last layer, if it is known; it has no effect without pooled rows in the input.

    is_checked: attention raises NotImplementedError if the layer computes other keys or values.
    """
    layer = _find_last_layer(network)
    project = None if layer is None else _find_projection(layer)
    if layer is not None and project is not None and not _list_hooks(layer):
        hook: Any = functools.partial(_keep_pooled, project, is_checked)
        layer.register_forward_pre_hook(hook, with_kwargs=True)


def uninstall(network: nn.Module) -> None:
    """Undo `install`."""
    layer = _find_last_layer(network)
    if layer is None:
        return
    for key in _list_hooks(layer):
        del layer._forward_pre_hooks[key]
        layer._forward_pre_hooks_with_kwargs.pop(key, None)


def _list_hooks(layer: nn.Module) -> list[int]:
    return [k for k, hook in layer._forward_pre_hooks.items() if getattr(hook, "func", None) is _keep_pooled]


def _find_last_layer(network: nn.Module) -> nn.Module | None:
    """Return the last layer of the only stack of layers with known projections."""
    stacks = [module for module in network.modules() if isinstance(module, nn.ModuleList) and len(module)]
    last = [stack[-1] for stack in stacks if _find_projection(stack[-1]) is not None]
    return last[0] if len(last) == 1 else None


def _find_projection(layer: nn.Module) -> Projection | None:
    """Return the function that computes keys and values as the layer does; None for an unknown kind."""
    modules = dict(layer.named_modules())
    for kind in _KINDS:
        parts = [f"{kind.attention}.{name}" for name in kind.projections] + ([kind.norm] if kind.norm else [])
        if all(part in modules for part in parts):
            code = sys.modules.get(type(modules[kind.attention]).__module__)
            return functools.partial(_project, kind, getattr(code, "apply_rotary_pos_emb", None))
    return None


def _project(
    kind: _LayerKind,
    rotate: Callable[..., tuple[Tensor, Tensor]] | None,
    layer: nn.Module,
    hidden: Tensor,
    angles: Angles | None,
) -> list[Tensor]:
    """Return keys and values, (1, T, H_kv * D) or (1, T, H_kv, D), of hidden states (1, T, H)."""
    attention: Any = layer.get_submodule(kind.attention)
    if kind.norm is not None:
        hidden = layer.get_submodule(kind.norm)(hidden)
    projected = [getattr(attention, name)(hidden) for name in kind.projections]
    if kind.norm is None:
        return projected
    if rotate is None or angles is None:
        raise NotImplementedError("the last layer has no rotary positions")
    heads = [each.unflatten(-1, (-1, attention.head_dim)) for each in projected]
    key, value = heads if len(heads) == 2 else heads[0].chunk(3, dim=2)[1:]
    key = (attention.k_norm(key) if hasattr(attention, "k_norm") else key).transpose(1, 2)
    return [rotate(key[:, :0], key, *angles)[1].transpose(1, 2), value]  # with queries of no heads


def _keep_pooled(
    project: Projection, is_checked: bool, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Replace the hidden states (1, T, H) and rotary angles by those of the pooled tokens (1, B, …)."""
    layout, angles = kwargs.get("packed_layout"), kwargs.get("position_embeddings")
    if layout is None or layout.pooled is None:
        return None
    hidden, indices = args[0], layout.pooled.indices
    key, value = project(layer, hidden, angles)
    pooled = replace(layout.pooled, key=key, value=value)
    if is_checked:
        checked = replace(layout, pooled=replace(pooled, is_checked=True))
        layer.forward(*args, **{**kwargs, "packed_layout": checked})
    changed: dict[str, Any] = {"packed_layout": replace(layout, pooled=pooled)}
    if angles is not None:
        changed["position_embeddings"] = tuple(each[:, indices] for each in angles)
    return (hidden[:, indices], *args[1:]), {**kwargs, **changed}
