"""Add residuals and compute GELU within the products before them instead of in kernels after them.

Residuals are added in place in layers that normalize first: nothing else reads their input any more. On CUDA
GELU uses the tanh approximation, of values that are not rounded before: in an emulation of that kernel it is
nearer to float32 than the exact GELU of bfloat16. No GPU has run it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear
from transformers.activations import GELUActivation

from infinity_emb.backends.torch.eager_outputs import replace_classes
from infinity_emb.backends.torch.module_classes import Classes
from infinity_emb.backends.torch.st_introspection import is_of_transformers

# Of each class, the norm before attention, attention and its last product; the same of the MLP.
_ATTENTION = ("input_layernorm", "self_attn", "self_attn.o_proj")
_MLP = ("post_attention_layernorm", "mlp", "mlp.down_proj")
_PARTS = {f"{name}DecoderLayer": _ATTENTION + _MLP for name in ("Llama", "Mistral", "Qwen2", "Qwen3")}
_PARTS["ModernBertEncoderLayer"] = ("attn_norm", "attn", "attn.Wo", "mlp_norm", "mlp", "mlp.Wo")


class DeferredLinear(nn.Linear):
    """Return the input; the layer multiplies it by the weight and adds the residual."""

    forward = nn.Identity.forward


class PreNormLayer(nn.Module):
    """Compute what a layer computes whose last products are deferred; a base of classes with its name."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Return (B, T, H). Packed batches change in place; nobody else keeps their hidden states."""
        norm, attention, product, mlp_norm, mlp, mlp_product = _list_parts(self)
        is_in_place = kwargs.get("packed_layout") is not None and not torch.is_grad_enabled()
        attended = attention(norm(hidden_states), attention_mask=attention_mask, **kwargs)[0]
        hidden_states = _add_product(hidden_states, attended, product.weight, is_in_place=is_in_place)
        activated = mlp(mlp_norm(hidden_states))  # (B, T, I)
        return _add_product(hidden_states, activated, mlp_product.weight, is_in_place=is_in_place)


def _add_product(residual: Tensor, hidden: Tensor, weight: Tensor, *, is_in_place: bool) -> Tensor:
    """Return (B, T, H) + (B, T, K) times weight (H, K); in place, B = 1."""
    if not is_in_place:
        return residual + linear(hidden, weight)
    if torch.compiler.is_compiling():
        add_product_as_operator(residual, hidden, weight)
    else:
        residual[0].addmm_(hidden[0], weight.t())
    return residual


@torch.library.custom_op("infinity_emb::add_product", mutates_args=("residual",))
def add_product_as_operator(residual: Tensor, hidden: Tensor, weight: Tensor) -> None:
    """Add to (1, T, H), in a form that Inductor runs in place; for `addmm_` it copies the residual."""
    residual[0].addmm_(hidden[0], weight.t())


add_product_as_operator.register_fake(lambda residual, hidden, weight: None)


class GeluLinear(nn.Linear):
    """Multiply, add the bias and apply GELU, in bfloat16 in one kernel; copies may have another dtype."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (..., N)."""
        if hidden.dtype != torch.bfloat16:
            return gelu(linear(hidden, self.weight, self.bias))
        rows = torch._addmm_activation(self.bias, hidden.flatten(0, -2), self.weight.t(), use_gelu=True)
        return rows.view(*hidden.shape[:-1], -1)


def find_layers(network: nn.Module) -> Classes:
    """Return layers of known classes with plain products, and these products, each with its class."""
    if getattr(getattr(network, "config", None), "output_hidden_states", False):
        return {}  # the outputs of all layers are kept
    layers = [each for each in network.modules() if type(each).__name__ in _PARTS and _is_plain(each)]
    fused = {
        each: type(each.__name__, (PreNormLayer, each), {}) for each in {type(layer) for layer in layers}
    }
    products = [product for layer in layers for product in _list_parts(layer)[2::3]]
    return {layer: fused[type(layer)] for layer in layers} | dict.fromkeys(products, DeferredLinear)


def find_activations(network: nn.Module) -> Classes:
    """Return plain linear layers in bfloat16 and the GELU that alone reads their output, with classes.

    None in a network with several towers: only outputs of texts are compared.
    """
    classes: Classes = {}
    if getattr(getattr(network, "config", None), "sub_configs", None):
        return classes
    for part in network.modules():
        product, act = part._modules.get("dense"), part._modules.get("intermediate_act_fn")
        if type(act) is not GELUActivation or act.act is not gelu or type(product) is not nn.Linear:
            continue
        is_half = product.weight.dtype == torch.bfloat16
        has_bias = product._parameters["bias"] is not None
        if is_of_transformers(part) and is_half and has_bias and not product._forward_hooks:
            classes |= {product: GeluLinear, act: nn.Identity}
    return classes


fuse_products = functools.partial(
    replace_classes,
    find=lambda network: find_layers(network) | find_activations(network),
    refusal="nothing is computed within products",
)


def _is_plain(layer: nn.Module) -> bool:
    """Return whether it is of transformers, without hooks, and its products are neither int8 nor LoRA."""
    parts = _list_parts(layer)
    products = parts[2::3]
    are_linear = all(type(each) is nn.Linear and each._parameters["bias"] is None for each in products)
    hooks = [each._forward_hooks for each in (layer, *parts)] + [each._forward_pre_hooks for each in products]
    return is_of_transformers(layer) and are_linear and not any(hooks)


def _list_parts(layer: nn.Module) -> list[Any]:
    return [layer.get_submodule(name) for name in _PARTS[type(layer).__name__]]
