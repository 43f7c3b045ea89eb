"""A network of transformers → CTranslate2's description of it, weights included.

Made from the loaded network, so that nothing is read twice. CTranslate2 4.8's own converters for BERT and
RoBERTa ask a configuration for its kind of positions, which transformers 5 has taken out; with one that
does not, they can take the place of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ctranslate2.specs.common_spec import Activation
from ctranslate2.specs.transformer_spec import TransformerEncoderModelSpec, TransformerEncoderSpec
from transformers import (
    BertModel,
    CamembertModel,
    DistilBertModel,
    PreTrainedModel,
    RobertaModel,
    T5EncoderModel,
    XLMRobertaModel,
)

from infinity_emb.backends.ctranslate2.bert import bert_spec, read_bert, read_distilbert, read_roberta
from infinity_emb.backends.ctranslate2.t5 import t5_spec

# transformers' names → CTranslate2's.
_ACTIVATIONS = {
    "gelu": Activation.GELU,
    "gelu_python": Activation.GELU,
    "gelu_fast": Activation.GELUTanh,
    "gelu_new": Activation.GELUTanh,
    "gelu_pytorch_tanh": Activation.GELUTanh,
    "quick_gelu": Activation.GELUSigmoid,
    "relu": Activation.RELU,
    "silu": Activation.SWISH,
    "swish": Activation.SWISH,
}


class _Architecture(NamedTuple):
    """Description of a network, and names of two options in its configuration.

    epsilon: what is added under the root when a layer normalises, or the configuration's name for it.
    """

    describe: Callable[[Any, Activation], TransformerEncoderSpec]
    activation: str = "hidden_act"
    epsilon: str | float = "layer_norm_eps"


_BERT = _Architecture(lambda network, activation: bert_spec(read_bert(network), activation))
_ROBERTA = _Architecture(lambda network, activation: bert_spec(read_roberta(network), activation))
_DISTILBERT = _Architecture(
    lambda network, activation: bert_spec(read_distilbert(network), activation), "activation", 1e-12
)
# By the very class: code that a repository brings may call itself BERT and compute something else.
_ARCHITECTURES: dict[type[PreTrainedModel], _Architecture] = {
    BertModel: _BERT,
    RobertaModel: _ROBERTA,
    XLMRobertaModel: _ROBERTA,
    CamembertModel: _ROBERTA,
    DistilBertModel: _DISTILBERT,
    T5EncoderModel: _Architecture(t5_spec, "dense_act_fn", "layer_norm_epsilon"),
}


def explain_unsupported(network: PreTrainedModel) -> str | None:
    """Return why CTranslate2 cannot compute an encoder, as a clause; None if it can."""
    architecture = _ARCHITECTURES.get(type(network))
    if architecture is None:
        known = ", ".join(each.__name__ for each in _ARCHITECTURES)
        return f"its network is {type(network).__name__}, and of encoders CTranslate2 computes {known}"
    if getattr(network.config, "is_decoder", False):
        return "its tokens look only at those before them"
    activation = getattr(network.config, architecture.activation)
    return None if activation in _ACTIVATIONS else f"CTranslate2 has no activation {activation!r}"


def make_spec(network: PreTrainedModel) -> TransformerEncoderModelSpec:
    """Return the checked specification of a network for which `explain_unsupported` returns None.

    network: an encoder without a head, on the CPU, in float32.
    """
    describe, activation, epsilon = _ARCHITECTURES[type(network)]
    config: Any = network.config
    encoder_spec = describe(network, _ACTIVATIONS[getattr(config, activation)])
    encoder_spec.scale_embeddings = False
    spec = TransformerEncoderModelSpec(encoder_spec)
    spec.config.layer_norm_epsilon = getattr(config, epsilon) if isinstance(epsilon, str) else epsilon
    # It wants a name for each word; it is only ever handed ids.
    vocab_size = len(encoder_spec.embeddings[0].weight)
    spec.register_vocabulary([str(number) for number in range(vocab_size)])
    spec.validate()
    spec.optimize()
    return spec
