"""Compute the layers of BERT and its relatives on a CPU with fewer operators than transformers takes.

A short text spends as much time between the matrix products of such a layer as in them: on calls of modules,
copies of biases, sums, and activations that are written to new memory. Here each residual is part of the
product before it, and the activation is computed in place.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm
from transformers.activations import GELUActivation

from infinity_emb.backends.torch.device import is_cpu
from infinity_emb.backends.torch.onednn_products import OneDnnLinear, multiply_and_add
from infinity_emb.backends.torch.packed_attention import grouped_attention
from infinity_emb.backends.torch.st_introspection import is_of_transformers


class _Names(NamedTuple):
    """Names of a layer's parts.

    attention: the module that knows the size of heads and the scale.
    products: to queries, keys and values, of attention's output, and the two of the feed-forward part.
    norms: after either residual.
    """

    attention: str
    products: list[str]
    norms: list[str]
    activation: str


_BERT = _Names(
    "attention.self",
    [f"attention.{name}" for name in ("self.query", "self.key", "self.value", "output.dense")]
    + ["intermediate.dense", "output.dense"],
    ["attention.output.LayerNorm", "output.LayerNorm"],
    "intermediate.intermediate_act_fn",
)
_DISTILBERT = _Names(
    "attention",
    [f"attention.{name}" for name in ("q_lin", "k_lin", "v_lin", "out_lin")] + ["ffn.lin1", "ffn.lin2"],
    ["sa_layer_norm", "output_layer_norm"],
    "ffn.activation",
)
_FAMILIES = ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "Ernie", "Data2VecText")
# By class of transformers.
_LAYERS = dict.fromkeys([f"{name}Layer" for name in _FAMILIES], _BERT) | {"TransformerBlock": _DISTILBERT}


class _Parts(NamedTuple):
    """Modules of a layer, which are found once.

    projections: to queries, keys and values.
    """

    attention: Any
    projections: list[nn.Linear]
    attended: nn.Linear
    widened: nn.Linear
    narrowed: nn.Linear
    norms: list[nn.LayerNorm]
    activation: nn.Module


class PostNormLayer(nn.Module):
    """Compute packed batches with fewer operators, and padded ones as the original layer does."""

    original: type[nn.Module]
    fused_parts: _Parts

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return (1, T, H) for hidden states of that shape."""
        # A compiler fuses by itself, and its code for one layer must suit the others.
        if kwargs.get("packed_layout") is None or torch.compiler.is_compiling():
            return super().forward(hidden_states, *args, **kwargs)
        parts = self.fused_parts
        if parts.widened._forward_hooks:  # which `profile` adds
            return super().forward(hidden_states, *args, **kwargs)
        hidden = hidden_states[0]  # (T, H)
        shape = (1, len(hidden), -1, parts.attention.attention_head_size)
        # `forward` rather than a call of the module, which takes longer and looks for hooks.
        query, key, value = (each.forward(hidden).view(shape).transpose(1, 2) for each in parts.projections)
        attended, _ = grouped_attention(
            parts.attention, query, key, value, None, scaling=parts.attention.scaling, **kwargs
        )  # (1, T, H, D)
        hidden = _norm(multiply_and_add(hidden, attended.flatten(2)[0], parts.attended), parts.norms[0])
        wide = parts.widened.forward(hidden)  # (T, I)
        hidden = multiply_and_add(hidden, _activate(wide, parts.activation), parts.narrowed)
        return _norm(hidden, parts.norms[1]).unsqueeze(0)


def _norm(hidden: Tensor, norm: nn.LayerNorm) -> Tensor:
    return layer_norm(hidden, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _activate(hidden: Tensor, activation: Any) -> Tensor:
    """Return the activation, which may be computed in place."""
    if type(activation) is GELUActivation and activation.act is gelu:
        torch.ops.aten.gelu_(hidden)
        return hidden
    output: Tensor = activation(hidden)
    return output


def install(network: nn.Module) -> None:
    """Fuse the layers of known classes in float32 on a CPU; the network must be on its grouped attention."""
    for layer in network.modules():
        names = _LAYERS.get(type(layer).__name__)
        if names is not None and is_of_transformers(layer):
            modules: dict[str, Any] = dict(layer.named_modules())
            if _is_plain(modules, names):
                # Not as modules, so that the names of weights stay.
                layer.__dict__["fused_parts"] = _find_parts(modules, names)
                # The class rather than `forward`, which a copy of the layer would share with it.
                original: Any = type(layer)
                layer.__class__ = _derive(original)


def _find_parts(modules: dict[str, Any], names: _Names) -> _Parts:
    query, key, value, attended, widened, narrowed = (modules[name] for name in names.products)
    norms = [modules[name] for name in names.norms]
    projections, activation = [query, key, value], modules[names.activation]
    return _Parts(modules[names.attention], projections, attended, widened, narrowed, norms, activation)


def uninstall(network: nn.Module) -> None:
    """Undo `install`."""
    for layer in network.modules():
        if isinstance(layer, PostNormLayer):
            fused: Any = layer
            fused.__class__ = layer.original


@functools.cache
def _derive(original: type[nn.Module]) -> type[nn.Module]:
    return type(f"Fused{original.__name__}", (PostNormLayer, original), {"original": original})


def _is_plain(modules: dict[str, Any], names: _Names) -> bool:
    """Return whether a layer has no hooks, is in float32 on a CPU, and its products are not int8 or LoRA."""
    return (
        all(type(modules.get(name)) in (nn.Linear, OneDnnLinear) for name in names.products)
        and all(type(modules.get(name)) is nn.LayerNorm for name in names.norms)
        and not any(each._forward_hooks for each in modules.values())
        and all(each.dtype == torch.float32 and is_cpu(each.device) for each in modules[""].parameters())
    )
