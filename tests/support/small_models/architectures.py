"""Sizes of the small models, their tokenizers and their random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModel,
    BertTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers.models.t5.modeling_t5 import T5EncoderModel

from tests.support.small_models.texts import WORDS

VOCABULARY_SIZE = 512
HIDDEN_SIZE = 32
MAX_LENGTH = 256
_SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 320,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}
_DECODER = _SIZE | {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}

# Model type → config values; windows are small enough that the texts are longer than they reach.
PACKED_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": _SIZE,
    "roberta": _SIZE,
    "xlm-roberta": _SIZE,
    "distilbert": {
        "vocab_size": VOCABULARY_SIZE,
        "dim": HIDDEN_SIZE,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": 320,
        "pad_token_id": 1,
    },
    "electra": _SIZE | {"embedding_size": 16},
    "albert": _SIZE | {"embedding_size": 16},
    "modernbert": _SIZE | {"local_attention": 16, "global_attn_every_n_layers": 3},
    "nomic_bert": _SIZE,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "mistral": _DECODER | {"sliding_window": 24},
    "gemma3_text": _DECODER | {"sliding_window": 16, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
}
PADDED_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mpnet": _SIZE,
    "deberta-v2": _SIZE | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "t5": {
        "vocab_size": VOCABULARY_SIZE,
        "d_model": HIDDEN_SIZE,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 3,
        "num_heads": 4,
        "pad_token_id": 1,
        "eos_token_id": 3,
        "decoder_start_token_id": 1,
    },
}
ARCHITECTURES = PACKED_ARCHITECTURES | PADDED_ARCHITECTURES
DECODERS = ("qwen2", "qwen3", "mistral", "gemma3_text", "llama", "gpt2")
# Not in the tables of tests that go through every architecture.
_FURTHER_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _DECODER,
    "smollm3": _DECODER | {"no_rope_layer_interval": 3},  # the last layer has no rotary positions
    "olmo": _DECODER | {"clip_qkv": 100.0},
    "gpt2": {
        "vocab_size": VOCABULARY_SIZE,
        "n_embd": HIDDEN_SIZE,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 320,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
}


def save_network(
    folder: Path,
    model_type: str,
    auto_class: Any = AutoModel,
    *,
    max_length: int = MAX_LENGTH,
    dtype: torch.dtype = torch.float32,
    spread: float = 4,
    **config_values: Any,
) -> Path:
    """A folder of transformers: a random network, with the head that `auto_class` brings, and its tokenizer.

    spread: makes weights so large that attention is far from uniform, and a wrong mask shows.
    """
    values = (ARCHITECTURES | _FURTHER_ARCHITECTURES)[model_type]
    config = AutoConfig.for_model(model_type, **(values | config_values))
    torch.manual_seed(0)
    is_plain_t5 = model_type == "t5" and auto_class is AutoModel
    network = T5EncoderModel(config) if is_plain_t5 else auto_class.from_config(config)
    spread_weights(network, spread)
    if getattr(network, "num_labels", None) and "SequenceClassification" in type(network).__name__:
        _centre_scores(network)
    network.to(dtype).save_pretrained(folder)
    make_tokenizer(model_type, max_length).save_pretrained(folder)
    return folder


def spread_weights(network: torch.nn.Module, factor: float = 4) -> None:
    """Scale all matrices but the tables of embeddings."""
    with torch.no_grad():
        for name, weights in network.named_parameters():
            is_table = "embedding" in name and "project" not in name and "mapping" not in name
            if weights.ndim == 2 and not is_table:
                weights.mul_(factor)


def _centre_scores(network: Any) -> None:
    """Scale and shift a classification head: the scores of random texts lie around 0 and differ by 1."""
    ids = torch.randint(5, VOCABULARY_SIZE, (16, 40), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 3  # T5 reads the end token
    network.eval()
    with torch.no_grad():
        logits = network(input_ids=ids).logits  # (16, L)
        linears = [each for each in network.modules() if isinstance(each, torch.nn.Linear)]
        (head,) = [each for each in linears if each.out_features == logits.shape[1]]
        mean, deviation = logits.mean(0), logits.std(0)
        if head.bias is None:  # nothing to shift: keep the mean in the range where a sigmoid is not flat
            deviation = torch.maximum(deviation, mean.abs() / 2)
        else:
            head.bias.sub_(mean).div_(deviation)
        head.weight.div_(deviation[:, None])


def make_tokenizer(model_type: str, max_length: int = MAX_LENGTH) -> PreTrainedTokenizerBase:
    """One token a word. bert has its own class, with segment ids; qwen2's, byte by byte, cannot be replaced:
    transformers builds it from the model type whatever the files say."""
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    vocabulary |= {word: len(vocabulary) + position for position, word in enumerate(WORDS)}
    if model_type == "bert":
        return BertTokenizer(vocab=vocabulary, model_max_length=max_length)
    if model_type == "qwen2":
        alphabet = {symbol: number for number, symbol in enumerate(sorted(ByteLevel.alphabet()))}
        return Qwen2Tokenizer(vocab=alphabet, merges=[], model_max_length=max_length)
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_length,
    )
