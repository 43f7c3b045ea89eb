"""How a model wants its input: packed where it may be, and where a comparison with single texts bears it out.

Knows nothing of files, devices or options; `torch_loading.py` calls it once per model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from infinity_emb.backends import packed_attention
from infinity_emb.backends.base import Batch, Rows, TokenIds
from infinity_emb.backends.torch_backend import PACKED_FEATURES, InputLayout, TorchBackend
from infinity_emb.backends.torch_device import Choice

# How far a packed row may be from the row of the same text alone, as 1 - cosine, before the model is taken
# to be one that cannot be packed. Rounding stays far below; a wrong mask is far above.
_PACKED_TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
_MAX_CHECKED_TOKENS = 1100


def choose_layout(
    model: SentenceTransformer, transformer: Transformer, *, max_tokens: int | None
) -> tuple[InputLayout, Choice]:
    """Packed where the architecture allows it and a comparison with single texts bears it out.

    Packing is switched on in `model` as a side effect. The choice is "packed" or "padded", and why.
    """
    padded = InputLayout(
        is_packed=False,
        position_offset=0,
        has_type_ids="token_type_ids" in getattr(transformer.tokenizer, "model_input_names", []),
        pad_token_id=getattr(transformer.tokenizer, "pad_token_id", None) or 0,
        pads_left=getattr(transformer.tokenizer, "padding_side", "right") == "left",
        prompt_length=_excluded_prompt_length(model, transformer),
    )
    network = transformer.model
    if not network.is_backend_compatible():  # type: ignore[no-untyped-call]  # transformers has no hint
        return padded, Choice("padded", f"{network.config.model_type} has attention code of its own")
    if transformer.transformer_task != "feature-extraction":
        return padded, Choice("padded", f"its task is {transformer.transformer_task}")
    packed = replace(padded, is_packed=True, position_offset=_first_position(network))
    batch = _check_batch(transformer, max_tokens, padded.prompt_length or 0)
    choice = _try_packing(model, transformer, padded, packed, batch)
    return (packed if choice.value == "packed" else padded), choice


def _try_packing(
    model: SentenceTransformer,
    transformer: Transformer,
    padded: InputLayout,
    packed: InputLayout,
    batch: Batch,
) -> Choice:
    """Install the first kernel whose packed rows equal the rows of single texts; else leave it padded."""
    network = transformer.model
    original = network.config._attn_implementation
    forward_params = transformer.model_forward_params
    expected = np.concatenate([_rows(model, padded, single) for single in _singles(batch)])
    packed_attention.register()
    failures = []
    for kernel in _kernels(model):
        network.set_attn_implementation(kernel)
        if forward_params is not None:
            transformer.model_forward_params = forward_params | PACKED_FEATURES
        try:
            difference = _largest_distance(_rows(model, packed, batch), expected)
        except Exception as exc:  # noqa: BLE001 - whatever an architecture raises, it cannot be packed
            failures.append(f"{kernel}: {type(exc).__name__}: {exc}")
            continue
        if difference <= _PACKED_TOLERANCE[network.dtype]:
            return Choice("packed", f"{kernel}, 1 - cosine to single texts {difference:.0e}")
        failures.append(f"{kernel}: 1 - cosine to single texts is {difference:.0e}")
    network.set_attn_implementation(original)
    transformer.model_forward_params = forward_params
    return Choice("padded", " ".join("; ".join(failures).split())[:300])


def _kernels(model: SentenceTransformer) -> list[str]:
    if model.device.type != "cuda" or model.dtype == torch.float32:
        return [packed_attention.GROUPED]
    # A torch without the first one's kernel fails the comparison, like one whose kernel cannot do this model.
    return [packed_attention.VARLEN, packed_attention.GROUPED]


def _rows(model: SentenceTransformer, layout: InputLayout, batch: Batch) -> Rows:
    backend = TorchBackend(model, layout=layout)
    return backend.launch(batch).collect()


def _largest_distance(rows: Rows, expected: Rows) -> float:
    """1 - cosine of the two rows that differ most; infinite where one is zero or not a number."""
    a, b = rows.astype(np.float64), expected.astype(np.float64)  # float32 would round more than they differ
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    if not np.isfinite(norms).all() or not norms.all():
        return np.inf
    return max(0.0, float((1 - (a * b).sum(axis=1) / norms).max()))


def _check_batch(transformer: Transformer, max_tokens: int | None, prompt_length: int) -> Batch:
    """Short and long sequences, one longer than a local attention window where there is one."""
    window = getattr(transformer.model.config, "sliding_window", None) or 0
    longest = min(max_tokens or _MAX_CHECKED_TOKENS, max(96, window + 32), _MAX_CHECKED_TOKENS)
    ids = random_ids(transformer, longest)
    shortest = min(prompt_length + 7, longest)
    lengths = [shortest, longest, max(shortest, longest // 3), shortest, max(shortest, longest // 2)]
    return Batch(np.concatenate([ids[:length] for length in lengths]), lengths)


def random_ids(transformer: Transformer, num_tokens: int) -> TokenIds:
    """(num_tokens,) int32 from the whole vocabulary but the special tokens, always the same."""
    weights = transformer.model.get_input_embeddings().weight
    assert isinstance(weights, torch.Tensor)
    num_words = weights.shape[0]
    special = getattr(transformer.tokenizer, "all_special_ids", [])
    words = np.setdiff1d(np.arange(num_words, dtype=np.int32), special)
    chosen: TokenIds = np.random.default_rng(0).choice(words, num_tokens)
    return chosen


def _singles(batch: Batch) -> list[Batch]:
    ends = np.cumsum(batch.lengths)
    return [
        Batch(batch.token_ids[end - length : end], [length])
        for end, length in zip(ends, batch.lengths, strict=True)
    ]


def _first_position(network: torch.nn.Module) -> int:
    """RoBERTa's learned positions start behind its padding index; all others at 0.

    Its embeddings are told by having both a padding index and a table of positions.
    """
    for module in network.modules():
        padding_idx = getattr(module, "padding_idx", None)
        if isinstance(padding_idx, int) and isinstance(
            getattr(module, "position_embeddings", None), torch.nn.Embedding
        ):
            return padding_idx + 1
    return 0


def default_prompt(model: SentenceTransformer) -> str:
    """What sentence-transformers puts before every text unless told otherwise."""
    return model.prompts.get(model.default_prompt_name or "") or ""


def _excluded_prompt_length(model: SentenceTransformer, transformer: Transformer) -> int | None:
    """Tokens of the default prompt, where the model's pooling leaves the prompt out."""
    prompt = default_prompt(model)
    leaves_out = any(isinstance(module, Pooling) and not module.include_prompt for module in model)
    if not prompt or not leaves_out:
        return None
    length: int | None = transformer.preprocess(["text"], prompt=prompt).get("prompt_length")
    return length
