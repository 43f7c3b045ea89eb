"""Check the packed path on a GPU against a CPU, then measure it beside sentence-transformers.

Needs torch, transformers, sentence-transformers and numpy; downloads nothing, as the models are real shapes
with random weights. Knows nothing of HTTP, queues or texts worth reading. One file on purpose, although
long, so that one command on a borrowed machine does everything:

    python -m benchmarks.gpu [--device cuda|cpu] [--small] [--models NAME,…] [--json-only]

What each rate includes, all three over the same token ids:
    packed   token ids in host memory → layout, copy to the device, model, pooling, copy back, rows in order,
             with as many batches under way as `worker.py` has. No tokenizer.
    encode   `SentenceTransformer.encode`: texts whose tokenizer is one look-up a word, and all of the above.
    forward  sentence-transformers' modules alone on padded batches that lie on the device already; rows stay
             there. No tokenizer and no copies: a bound for whatever is built around them.
Exit code 1 if a check fails, 2 if there is no such device.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import platform
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import sentence_transformers
import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from infinity_emb.backends import packed_attention
from infinity_emb.backends.base import TEXT, Encoded, Launched, Rows, TokenIds
from infinity_emb.backends.packed_attention import PackedLayout, runs_of_equal_length
from infinity_emb.backends.torch_backend import Pipeline, TorchBackend
from infinity_emb.backends.torch_layout import choose_layout

# --- What is measured ---------------------------------------------------------------------------------

NUM_WORDS = 2000  # token ids that occur: 0 is padding, 1 unknown, each of the others one word
MAX_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """An architecture and its sizes."""

    name: str
    model_type: str
    sizes: dict[str, Any]
    small_sizes: dict[str, Any]  # for --small: the same architecture in no time
    pooling: str = "mean"
    is_causal: bool = False

    def sizes_for(self, *, is_small: bool) -> dict[str, Any]:
        return self.small_sizes if is_small else self.sizes


def _bert(name: str, hidden: int, layers: int, heads: int) -> Shape:
    return Shape(
        name=name,
        model_type="bert",
        sizes=_sizes(hidden, layers, heads, 4 * hidden) | {"vocab_size": 30_522},
        small_sizes=_sizes(64, 2, 4, 128),
    )


def _sizes(hidden: int, layers: int, heads: int, intermediate: int) -> dict[str, Any]:
    return {
        "vocab_size": NUM_WORDS,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "max_position_embeddings": MAX_TOKENS,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "cls_token_id": 1,
        "sep_token_id": 1,
    }


_SMALL_DECODER = _sizes(64, 2, 4, 128) | {"num_key_value_heads": 2, "head_dim": 16}
SPEED_SHAPES = (
    _bert("bert-small", 512, 4, 8),
    _bert("bert-base", 768, 12, 12),
    _bert("bert-large", 1024, 24, 16),
    Shape(
        name="qwen3-0.6b",
        model_type="qwen3",
        sizes=_sizes(1024, 28, 16, 3072)
        | {
            "vocab_size": 151_669,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 32_768,
        },
        small_sizes=_SMALL_DECODER,
        pooling="lasttoken",
        is_causal=True,
    ),
)
# Only checked: local attention on both sides, and causal with grouped heads.
WINDOW_SHAPES = (
    Shape(
        name="modernbert-local",
        model_type="modernbert",
        sizes=_sizes(256, 4, 4, 512) | {"local_attention": 64, "global_attn_every_n_layers": 2},
        small_sizes=_sizes(64, 3, 4, 128) | {"local_attention": 16, "global_attn_every_n_layers": 2},
    ),
    Shape(
        name="mistral-window",
        model_type="mistral",
        sizes=_sizes(256, 4, 4, 512) | {"num_key_value_heads": 2, "head_dim": 64, "sliding_window": 48},
        small_sizes=_SMALL_DECODER | {"sliding_window": 12},
        pooling="lasttoken",
        is_causal=True,
    ),
)


# Only checked: models with a head of their own, by what it reads of a text; all have one score.
HEAD_SHAPES = (
    Shape(
        name="first-token-head",
        model_type="bert",
        sizes=_sizes(256, 4, 4, 512),
        small_sizes=_sizes(64, 2, 4, 128),
    ),
    Shape(
        name="last-token-head",
        model_type="qwen3",
        sizes=_sizes(256, 4, 4, 512) | {"num_key_value_heads": 2, "head_dim": 64},
        small_sizes=_SMALL_DECODER,
        is_causal=True,
    ),
    Shape(
        name="all-tokens-head",
        model_type="modernbert",
        sizes=_sizes(256, 4, 4, 512) | {"local_attention": 64, "classifier_pooling": "mean"},
        small_sizes=_sizes(64, 3, 4, 128) | {"local_attention": 16, "classifier_pooling": "mean"},
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is done."""

    dtype: torch.dtype  # of the speed part
    checked_lengths: tuple[int, ...]
    workloads: dict[str, tuple[int, ...]]  # name → lengths, over and over
    token_budgets: tuple[int, ...]  # tokens per packed batch; the best is reported
    batch_sizes: tuple[int, ...]  # texts per batch of sentence-transformers; the best is reported
    matmul_size: int
    num_repeats: int
    run_s: float  # about how long one timed run should take


