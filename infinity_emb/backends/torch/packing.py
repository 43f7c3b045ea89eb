"""Choose the layout of a transformer's inputs: packed if that gives the vectors of single texts.

Choosing leaves the model unchanged; `install_packing` then switches it to the chosen kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import CNN, LSTM
from torch import Tensor
from transformers import PreTrainedModel

from infinity_emb.backends.torch import last_layer, packed_attention, packed_heads, post_norm_layers
from infinity_emb.backends.torch.device import Choice, has_varlen_kernel
from infinity_emb.backends.torch.forward import TorchModel
from infinity_emb.backends.torch.input_layout import HeadReads, InputLayout, get_first_position
from infinity_emb.backends.torch.layout_check import compute_vectors, get_tolerance, measure_difference
from infinity_emb.backends.torch.padding_token import NO_TOKEN_ID
from infinity_emb.items import Encoded, ForwardSpec, TokenIds

# Features for packed attention and for sentence-transformers' flat pooling; the Transformer module must pass
# them on, although the network's `forward` does not name them.
PACKED_FEATURES = frozenset({"packed_layout", "cu_seq_lens_q", "packed_sequences", "key_mask"})

_MAX_CHECKED_TOKENS = 1100
_MEDIA = frozenset({"image", "audio", "video"})
_HEAD_READS: dict[str, tuple[HeadReads, ...]] = {
    "feature-extraction": ("flat",),
    "fill-mask": ("flat",),
    "sequence-classification": ("first", "last", "all"),
    "text-generation": ("last",),
}


class LayoutChoice(NamedTuple):
    """Layout of a transformer's inputs.

    attention: "packed" or "padded", and why.
    kernel: attention kernel for a packed layout; None for a padded one.
    """

    layout: InputLayout
    attention: Choice
    kernel: str | None = None


def choose_layout(
    torch_model: TorchModel, transformer: Transformer, spec: ForwardSpec, *, max_tokens: int | None
) -> LayoutChoice:
    """Choose the first kernel and head that give the vectors of single texts, else a padded layout.

    torch_model: the model that contains the transformer, whose inputs have this spec.
    """
    padded = get_padded_layout(transformer)
    if _mixes_tokens(torch_model.model) and _is_half(transformer.model):
        reason = "a module mixes neighbouring tokens, which half precision is too coarse to show"
        return LayoutChoice(replace(padded, may_pad=False), Choice("padded", reason))
    obstacle = _find_obstacle(transformer)
    if obstacle is not None:
        return LayoutChoice(padded, Choice("padded", obstacle))
    packed = replace(padded, form="packed", position_offset=get_first_position(transformer.model))
    layouts = _list_layouts(torch_model, transformer, packed, spec)
    batch = _make_check_batch(transformer, max_tokens, spec)
    expected = np.concatenate([compute_vectors(torch_model, padded, [single]) for single in batch])
    failures = []
    for kernel in list_kernels(transformer.model):
        for layout in layouts:
            name = kernel if layout.reads == "flat" else f"{kernel}, {layout.reads} rows to the head"
            name += f", last layer for the {layout.pooled_token} tokens" if layout.pooled_token else ""
            try:
                with _temporary_packing(transformer, kernel, layout):
                    found = compute_vectors(torch_model, layout, batch)
            except Exception as exc:  # noqa: BLE001 - an architecture may raise anything if it cannot be packed
                failures.append(f"{name}: {type(exc).__name__}: {exc}")
                continue
            difference = measure_difference(found, expected, torch_model.dense_name)
            if difference <= get_tolerance(torch_model):
                reason = f"{name}, difference to single texts {difference:.0e}"
                return LayoutChoice(layout, Choice("packed", reason), kernel)
            failures.append(f"{name}: the difference to single texts is {difference:.0e}")
    return LayoutChoice(padded, Choice("padded", " ".join("; ".join(failures).split())[:300]))


def _list_layouts(
    torch_model: TorchModel, transformer: Transformer, packed: InputLayout, spec: ForwardSpec
) -> list[InputLayout]:
    """Return the packed layouts to try, each first with a last layer that computes only pooled tokens."""
    layouts = []
    for reads in _HEAD_READS[str(transformer.transformer_task)]:
        layout = replace(packed, reads=reads)
        pooled_token = last_layer.find_pooled_token(torch_model.model, transformer.model, layout)
        if pooled_token is not None and spec.outputs == ("dense",):
            layouts.append(replace(layout, pooled_token=pooled_token))
        layouts.append(layout)
    return layouts


def install_packing(
    transformer: Transformer, kernel: str, layout: InputLayout, *, is_checked: bool = False
) -> None:
    """Switch a transformer to a packed layout; padded batches remain possible.

    is_checked: the forward pass fails if the last layer for pooled tokens would have other keys or values.
    Raises ValueError for a model with a head whose network cannot be wrapped.
    """
    packed_attention.register()
    transformer.model.set_attn_implementation(kernel)
    if kernel == packed_attention.GROUPED:
        post_norm_layers.install(transformer.model)
    if layout.pooled_token is not None:
        last_layer.install(transformer.model, is_checked=is_checked)
    for network in transformer.model.modules():
        if isinstance(network, PreTrainedModel):  # in GPT-2, the warning reads token ids from the device
            setattr(network, PreTrainedModel.warn_if_padding_and_no_attention_mask.__name__, _skip_warning)
    if transformer.model_forward_params is not None:
        transformer.model_forward_params = transformer.model_forward_params | PACKED_FEATURES
    if layout.reads != "flat" and not packed_heads.wrap_base(transformer.model):
        raise ValueError("the network beneath the head has no name")


def _skip_warning(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """Replace the warning about padding without a mask, which packed input cannot have."""


@contextlib.contextmanager
def _temporary_packing(transformer: Transformer, kernel: str, layout: InputLayout) -> Iterator[None]:
    """Install a packed layout, with checks, until the end of the block."""
    network = transformer.model
    attention, forward_params = network.config._attn_implementation, transformer.model_forward_params
    try:
        install_packing(transformer, kernel, layout, is_checked=True)
        yield
    finally:
        packed_heads.unwrap_base(network)
        last_layer.uninstall(network)
        post_norm_layers.uninstall(network)
        network.set_attn_implementation(attention)
        transformer.model_forward_params = forward_params


def _mixes_tokens(model: torch.nn.Module) -> bool:
    """Return whether a module after the network reads neighbouring tokens, even those of other texts."""
    return any(isinstance(module, (CNN, LSTM)) for module in model.modules())


def _is_half(network: torch.nn.Module) -> bool:
    """Return whether it computes in half precision; a network of another library has no weights here."""
    return any(weight.dtype in (torch.float16, torch.bfloat16) for weight in network.parameters())


def _find_obstacle(transformer: Transformer) -> str | None:
    """Return why a transformer's inputs cannot be packed; None if it is worth a try."""
    network = transformer.model
    if not network.is_backend_compatible():  # type: ignore[no-untyped-call]  # transformers has no annotation
        own_code = f"{network.config.model_type} has its own attention code"
        return str(getattr(network, "padding_reason", own_code))
    text = transformer.modality_config.get("text") or transformer.modality_config.get("message")
    if text is None or text["method"] != "forward":
        return "its texts do not go through the model's own forward"
    if _reads_media(transformer):
        return "images or audio share the network of its texts, with other masks"
    if transformer.transformer_task not in _HEAD_READS:
        return f"its task is {transformer.transformer_task}"
    if not _has_input_embeddings(network):
        return "it has no embedding table to choose probe tokens from"
    return None


