"""Build models with random weights, copy them to a device and compute rows with them."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.gpu.shapes import MAX_TOKENS, NUM_WORDS, Shape
from infinity_emb.backends.torch.backend import TorchBackend
from infinity_emb.backends.torch.forward import TorchModel
from infinity_emb.backends.torch.packing import choose_layout, install_packing
from infinity_emb.items import TEXT_SPEC, Encoded, Float32Array, TokenIds

ModelT = TypeVar("ModelT", bound=BaseModel)


# Names of the layers that make queries and keys.
_SHARPENING = ("query", "key", "q_proj", "k_proj", "Wqkv")


def build_pipeline(shape: Shape, *, is_small: bool) -> SentenceTransformer:
    """Build a pipeline with random weights, in float32 on the CPU; bfloat16 can represent every weight.

    sentence-transformers loads its Transformer module from a folder only, so a stub of one layer and few
    words goes through a folder, and the full network takes its place.
    """
    sizes = shape.sizes_for(is_small=is_small)
    stub = AutoConfig.for_model(shape.model_type, **sizes | {"num_hidden_layers": 1, "vocab_size": NUM_WORDS})
    with tempfile.TemporaryDirectory() as folder:
        AutoModel.from_config(stub).save_pretrained(folder)
        make_tokenizer(pads_left=shape.is_causal).save_pretrained(folder)
        transformer = Transformer(folder, max_seq_length=MAX_TOKENS)
    config = AutoConfig.for_model(shape.model_type, **sizes)
    config.use_cache = False  # as sentence-transformers sets it
    torch.manual_seed(0)
    transformer.model = AutoModel.from_config(config, attn_implementation="sdpa")
    _sharpen(transformer.model)
    pooling = Pooling(config.hidden_size, pooling_mode=shape.pooling)
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu").eval()


def build_scorer(shape: Shape, *, is_small: bool) -> CrossEncoder:
    """Build a reranker with random weights, in float32 on the CPU; bfloat16 can represent every weight."""
    config = AutoConfig.for_model(shape.model_type, **shape.sizes_for(is_small=is_small), num_labels=1)
    config.use_cache = False
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_config(config)
    _sharpen(network)
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        make_tokenizer(pads_left=shape.is_causal).save_pretrained(folder)
        scorer: CrossEncoder = CrossEncoder(folder, device="cpu", model_kwargs={"dtype": torch.float32})
    scorer.eval()
    return scorer


def _sharpen(network: torch.nn.Module) -> None:
    """Make attention far from uniform, so that a wrong mask shows."""
    for name, weights in network.named_parameters():
        if weights.ndim == 2 and any(part in name for part in _SHARPENING):
            weights.data *= 2
        weights.data = weights.data.bfloat16().float()


def make_tokenizer(*, pads_left: bool) -> PreTrainedTokenizerFast:
    """Make a tokenizer of one look-up per word, without special tokens: "w7 w9" is (7, 9)."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {f"w{token_id}": token_id for token_id in range(2, NUM_WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        padding_side="left" if pads_left else "right",
        model_max_length=MAX_TOKENS,
    )


def copy_to_device(model: ModelT, device: torch.device, dtype: torch.dtype) -> ModelT:
    """Copy a model and cast its parameters only: the frequencies of rotary positions must stay float32."""
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(dtype)
    return copied.to(device)


def make_backend(model: BaseModel) -> tuple[TorchBackend, str]:
    """Return the backend that is served, and which attention its check at loading chose and why."""
    dense_name = "scores" if isinstance(model, CrossEncoder) else "sentence_embedding"
    torch_model = TorchModel(model=model, layouts={}, dense_name=dense_name)
    transformer: Any = model[0]
    choice = choose_layout(torch_model, transformer, TEXT_SPEC, max_tokens=MAX_TOKENS)
    if choice.kernel is not None:
        install_packing(transformer, choice.kernel, choice.layout)
    backend = TorchBackend(replace(torch_model, layouts={None: choice.layout}))
    backend.prepare_thread()
    return backend, f"{choice.attention.value}: {choice.attention.reason}"


_random = np.random.default_rng(0)


def make_random_ids(count: int) -> TokenIds:
    """Draw token ids of words, (count,) int32."""
    return _random.integers(2, NUM_WORDS, count, dtype=np.int32)


def draw_sequences(lengths: Sequence[int]) -> list[TokenIds]:
    """Draw token ids for texts of these lengths, in random order."""
    return [make_random_ids(length) for length in _random.permutation(lengths)]


def to_batch(sequences: list[TokenIds]) -> list[Encoded]:
    """Wrap token ids as preprocessing does."""
    return [Encoded(sequence) for sequence in sequences]


def compute_rows(
    backend: TorchBackend, batch: list[Encoded], *, full_precision: bool = False
) -> Float32Array:
    """Compute a packed batch. Returns (B, D) float32."""
    rows = backend.launch(batch, full_precision=full_precision).result()["dense"]
    assert isinstance(rows, np.ndarray)
    return rows


def compute_rows_one_by_one(model: SentenceTransformer, sequences: Sequence[TokenIds]) -> Float32Array:
    """Compute one text at a time through the padded code, so without padding. Returns (B, D) float32."""
    return np.concatenate([compute_row(model, sequence) for sequence in sequences])


def compute_row(model: BaseModel, sequence: TokenIds, name: str = "sentence_embedding") -> Float32Array:
    """Compute one output of one text with sentence-transformers. Returns (1, D) float32."""
    input_ids = torch.from_numpy(sequence.astype(np.int64))[None]  # (1, n)
    with torch.inference_mode():
        features = model({"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)})
    rows: Float32Array = features[name].numpy()
    return rows
