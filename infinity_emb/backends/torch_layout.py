"""How a model wants its input: packed where it may be, and where a comparison with single texts bears it out.

Knows nothing of files, devices or options; `torch_loading.py` calls it once per transformer in a model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers.base.modules import Transformer
from transformers import PreTrainedModel

from infinity_emb import agreement
from infinity_emb.backends import packed_attention, packed_heads
from infinity_emb.backends.base import Encoded, Recipe, Rows, TokenIds
from infinity_emb.backends.torch_backend import Pipeline, TorchBackend
from infinity_emb.backends.torch_device import Choice
from infinity_emb.backends.torch_inputs import HeadReads, InputLayout, first_position
from infinity_emb.backends.torch_models import transformers_of

# Features for our attention and for sentence-transformers' flat pooling; the model's forward must let them
# pass although they are not in its signature.
PACKED_FEATURES = frozenset({"packed_layout", "cu_seq_lens_q", "packed_row", "key_mask"})


class _Tolerance(NamedTuple):
    """vector: of 1 - cosine. score: of any score, as a part of the largest."""

    vector: float
    score: float


# How far a packed row may be from the row of the same text alone, before the model is taken to be one that
# cannot be packed. Rounding stays far below; a wrong mask is far above. Not `agreement.BOUNDS`: both rows are
# of one network in one number format.
_TOLERANCES = {
    torch.float32: _Tolerance(vector=1e-6, score=1e-4),
    torch.float16: _Tolerance(vector=1e-3, score=2e-2),
    torch.bfloat16: _Tolerance(vector=1e-2, score=1e-1),
    torch.int16: _Tolerance(vector=1e-3, score=2e-2),
    torch.int8: _Tolerance(vector=3e-2, score=2e-1),
}
_MAX_CHECKED_TOKENS = 1100
_MEDIA = frozenset({"image", "audio", "video"})
_FLAT_TASKS = ("feature-extraction", "fill-mask")
_HEAD_TASKS = ("sequence-classification", "text-generation")


def choose_layout(
    pipeline: Pipeline, transformer: Transformer, recipe: Recipe, *, max_tokens: int | None
) -> tuple[InputLayout, Choice]:
    """Packed where the architecture allows it and a comparison with single texts bears it out.

    pipeline: with layouts for everything but this transformer's inputs, which are those of `recipe`.
    Packing is switched on in the model as a side effect. The choice is "packed" or "padded", and why.
    """
    padded = padded_layout(transformer)
    network = transformer.model
    if not network.is_backend_compatible():  # type: ignore[no-untyped-call]  # transformers has no hint
        own_code = f"{network.config.model_type} has attention code of its own"
        return padded, Choice("padded", getattr(network, "why_padded", own_code))
    text = transformer.modality_config.get("text") or transformer.modality_config.get("message")
    if text is None or text["method"] != "forward":
        return padded, Choice("padded", "its texts do not go through the model's own forward")
    if _reads_media(transformer):
        return padded, Choice("padded", "images or audio go the way of its texts, with masks of their own")
    task = transformer.transformer_task
    if task in _FLAT_TASKS:
        candidates: tuple[HeadReads, ...] = ("flat",)
    elif task in _HEAD_TASKS:
        candidates = ("first", "last", "all") if task == "sequence-classification" else ("last",)
    else:
        return padded, Choice("padded", f"its task is {task}")
    if not _has_word_table(network):
        return padded, Choice("padded", "it has no table of words to make probes of")
    packed = replace(padded, form="packed", position_offset=first_position(network))
    batch = _check_batch(transformer, max_tokens, recipe)
    return _try_packing(pipeline, transformer, padded, [replace(packed, reads=c) for c in candidates], batch)


def _reads_media(transformer: Transformer) -> bool:
    """Whether the network that reads texts is given images or audio too, for which nothing is compared."""
    ways: Any = transformer.modality_config
    media = [name for name in ways if not _MEDIA.isdisjoint([name] if isinstance(name, str) else name)]
    return any("message" in ways or ways[name]["method"] == "forward" for name in media)


def padded_layout(transformer: Transformer) -> InputLayout:
    """What every transformer can be given."""
    tokenizer = transformer.tokenizer
    is_decoder_head = transformer.transformer_task in ("text-generation", "any-to-any")
    pad_token_id = getattr(tokenizer, "pad_token_id", None) or 0
    skipped = None
    if transformer.transformer_task == "sequence-classification":
        skipped = getattr(transformer.model.config, "pad_token_id", None)
        # Decoders' heads look for the model's own padding, which need not be the tokenizer's.
        pad_token_id = pad_token_id if skipped is None else skipped
    return InputLayout(
        form="padded",
        has_type_ids="token_type_ids" in getattr(tokenizer, "model_input_names", []),
        pad_token_id=pad_token_id,
        pads_left=getattr(tokenizer, "padding_side", "right") == "left",
        skipped_token_id=skipped,
        constants={"logits_to_keep": 1} if is_decoder_head else {},
    )


def _try_packing(
    pipeline: Pipeline,
    transformer: Transformer,
    padded: InputLayout,
    candidates: list[InputLayout],
    batch: list[Encoded],
) -> tuple[InputLayout, Choice]:
    """Install the first kernel and head whose packed rows equal those of single texts, else neither."""
    network = transformer.model
    original = network.config._attn_implementation
    forward_params = transformer.model_forward_params
    expected = np.concatenate([rows_of(pipeline, padded, [single]) for single in batch])
    packed_attention.register()
    failures = []
    for kernel in _kernels(network):
        network.set_attn_implementation(kernel)
        if forward_params is not None:
            transformer.model_forward_params = forward_params | PACKED_FEATURES
        for layout in candidates:
            is_wrapped = layout.reads == "flat" or packed_heads.wrap_base(network)
            name = kernel if layout.reads == "flat" else f"{kernel}, {layout.reads} rows to the head"
            try:
                found = difference(rows_of(pipeline, layout, batch), expected, pipeline.dense_name)
            except Exception as exc:  # noqa: BLE001 - whatever an architecture raises, it cannot be packed
                failures.append(f"{name}: {type(exc).__name__}: {exc}")
                continue
            if is_wrapped and found <= tolerance_of(pipeline):
                return layout, Choice("packed", f"{name}, difference to single texts {found:.0e}")
            failures.append(f"{name}: the difference to single texts is {found:.0e}")
    packed_heads.unwrap_base(network)
    network.set_attn_implementation(original)
    transformer.model_forward_params = forward_params
    return padded, Choice("padded", " ".join("; ".join(failures).split())[:300])


def _kernels(network: torch.nn.Module) -> list[str]:
    parameter = next(network.parameters())
    if parameter.device.type != "cuda" or parameter.dtype == torch.float32:
        return [packed_attention.GROUPED]
    # A torch without the first one's kernel fails the comparison, like one whose kernel cannot do this model.
    return [packed_attention.VARLEN, packed_attention.GROUPED]


def rows_of(pipeline: Pipeline, layout: InputLayout, batch: list[Encoded]) -> Rows:
    """(N, D): a row per item, or the rows of all its tokens."""
    task = batch[0].recipe.task
    driven = replace(pipeline, layouts={**pipeline.layouts, None: layout, task: layout})
    answers = TorchBackend(driven).launch(batch).collect()
    name = batch[0].recipe.outputs[0]
    if name == "sparse":
        return _scattered(answers[name])
    return np.concatenate([np.atleast_2d(entry) for entry in answers[name]])


def _scattered(entries: Any) -> Rows:
    width = 1 + max((int(entry.indices.max(initial=0)) for entry in entries), default=0)
    return np.stack([agreement.scattered(entry, max(width, 2**18)) for entry in entries])


def tolerance_of(pipeline: Pipeline) -> float:
    """How far `difference` may be from 0 for rounding alone."""
    networks = [transformer.model for transformer in transformers_of(pipeline.model)]
    formats = [getattr(network, "number_format", None) for network in networks]  # where it is not torch's
    # A bag of words has no parameter at all.
    parameters = (each.dtype for each in pipeline.model.parameters())
    tolerance = _TOLERANCES[next(filter(None, formats), None) or next(parameters, torch.float32)]
    return tolerance.score if pipeline.dense_name == "scores" else tolerance.vector


def difference(rows: Rows, expected: Rows, dense_name: str) -> float:
    """How far the two that differ most are apart: 1 - cosine of vectors, scores as a part of the largest.

    1 or more where one of two vectors is 0 or no number; infinite where a score is no number, or all are 0.
    """
    if dense_name != "scores":
        return max(0.0, 1 - agreement.cosine(rows, expected))
    a, b = rows.astype(np.float64), expected.astype(np.float64)  # float32 would round more than they differ
    # Never of 1, as `agreement` does: raw scores may all be far below that, and then a wrong mask would pass.
    largest = np.abs(b).max(initial=0)
    return agreement.difference(a / largest, b / largest) if 0 < largest < np.inf else np.inf


def _check_batch(transformer: Transformer, max_tokens: int | None, recipe: Recipe) -> list[Encoded]:
    """Short and long sequences, one longer than a local attention window where there is one."""
    window = getattr(transformer.model.config, "sliding_window", None) or 0
    longest = min(max_tokens or _MAX_CHECKED_TOKENS, max(96, window + 32), _MAX_CHECKED_TOKENS)
    ids = _random_ids(transformer, longest)
    shortest = min(recipe.prompt_length + 7, longest)
    lengths = [shortest, longest, max(shortest, longest // 3), shortest, max(shortest, longest // 2)]
    return [Encoded(np.roll(ids, number)[:length], recipe=recipe) for number, length in enumerate(lengths)]


def _has_word_table(network: PreTrainedModel) -> bool:
    try:
        return isinstance(network.get_input_embeddings().weight, torch.Tensor)
    except (NotImplementedError, AttributeError):
        return False


def _random_ids(transformer: Transformer, num_tokens: int) -> TokenIds:
    """(num_tokens,) int32 from the whole vocabulary but the special tokens, always the same."""
    weights = transformer.model.get_input_embeddings().weight
    assert isinstance(weights, torch.Tensor)
    num_words = weights.shape[0]
    special = getattr(transformer.tokenizer, "all_special_ids", [])
    words = np.setdiff1d(np.arange(num_words, dtype=np.int32), special)
    chosen: TokenIds = np.random.default_rng(0).choice(words, num_tokens)
    return chosen
