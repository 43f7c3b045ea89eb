"""Convert a network of transformers to CTranslate2's model specification, with its weights.

The loaded network is converted, so that no file is read twice. CTranslate2 4.8's own converters for BERT and
RoBERTa read the kind of positions from the configuration, which transformers 5 has removed; once they do not,
they can replace this module.
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

from infinity_emb.backends.ctranslate2.bert import make_bert_spec, read_bert, read_distilbert, read_roberta
from infinity_emb.backends.ctranslate2.t5 import make_t5_spec

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

    epsilon: of layer normalization, or the name of that option.
    """

    describe: Callable[[Any, Activation], TransformerEncoderSpec]
    activation: str = "hidden_act"
    epsilon: str | float = "layer_norm_eps"


_BERT = _Architecture(lambda network, activation: make_bert_spec(read_bert(network), activation))
_ROBERTA = _Architecture(lambda network, activation: make_bert_spec(read_roberta(network), activation))
_DISTILBERT = _Architecture(
    lambda network, activation: make_bert_spec(read_distilbert(network), activation), "activation", 1e-12
)
# By exact class: a repository's own code may call itself BERT and compute something else.
_ARCHITECTURES: dict[type[PreTrainedModel], _Architecture] = {
    BertModel: _BERT,
    RobertaModel: _ROBERTA,
    XLMRobertaModel: _ROBERTA,
    CamembertModel: _ROBERTA,
    DistilBertModel: _DISTILBERT,
    T5EncoderModel: _Architecture(make_t5_spec, "dense_act_fn", "layer_norm_epsilon"),
}


def explain_unsupported(network: PreTrainedModel) -> str | None:
    """Return why CTranslate2 cannot compute an encoder, as a clause; None if it can."""
    architecture = _ARCHITECTURES.get(type(network))
    if architecture is None:
        known = ", ".join(each.__name__ for each in _ARCHITECTURES)
        return f"its network is {type(network).__name__}, but CTranslate2 computes only the encoders {known}"
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
    # CTranslate2 requires a name for each token, but gets only ids.
    vocab_size = len(encoder_spec.embeddings[0].weight)
    spec.register_vocabulary([str(number) for number in range(vocab_size)])
    spec.validate()
    spec.optimize()
    return spec