_REAL_LENGTHS = {"32": (32,), "128": (128,), "512": (512,), "mixed": (16, 128, 32, 512, 64, 256)}
PLANS = {
    "cuda": Plan(
        dtype=torch.bfloat16,
        checked_lengths=(1, 7, 7, 33, 64, 128, 300),
        workloads=_REAL_LENGTHS,
        token_budgets=(4096, 8192, 16_384, 32_768, 65_536),
        batch_sizes=(32, 128, 512),
        matmul_size=8192,
        num_repeats=5,
        run_s=0.3,
    ),
    "cpu": Plan(
        dtype=torch.float32,
        checked_lengths=(1, 7, 7, 33, 64, 128, 300),
        workloads=_REAL_LENGTHS,
        token_budgets=(1024, 2048),
        batch_sizes=(8, 32),
        matmul_size=2048,
        num_repeats=3,
        run_s=3.0,
    ),
    "small": Plan(
        dtype=torch.float32,
        checked_lengths=(1, 5, 5, 14, 40),
        workloads={"16": (16,), "mixed": (4, 24, 8)},
        token_budgets=(128, 256),
        batch_sizes=(4, 16),
        matmul_size=256,
        num_repeats=3,
        run_s=0.01,
    ),
}

# Limits of the checks. A kernel alone: norm of the difference over norm of the reference; bfloat16 rounds
# values and probabilities to 8 bits (a few 1e-3), TF32 would show as 3e-4, a window that is off by one as
# 1e-1. A whole model: cosine and largest difference of unit vectors; of scores, the largest difference as a
# part of how far they are apart.
KERNEL_LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
# Measured on a CPU, bfloat16: 0.9998 and 3e-3, while texts differ by 6e-2 and more.
COSINE_LIMITS = {torch.float32: 0.999_99, torch.bfloat16: 0.999}
DIFFERENCE_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
SCORE_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}

# --- Results ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Several measurements of one quantity."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median=float(np.median(values)), lowest=min(values), highest=max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison of the device with the CPU."""

    name: str
    is_passed: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One model with texts of one kind of length. Rates in tokens/s, padding not counted."""

    model: str
    workload: str
    packed: Spread
    batch_tokens: int
    encode: Spread
    encode_batch_size: int
    forward: Spread
    forward_batch_size: int
    flops_per_token: float
    matmul_flops_per_s: Spread  # measured in the same turns
    share: float  # of that rate
    forward_share: float
    ratio_to_encode: float
    ratio_to_forward: float
    host_share: float  # time to launch a batch on an idle device, of the time a batch takes; 1 on a CPU
    stream_stops: str | None  # what makes launching a batch wait for the device; None where nothing does


ModelT = TypeVar("ModelT", bound=BaseModel)

# --- Models -------------------------------------------------------------------------------------------


# Names of the layers that make queries and keys.
_SHARPENING = ("query", "key", "q_proj", "k_proj", "Wqkv")


def build_pipeline(shape: Shape, *, is_small: bool) -> SentenceTransformer:
    """A pipeline with random weights, in float32 on the CPU, every weight one that bfloat16 can hold.

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
    """A reranker with random weights, in float32 on the CPU, every weight one that bfloat16 can hold."""
    config = AutoConfig.for_model(shape.model_type, **shape.sizes_for(is_small=is_small), num_labels=1)
    config.use_cache = False
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_config(config)
    _sharpen(network)
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        make_tokenizer(pads_left=shape.is_causal).save_pretrained(folder)
        return CrossEncoder(folder, device="cpu", model_kwargs={"dtype": torch.float32}).eval()


