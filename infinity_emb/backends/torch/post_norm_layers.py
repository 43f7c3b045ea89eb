"""Compute the layers of BERT and its relatives on a CPU with fewer operators than transformers takes.

A short text spends as much time between the matrix products of such a layer as in them: on calls of modules,
copies of biases, sums, and activations that are written to new memory. Here each residual is part of the
product before it, and the activation is computed in place. Names of modules tell a layer's kind, and one
layer of each structure is compared.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear
from transformers.activations import GELUActivation

from infinity_emb.backends.torch.device import is_cpu
from infinity_emb.backends.torch.packed_attention import grouped_attention
from infinity_emb.backends.torch.packed_layout import PackedLayout, Run

_NUM_PROBES = 6
_TOLERANCE = 1e-5  # of the largest value


class _Kind(NamedTuple):
    """Name the parts of a layer.

    attention: the module that knows the size of heads and the scale.
    products: queries, keys, values, output of attention, and the two of the feed-forward part.
    norms: after either residual.
    """

    attention: str
    products: tuple[str, str, str, str, str, str]
    norms: tuple[str, str]
    activation: str


_KINDS = (
    _Kind(  # BERT, RoBERTa, XLM-RoBERTa, ELECTRA, ERNIE
        "attention.self",
        (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        ),
        ("attention.output.LayerNorm", "output.LayerNorm"),
        "intermediate.intermediate_act_fn",
    ),
    _Kind(  # DistilBERT
        "attention",
        (
            "attention.q_lin",
            "attention.k_lin",
            "attention.v_lin",
            "attention.out_lin",
            "ffn.lin1",
            "ffn.lin2",
        ),
        ("sa_layer_norm", "output_layer_norm"),
        "ffn.activation",
    ),
)


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


class FusedLayer(nn.Module):
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
        query, key, value = (
            linear(hidden, each.weight, each.bias).view(shape).transpose(1, 2) for each in parts.projections
        )
        attended, _ = grouped_attention(
            parts.attention, query, key, value, None, scaling=parts.attention.scaling, **kwargs
        )  # (1, T, H, D)
        hidden = _norm(_add_product(hidden, attended.flatten(2)[0], parts.attended), parts.norms[0])
        wide = linear(hidden, parts.widened.weight, parts.widened.bias)  # (T, I)
        hidden = _add_product(hidden, _activate(wide, parts.activation), parts.narrowed)
        return _norm(hidden, parts.norms[1]).unsqueeze(0)


def _add_product(residual: Tensor, hidden: Tensor, product: nn.Linear) -> Tensor:
    """Return residual (T, H) + product(hidden), (T, K) → (T, H)."""
    return (residual + product.bias).addmm_(hidden, product.weight.t())


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
    """Fuse the layers that compute the same then; the network must be on its grouped attention."""
    found = [(layer, parts) for layer in network.modules() if (parts := _find_parts(layer)) is not None]
    # Layers of equal structure differ only in their weights.
    by_structure = {_list_types(layer): (layer, parts) for layer, parts in found}
    same = {types for types, (layer, parts) in by_structure.items() if _computes_the_same(layer, parts)}
    for layer, parts in found:
        if _list_types(layer) in same:
            _fuse(layer, parts)


def uninstall(network: nn.Module) -> None:
    """Undo `install`."""
    for layer in network.modules():
        if isinstance(layer, FusedLayer):
            fused: Any = layer
            fused.__class__ = layer.original


def _fuse(layer: nn.Module, parts: _Parts) -> None:
    # The class rather than `forward`, which a copy of the layer would share with it.
    original: Any = type(layer)
    layer.__class__ = _derive(original)
    layer.__dict__["fused_parts"] = parts  # not as modules, so that the names of weights stay


@functools.cache
def _derive(original: type[nn.Module]) -> type[nn.Module]:
    return type(f"Fused{original.__name__}", (FusedLayer, original), {"original": original})


def _list_types(layer: nn.Module) -> tuple[type[nn.Module], ...]:
    return tuple(type(module) for module in layer.modules())


def _find_parts(layer: nn.Module) -> _Parts | None:
    """Return the parts of a layer of a known kind in float32 on a CPU that is not fused yet."""
    if isinstance(layer, FusedLayer):
        return None
    modules: dict[str, Any] = dict(layer.named_modules())
    for kind in _KINDS:
        products: list[Any] = [modules.get(name) for name in kind.products]
        norms: list[Any] = [modules.get(name) for name in kind.norms]
        if (
            all(type(each) is nn.Linear and each.bias is not None for each in products)  # not int8, not LoRA
            and all(type(each) is nn.LayerNorm for each in norms)
            and all(each.dtype == torch.float32 and is_cpu(each.device) for each in layer.parameters())
            and not any(each._forward_hooks for each in modules.values())
        ):
            attended, widened, narrowed = products[3:]
            return _Parts(
                modules[kind.attention],
                products[:3],
                attended,
                widened,
                narrowed,
                norms,
                modules[kind.activation],
            )
    return None


def _computes_the_same(layer: nn.Module, parts: _Parts) -> bool:
    """Compare the layer before and after it is fused."""
    starts = torch.tensor([0, _NUM_PROBES], dtype=torch.int32)
    layout = PackedLayout([Run(0, _NUM_PROBES, 1)], starts, _NUM_PROBES)
    width = parts.attended.out_features
    hidden = torch.randn(1, _NUM_PROBES, width, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            expected = layer.forward(hidden, None, packed_layout=layout)
            _fuse(layer, parts)
            found = layer.forward(hidden, None, packed_layout=layout)
            return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())
    except Exception:  # noqa: BLE001 - a layer of another kind may raise anything
        return False
    finally:
        uninstall(layer)
