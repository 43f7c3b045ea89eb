"""Small random sentence-transformers models of real architectures, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
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

VOCABULARY_SIZE = 512
_SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 32,
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
        "dim": 32,
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
        "d_model": 32,
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
_DECODERS = ("qwen2", "qwen3", "mistral", "gemma3_text")
WORDS = [f"word{number}" for number in range(VOCABULARY_SIZE - 5)]


def save_small_model(
    folder: Path,
    model_type: str,
    *,
    pooling_mode: str | None = None,
    normalize: bool = True,
    max_seq_length: int = 256,
    dtype: torch.dtype = torch.float32,
    prompts: dict[str, str] | None = None,
    default_prompt_name: str | None = None,
    include_prompt: bool = True,
) -> Path:
    """A folder that SentenceTransformer loads. Decoders pool the last token, all others the mean."""
    backbone = folder / "backbone"
    config = AutoConfig.for_model(model_type, **ARCHITECTURES[model_type])
    torch.manual_seed(0)
    network = T5EncoderModel(config) if model_type == "t5" else AutoModel.from_config(config)
    _spread_weights(network)
    network.to(dtype).save_pretrained(backbone)
    _tokenizer(model_type, max_seq_length).save_pretrained(backbone)
    transformer = Transformer(str(backbone), max_seq_length=max_seq_length, model_kwargs={"dtype": dtype})
    mode = pooling_mode or ("lasttoken" if model_type in _DECODERS else "mean")
    modules = [transformer, Pooling(32, pooling_mode=mode, include_prompt=include_prompt)]
    model = SentenceTransformer(
        modules=[*modules, Normalize()] if normalize else modules,
        device="cpu",
        prompts=prompts,
        default_prompt_name=default_prompt_name,
    )
    model.save_pretrained(str(folder / "model"))
    return folder / "model"


def _spread_weights(network: torch.nn.Module) -> None:
    """Make weights large enough that attention is far from uniform, so that a wrong mask shows."""
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if weights.ndim == 2 and "embedding" not in name:
                weights.mul_(4)


def _tokenizer(model_type: str, max_seq_length: int) -> PreTrainedTokenizerBase:
    """One token a word. bert has its own class, with segment ids; qwen2's, byte by byte, cannot be replaced:
    transformers builds it from the model type whatever the files say."""
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    vocabulary |= {word: len(vocabulary) + position for position, word in enumerate(WORDS)}
    if model_type == "bert":
        return BertTokenizer(vocab=vocabulary, model_max_length=max_seq_length)
    if model_type == "qwen2":
        alphabet = {symbol: number for number, symbol in enumerate(sorted(ByteLevel.alphabet()))}
        return Qwen2Tokenizer(vocab=alphabet, merges=[], model_max_length=max_seq_length)
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
        model_max_length=max_seq_length,
    )


def random_texts(count: int, *, max_words: int = 120, seed: int = 0) -> list[str]:
    """Texts of the small models' words, most of them short, some of them long."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for number in range(count):
        num_words = 1 + int(torch.rand(1, generator=generator).item() ** 3 * max_words) + number % 3
        choice = torch.randint(len(WORDS), (num_words,), generator=generator)
        texts.append(" ".join(WORDS[index] for index in choice))
    return texts