def _sharpen(network: torch.nn.Module) -> None:
    """Attention must be far from uniform, else a wrong mask is hard to see."""
    for name, weights in network.named_parameters():
        if weights.ndim == 2 and any(part in name for part in _SHARPENING):
            weights.data *= 2
        weights.data = weights.data.bfloat16().float()


def make_tokenizer(*, pads_left: bool) -> PreTrainedTokenizerFast:
    """One look-up a word and no special tokens: "w7 w9" is (7, 9)."""
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
    """A copy. Parameters only are cast: the frequencies of rotary positions must stay float32."""
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(dtype)
    return copied.to(device)


def make_backend(model: BaseModel) -> tuple[TorchBackend, str]:
    """The product's own backend, and what its own check at loading chose and why."""
    dense_name = "scores" if isinstance(model, CrossEncoder) else "sentence_embedding"
    pipeline = Pipeline(model=model, layouts={}, dense_name=dense_name)
    transformer: Any = model[0]
    layout, attention = choose_layout(pipeline, transformer, TEXT, max_tokens=MAX_TOKENS)
    backend = TorchBackend(replace(pipeline, layouts={None: layout}))
    backend.prepare_thread()
    return backend, f"{attention.value}: {attention.reason}"


_random = np.random.default_rng(0)


def random_ids(count: int) -> TokenIds:
    """(count,) int32, words only."""
    return _random.integers(2, NUM_WORDS, count, dtype=np.int32)


def to_batch(sequences: list[TokenIds]) -> list[Encoded]:
    """As the preprocessing hands them over."""
    return [Encoded(sequence) for sequence in sequences]


def rows_of(backend: TorchBackend, batch: list[Encoded], *, full_precision: bool = False) -> Rows:
    """(B, D) float32."""
    rows = backend.launch(batch, full_precision=full_precision).collect()["dense"]
    assert isinstance(rows, np.ndarray)
    return rows


# --- Checks -------------------------------------------------------------------------------------------


def kernels_of(device: torch.device) -> list[tuple[str, torch.dtype]]:
    """What the product uses on it: the kernel's name and the dtype that leads to it."""
    grouped = [(packed_attention.GROUPED, torch.float32)]
    return [(packed_attention.VARLEN, torch.bfloat16), *grouped] if device.type == "cuda" else grouped


def check_kernel(kernel: str, device: torch.device, dtype: torch.dtype) -> Check:
    """All kinds of attention against their definition, computed in float64 on the CPU."""
    function = {
        packed_attention.GROUPED: packed_attention.grouped_attention,
        packed_attention.VARLEN: packed_attention.varlen_attention,
    }[kernel]
    name, limit = f"{kernel} {_name_of(dtype)} alone", KERNEL_LIMITS[dtype]
    worst = 0.0
    for num_kv_heads, is_causal, window in itertools.product((8, 2), (False, True), (None, 1, 16)):
        case = f"{num_kv_heads} key heads for 8, causal={is_causal}, window={window}"
        try:
            error = _kernel_error(function, device, dtype, num_kv_heads, is_causal, window)
        except (RuntimeError, TypeError, ValueError) as exc:  # a failed check, so that the others still run
            return Check(name=name, is_passed=False, detail=f"{case}: {type(exc).__name__}: {exc}")
        if not error <= limit:  # NaN too
            return Check(name=name, is_passed=False, detail=f"{case}: error {error:.1e} over {limit:.0e}")
        worst = max(worst, error)
    return Check(name=name, is_passed=True, detail=f"relative error at most {worst:.1e} (limit {limit:.0e})")