def _reads_media(transformer: Transformer) -> bool:
    """Return whether the network for texts also reads images or audio, which the check does not cover."""
    config: Any = transformer.modality_config
    media = [name for name in config if not _MEDIA.isdisjoint([name] if isinstance(name, str) else name)]
    return any("message" in config or config[name]["method"] == "forward" for name in media)


def _has_input_embeddings(network: PreTrainedModel) -> bool:
    try:
        return isinstance(network.get_input_embeddings().weight, torch.Tensor)
    except (NotImplementedError, AttributeError):
        return False


def get_padded_layout(transformer: Transformer) -> InputLayout:
    """Return the layout that every transformer takes."""
    tokenizer = transformer.tokenizer
    is_decoder_head = transformer.transformer_task in ("text-generation", "any-to-any")
    pad_token_id = getattr(tokenizer, "pad_token_id", None) or 0
    skipped = None
    if transformer.transformer_task == "sequence-classification":
        skipped = getattr(transformer.model.config, "pad_token_id", None)
        # Decoders' heads look for the model's own padding token, which may not be the tokenizer's.
        skipped = None if skipped == NO_TOKEN_ID else skipped
        pad_token_id = pad_token_id if skipped is None else skipped
    return InputLayout(
        form="padded",
        has_type_ids="token_type_ids" in getattr(tokenizer, "model_input_names", []),
        pad_token_id=pad_token_id,
        pads_left=getattr(tokenizer, "padding_side", "right") == "left",
        skipped_token_id=skipped,
        constants={"logits_to_keep": 1} if is_decoder_head else {},
    )


def list_kernels(network: torch.nn.Module) -> Sequence[str]:
    """List the attention kernels for the device and dtype of a network, fastest first."""
    weight = next(network.parameters())
    if not has_varlen_kernel(weight.device, weight.dtype):
        return (packed_attention.GROUPED,)
    # If torch lacks the first kernel, or it does not support the model, the comparison fails.
    return (packed_attention.VARLEN, packed_attention.GROUPED)


def _make_check_batch(transformer: Transformer, max_tokens: int | None, spec: ForwardSpec) -> list[Encoded]:
    """Return short and long sequences, one longer than the window of local attention."""
    window = getattr(transformer.model.config, "sliding_window", None) or 0
    longest = min(max_tokens or _MAX_CHECKED_TOKENS, max(96, window + 32), _MAX_CHECKED_TOKENS)
    ids = _choose_random_ids(transformer, longest)
    shortest = min(spec.prompt_length + 7, longest)
    lengths = [shortest, longest, max(shortest, longest // 3), shortest, max(shortest, longest // 2)]
    return [Encoded(np.roll(ids, number)[:length], spec=spec) for number, length in enumerate(lengths)]


def _choose_random_ids(transformer: Transformer, num_tokens: int) -> TokenIds:
    """Return (num_tokens,) int32 ids without special tokens, the same on each call."""
    weights = transformer.model.get_input_embeddings().weight
    assert isinstance(weights, torch.Tensor)
    special = getattr(transformer.tokenizer, "all_special_ids", [])
    candidates = np.setdiff1d(np.arange(weights.shape[0], dtype=np.int32), special)
    ids: TokenIds = np.random.default_rng(0).choice(candidates, num_tokens)
    return ids