def _kernel_error(
    function: Callable[..., tuple[Tensor, None]],
    device: torch.device,
    dtype: torch.dtype,
    num_kv_heads: int,
    is_causal: bool,
    window: int | None,
) -> float:
    lengths = [1, 7, 7, 16, 17, 64, 200]
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, sum(lengths), 64, generator=generator).to(dtype)
        for heads in (8, num_kv_heads, num_kv_heads)
    )
    starts = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    layout = PackedLayout(runs_of_equal_length(lengths), starts.to(device), max(lengths))
    rows, _ = function(
        torch.nn.Module(),
        query.to(device),
        key.to(device),
        value.to(device),
        None,
        packed_layout=layout,
        scaling=0.2,
        sliding_window=window,
        is_causal=is_causal,
    )
    expected = attention_by_definition(
        query.double(), key.double(), value.double(), lengths, scaling=0.2, window=window, is_causal=is_causal
    )
    return float((rows.cpu().double() - expected).norm() / expected.norm())


def attention_by_definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    *,
    scaling: float,
    window: int | None,
    is_causal: bool,
) -> Tensor:
    """Softmax over one dense matrix of all tokens, minus infinity wherever a token may not look.

    query: (1, H, T, D); key, value: (1, H_kv, T, D). A token sees those of its own sequence less than
    `window` away, and if causal none behind itself. Returns (1, T, H, D).
    """
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    position = torch.cat([torch.arange(length) for length in lengths])
    distance = position[:, None] - position[None, :]  # (T, T)
    may_look = sequence[:, None] == sequence[None, :]
    if window is not None:
        may_look &= distance.abs() < window
    if is_causal:
        may_look &= distance >= 0
    num_sharing = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(num_sharing, dim=1) for states in (key, value))
    scores = (query @ key.transpose(2, 3)) * scaling  # (1, H, T, T)
    weights = scores.masked_fill(~may_look, -math.inf).softmax(-1)
    return (weights @ value).transpose(1, 2)


def check_model(
    name: str,
    model: SentenceTransformer,
    sequences: list[TokenIds],
    expected: Rows,
    kernel: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Check:
    """A packed batch on the device against rows that were computed elsewhere."""
    backend, attention = make_backend(copy_to_device(model, device, dtype))
    return _compare_vectors(
        f"{name} {_name_of(dtype)}", rows_of(backend, to_batch(sequences)), expected, dtype, attention, kernel
    )


def check_full_precision(
    name: str, model: SentenceTransformer, sequences: list[TokenIds], expected: Rows, device: torch.device
) -> Check:
    """A model in bfloat16 that is told to compute in float32, as after NaN: it must be exact then."""
    backend, attention = make_backend(copy_to_device(model, device, torch.bfloat16))
    rows = rows_of(backend, to_batch(sequences), full_precision=True)
    return _compare_vectors(f"{name} float32 on demand", rows, expected, torch.float32, attention, "")


def _compare_vectors(
    name: str, rows: Rows, expected: Rows, dtype: torch.dtype, attention: str, kernel: str
) -> Check:
    cosine = float(((rows * expected).sum(1) / np.linalg.norm(rows, axis=1)).min())
    difference = float(np.abs(rows - expected).max())
    unlike = float(np.abs(expected - expected[0]).max())  # vectors that are all alike would prove nothing
    is_close = cosine >= COSINE_LIMITS[dtype] and difference <= DIFFERENCE_LIMITS[dtype] < unlike / 3
    return _check_of(
        name,
        is_close,
        f"cosine >= {cosine:.6f} (limit {COSINE_LIMITS[dtype]}), difference <= {difference:.1e} (limit"
        f" {DIFFERENCE_LIMITS[dtype]:.1e}; texts differ by {unlike:.1e}); {attention}",
        f"packed: {kernel}",
    )


def check_scorer(
    shape: Shape, scorer: CrossEncoder, kernel: str, device: torch.device, dtype: torch.dtype, plan: Plan
) -> Check:
    """Scores of a packed batch on the device against those of single texts on the CPU."""
    sequences = [random_ids(length) for length in _random.permutation(plan.checked_lengths)]
    expected = np.concatenate([_row_of(scorer, sequence, "scores") for sequence in sequences])  # (B, 1)
    backend, attention = make_backend(copy_to_device(scorer, device, dtype))
    apart = float(np.ptp(expected))  # scores that are all alike would prove nothing
    difference = float(np.abs(rows_of(backend, to_batch(sequences)) - expected).max() / apart)
    return _check_of(
        f"{shape.name} {_name_of(dtype)}",
        difference <= SCORE_LIMITS[dtype],
        f"difference <= {difference:.1e} of {apart:.1e} (limit {SCORE_LIMITS[dtype]:.1e}); {attention}",
        f"packed: {kernel}, {shape.name.partition('-')[0]} rows to the head",
    )


def _check_of(name: str, is_close: bool, detail: str, expected_attention: str) -> Check:
    """Passed only where the model is packed as expected: padded it would be right and slow."""
    is_expected = expected_attention in detail
    ending = "" if is_expected else f"; EXPECTED {expected_attention}"
    return Check(name=name, is_passed=is_close and is_expected, detail=detail + ending)


def rows_one_by_one(model: SentenceTransformer, sequences: Sequence[TokenIds]) -> Rows:
    """One text at a time through the padded code, so without padding. (B, D) float32."""
    return np.concatenate([_row_of(model, sequence) for sequence in sequences])


def _row_of(model: BaseModel, sequence: TokenIds, name: str = "sentence_embedding") -> Rows:
    input_ids = torch.from_numpy(sequence.astype(np.int64))[None]  # (1, n)
    with torch.inference_mode():
        features = model({"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)})
    rows: Rows = features[name].numpy()
    return rows


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- Arithmetic ---------------------------------------------------------------------------------------


def flops_per_token(network: torch.nn.Module, lengths: Sequence[int], *, is_causal: bool) -> float:
    """Multiplications and additions that a forward pass needs, on average over the tokens of `lengths`.

    Two per weight of the linear layers, and four per pair of tokens that see each other and per channel of
    attention. Not counted: BERT's pooler, which nothing uses here, and all that is not a matrix product.
    """
    config: Any = network.config
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    num_weights = sum(
        module.weight.numel()
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and "pooler" not in name
    )
    num_pairs = sum(length * (length + 1) // 2 if is_causal else length * length for length in lengths)
    return 2 * num_weights + 4 * width * config.num_hidden_layers * num_pairs / sum(lengths)


class MatrixProduct:
    """The yardstick: a large product of random square matrices."""

    def __init__(self, size: int, device: torch.device, dtype: torch.dtype) -> None:
        self._left, self._right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        self._out = torch.empty_like(self._left)
        self._flops = 10 * 2 * size**3
        self._multiply()

    def rate(self) -> float:
        """Operations a second."""
        return self._flops / seconds_of(self._multiply, self._out.device)

    def _multiply(self) -> None:
        for _ in range(10):
            torch.mm(self._left, self._right, out=self._out)


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock time from an idle device to an idle device."""
    _synchronize(device)
    started_s = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - started_s


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- Subjects: what takes its turn on the clock ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that embeds a fixed set of texts whenever it is run."""

    setting: int  # tokens or texts per batch
    num_tokens: int
    run: Callable[[], None]

    def rate(self, device: torch.device) -> float:
        """Tokens a second."""
        return self.num_tokens / seconds_of(self.run, device)


_MIN_BATCHES = 4
_MAX_DISTINCT_BATCHES = 8  # enough that no cache holds them all
_MAX_ENCODED_TOKENS = 200_000


def packed_subject(
    backend: TorchBackend, lengths: Sequence[int], batch_tokens: int, num_tokens: int
) -> Subject:
    """Our backend, driven as `worker.py` drives it."""
    sequence_lengths = take_tokens(lengths, batch_tokens)
    num_batches = max(_MIN_BATCHES, num_tokens // sum(sequence_lengths))
    distinct = [
        to_batch([random_ids(length) for length in sequence_lengths])
        for _ in range(min(num_batches, _MAX_DISTINCT_BATCHES))
    ]
    batches = [distinct[number % len(distinct)] for number in range(num_batches)]
    return Subject(batch_tokens, num_batches * sum(sequence_lengths), lambda: pump(backend, batches))


def pump(backend: TorchBackend, batches: Sequence[list[Encoded]]) -> None:
    """Launch the next batch before collecting the one before, as many under way as the backend allows."""
    in_flight: deque[Launched] = deque()
    for batch in batches:
        in_flight.append(backend.launch(batch))
        if len(in_flight) >= backend.num_in_flight:
            in_flight.popleft().collect()
    while in_flight:
        in_flight.popleft().collect()


def encode_subject(
    model: SentenceTransformer, lengths: Sequence[int], batch_size: int, num_tokens: int
) -> Subject:
    """sentence-transformers as its users call it."""
    batch_tokens = batch_size * sum(lengths) // len(lengths)
    wanted = max(2 * batch_tokens, min(num_tokens, _MAX_ENCODED_TOKENS))
    sequences = [random_ids(length) for length in take_tokens(lengths, wanted)]
    texts = [" ".join(f"w{token_id}" for token_id in sequence) for sequence in sequences]

    def encode() -> None:
        model.encode(texts, batch_size=batch_size, show_progress_bar=False)

    return Subject(batch_size, sum(len(sequence) for sequence in sequences), encode)


def forward_subject(
    model: SentenceTransformer, lengths: Sequence[int], batch_size: int, num_tokens: int
) -> Subject:
    """sentence-transformers' modules on batches of similar length, padded and on the device beforehand."""
    batch_tokens = batch_size * sum(lengths) // len(lengths)
    num_distinct = min(max(_MIN_BATCHES, num_tokens // batch_tokens), _MAX_DISTINCT_BATCHES)
    num_texts = num_distinct * batch_size
    sequences = [random_ids(length) for length in itertools.islice(itertools.cycle(lengths), num_texts)]
    sequences.sort(key=len, reverse=True)  # as `encode` sorts
    tokenizer = model[0].tokenizer
    distinct = [
        padded_batch(sequences[start : start + batch_size], tokenizer.padding_side == "left", model.device)
        for start in range(0, num_texts, batch_size)
    ]
    distinct_tokens = sum(len(sequence) for sequence in sequences)
    num_rounds = max(1, num_tokens // distinct_tokens)

    def forward() -> None:
        with torch.inference_mode():
            for features in distinct * num_rounds:
                model(dict(features))  # a copy: the modules write into it

    return Subject(batch_size, num_rounds * distinct_tokens, forward)


def padded_batch(sequences: list[TokenIds], pads_left: bool, device: torch.device) -> dict[str, Tensor]:
    """input_ids and attention_mask, (B, S) int64 on the device."""
    width = max(len(sequence) for sequence in sequences)
    input_ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(sequences):
        columns = slice(width - len(sequence), None) if pads_left else slice(len(sequence))
        input_ids[row, columns] = torch.from_numpy(sequence.astype(np.int64))
        attention_mask[row, columns] = 1
    return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}


def take_tokens(lengths: Sequence[int], num_tokens: int) -> list[int]:
    """Lengths over and over, `num_tokens` in all or up to one text less, at least one."""
    taken: list[int] = []
    total = 0
    for length in itertools.cycle(lengths):
        if taken and total + length > num_tokens:
            return taken
        taken.append(length)
        total += length
    raise ValueError("no lengths")


def fastest(candidates: Sequence[Callable[[], Subject]], device: torch.device) -> Subject:
    """Run each twice, the first time as a warm-up; sizes that the device has no memory for drop out."""
    best: tuple[float, Subject] | None = None
    for make in candidates:
        try:
            subject = make()
            subject.rate(device)
            rate = subject.rate(device)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        if best is None or rate > best[0]:
            best = rate, subject
    if best is None:
        raise RuntimeError("the device has no memory for any batch size")
    return best[1]


# --- Speed --------------------------------------------------------------------------------------------


def measure_shape(
    shape: Shape, model: SentenceTransformer, plan: Plan, device: torch.device, product: MatrixProduct
) -> Iterator[Speed]:
    """Every workload of one model; ours and sentence-transformers' copy lie on the device side by side."""
    peer = copy_to_device(model, device, plan.dtype)
    backend, _ = make_backend(copy_to_device(model, device, plan.dtype))
    for workload, lengths in plan.workloads.items():
        flops = flops_per_token(model[0].model, lengths, is_causal=shape.is_causal)
        num_tokens = int(plan.run_s * 0.4 * product.rate() / flops)  # were 40 % of the rate reached
        subjects = _choose_subjects(backend, peer, lengths, plan, device, num_tokens)
        turns = [  # in turn, so that a slow minute hits all of them
            [*(subject.rate(device) for subject in subjects), product.rate()] for _ in range(plan.num_repeats)
        ]
        packed, encode, forward, matmul = (Spread.of(rates) for rates in zip(*turns, strict=True))
        yield Speed(
            model=shape.name,
            workload=workload,
            packed=packed,
            batch_tokens=subjects[0].setting,
            encode=encode,
            encode_batch_size=subjects[1].setting,
            forward=forward,
            forward_batch_size=subjects[2].setting,
            flops_per_token=flops,
            matmul_flops_per_s=matmul,
            share=packed.median * flops / matmul.median,
            forward_share=forward.median * flops / matmul.median,
            ratio_to_encode=packed.median / encode.median,
            ratio_to_forward=packed.median / forward.median,
            host_share=launch_seconds(backend, lengths, subjects[0].setting, device)
            * packed.median
            / subjects[0].setting,
            stream_stops=find_stream_stop(backend, lengths, subjects[0].setting),
        )


def _choose_subjects(
    backend: TorchBackend,
    peer: SentenceTransformer,
    lengths: Sequence[int],
    plan: Plan,
    device: torch.device,
    num_tokens: int,
) -> tuple[Subject, Subject, Subject]:
    return (
        fastest(
            [
                lambda size=size: packed_subject(backend, lengths, size, num_tokens)
                for size in plan.token_budgets
            ],
            device,
        ),
        fastest(
            [lambda size=size: encode_subject(peer, lengths, size, num_tokens) for size in plan.batch_sizes],
            device,
        ),
        fastest(
            [lambda size=size: forward_subject(peer, lengths, size, num_tokens) for size in plan.batch_sizes],
            device,
        ),
    )


def launch_seconds(
    backend: TorchBackend, lengths: Sequence[int], batch_tokens: int, device: torch.device
) -> float:
    """What the host takes to lay out a batch and to queue all of its work; the median of a few."""
    batch = to_batch([random_ids(length) for length in take_tokens(lengths, batch_tokens)])
    durations = []
    for _ in range(5):
        _synchronize(device)
        started_s = time.perf_counter()
        launched = backend.launch(batch)
        durations.append(time.perf_counter() - started_s)
        launched.collect()
    return float(np.median(durations))


def find_stream_stop(backend: TorchBackend, lengths: Sequence[int], batch_tokens: int) -> str | None:
    """What in launching a batch waits for the device, as torch itself reports it. Always None on a CPU."""
    if backend._device.type != "cuda":
        return None
    batch = to_batch([random_ids(length) for length in take_tokens(lengths, batch_tokens)])
    backend.launch(batch).collect()
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = backend.launch(batch)
    except RuntimeError as exc:
        place = traceback.extract_tb(exc.__traceback__)[-1]
        return f"{place.filename}:{place.lineno} {place.name}: {str(exc).splitlines()[0]}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    launched.collect()
    return None


# --- Report -------------------------------------------------------------------------------------------


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Where and with what this ran."""
    is_cuda = device.type == "cuda"
    return {
        "machine": platform.node(),
        "device": torch.cuda.get_device_name(device)
        if is_cuda
        else platform.processor() or platform.machine(),
        "num_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if is_cuda else None,
        "transformers": transformers.__version__,
        "sentence_transformers": sentence_transformers.__version__,
    }


def format_check(check: Check) -> str:
    """One line."""
    return f"{'ok  ' if check.is_passed else 'FAIL'} {check.name}: {check.detail}"


def format_speed(speed: Speed) -> str:
    """One line of the table."""
    packed, encode, forward = (_format_rate(rate) for rate in (speed.packed, speed.encode, speed.forward))
    line = (
        f"{speed.model:12}{speed.workload:>6}"
        f" {packed:>27} @{speed.batch_tokens:<6}{speed.share:6.1%} {speed.host_share:5.0%}"
        f" {encode:>27} @{speed.encode_batch_size:<4}{speed.ratio_to_encode:6.2f}x"
        f" {forward:>27} @{speed.forward_batch_size:<4}{speed.ratio_to_forward:6.2f}x"
        f" {speed.forward_share:6.1%}"
    )
    return f"{line}\n    LAUNCHING WAITS: {speed.stream_stops}" if speed.stream_stops else line


_TABLE_HEAD = (
    f"{'model':12}{'length':>6} {'packed, tokens/s':>27} @{'tokens':6}{'share':>6} {'host':>5}"
    f" {'encode':>27} @{'size':4}{'ours':>7} {'forward alone':>27} @{'size':4}{'ours':>7} {'share':>6}"
)


def _format_rate(rate: Spread) -> str:
    unit, divisor = ("M", 1e6) if rate.median >= 1e6 else ("k", 1e3)
    low, median, high = (f"{value / divisor:.4g}" for value in (rate.lowest, rate.median, rate.highest))
    return f"{median} {unit} ({low} to {high})"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Exits with code 2 for what cannot be done here."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.partition("\n\n")[0]
    )
    names = [shape.name for shape in SPEED_SHAPES]
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--small", action="store_true", help="tiny models, seconds in all: tries the script out"
    )
    parser.add_argument("--models", default=",".join(names), help=f"some of {', '.join(names)}")
    parser.add_argument("--json-only", action="store_true", help="print the last line only")
    arguments = parser.parse_args(argv)
    arguments.models = arguments.models.split(",")
    if unknown := set(arguments.models) - set(names):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no CUDA device; --device cpu --small tries this out")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 if a check failed."""
    arguments = parse_arguments(argv)
    device = torch.device(arguments.device)
    plan = PLANS["small" if arguments.small else device.type]
    say = (lambda line: None) if arguments.json_only else (lambda line: print(line, flush=True))
    transformers.utils.logging.disable_progress_bar()
    if arguments.small:
        torch.set_num_threads(1)  # several threads on tiny matrices wait for each other most of the time

    machine = describe_machine(device)
    say(", ".join(f"{key} {value}" for key, value in machine.items()))
    say(_TABLE_HEAD)
    results: list[Check | Speed] = []
    for result in run_all(arguments.models, plan, device, is_small=arguments.small):
        results.append(result)
        say(format_check(result) if isinstance(result, Check) else format_speed(result))
    checks = [result for result in results if isinstance(result, Check)]
    speeds = [result for result in results if isinstance(result, Speed)]
    matmul = Spread.of([speed.matmul_flops_per_s.median for speed in speeds])
    say(
        f"share: of {matmul.median / 1e12:.4g} TFLOP/s ({matmul.lowest / 1e12:.4g} to"
        f" {matmul.highest / 1e12:.4g}), a {_name_of(plan.dtype)} product of size {plan.matmul_size}"
    )
    is_passed = all(check.is_passed for check in checks)
    summary = {
        "benchmark": "gpu",
        **machine,
        "is_small": arguments.small,
        "models": {shape.name: shape.sizes_for(is_small=arguments.small) for shape in SPEED_SHAPES},
        "lengths": plan.workloads,
        "dtype": _name_of(plan.dtype),
        "num_repeats": plan.num_repeats,
        "matmul_size": plan.matmul_size,
        "matmul_flops_per_s": asdict(matmul),
        "is_passed": is_passed,
        "checks": [asdict(check) for check in checks],
        "speeds": [asdict(speed) for speed in speeds],
    }
    print(json.dumps(summary))
    return 0 if is_passed else 1


def run_all(
    names: Sequence[str], plan: Plan, device: torch.device, *, is_small: bool
) -> Iterator[Check | Speed]:
    """The kernels alone; then, model by model, the checks and what is measured."""
    for kernel, dtype in kernels_of(device):
        yield check_kernel(kernel, device, dtype)
    for shape in HEAD_SHAPES:
        scorer = build_scorer(shape, is_small=is_small)
        for kernel, dtype in kernels_of(device):
            yield check_scorer(shape, scorer, kernel, device, dtype, plan)
    product = MatrixProduct(plan.matmul_size, device, plan.dtype)
    for shape in (*WINDOW_SHAPES, *SPEED_SHAPES):
        if shape in SPEED_SHAPES and shape.name not in names:
            continue
        model = build_pipeline(shape, is_small=is_small)
        sequences = [random_ids(length) for length in _random.permutation(plan.checked_lengths)]
        expected = rows_one_by_one(model, sequences)
        for kernel, dtype in kernels_of(device):
            yield check_model(shape.name, model, sequences, expected, kernel, device, dtype)
        if shape in WINDOW_SHAPES:
            yield check_full_precision(shape.name, model, sequences, expected, device)
        if shape in SPEED_SHAPES:
            yield from measure_shape(shape, model, plan, device, product)


if __name__ == "__main__":
    sys.exit(main())
