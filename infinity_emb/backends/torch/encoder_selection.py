"""Select the encoder and the layout of one task of a loaded model.

Token encoders, packed layouts and padding are used only where they give the tokens and the vectors of
sentence-transformers' own preprocessing and of single texts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from infinity_emb.backends.base import Encode
from infinity_emb.backends.probes import PARITY_TEXTS
from infinity_emb.backends.torch.device import Choice
from infinity_emb.backends.torch.encoder_factory import EncoderFactory, Task, make_bag_encoder
from infinity_emb.backends.torch.forward import TorchModel
from infinity_emb.backends.torch.input_layout import InputLayout
from infinity_emb.backends.torch.layout_check import compute_vectors, get_tolerance, measure_difference
from infinity_emb.backends.torch.packing import LayoutChoice
from infinity_emb.errors import BadInput
from infinity_emb.items import Encoded, Float32Array, InputOptions, Pair, RequestInput, number_inputs
from infinity_emb.preprocessing.fast_tokenizer import FastTokenizer
from infinity_emb.types import OutputName

logger = logging.getLogger("infinity_emb")

# A probe longer than the limit shows how texts are truncated; for larger limits it would take too long.
_MAX_PROBED_LIMIT = 1024


class Selection(NamedTuple):
    """The encoder and the layout of one task, and its kind of attention."""

    encode: Encode
    layout: InputLayout
    attention: Choice


class Reference(NamedTuple):
    """Probes encoded by the model's own preprocessing, and computed one by one."""

    encoded: list[Encoded]
    vectors: Float32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionContext:
    """Values that all selections of one model share.

    probes: inputs on which candidates are compared.
    outputs: of the probes.
    """

    torch_model: TorchModel
    factory: EncoderFactory
    probes: Sequence[RequestInput]
    outputs: tuple[OutputName, ...]


def make_probes(max_tokens: int | None, *, is_pair: bool) -> list[RequestInput]:
    """Return inputs of several lengths, one of them longer than the limit unless that is high."""
    texts = list(PARITY_TEXTS)
    if max_tokens is not None and max_tokens <= _MAX_PROBED_LIMIT:
        texts.append("limits cut what is too long " * max_tokens)
    return number_inputs([Pair(texts[0], text) for text in texts] if is_pair else texts)


def select_encoder(
    context: SelectionContext,
    task: Task,
    module: object,
    choice: LayoutChoice | None,
    tokenizer: FastTokenizer | None,
) -> Selection:
    """Select the fastest encoder and layout that give the reference's tokens and vectors.

    module: the first module for texts of the task.
    choice, tokenizer: of a transformer.
    """
    if isinstance(module, StaticEmbedding):
        attention = Choice("none", "a static model has no attention")
        return Selection(make_bag_encoder(module, task), InputLayout(form="bag"), attention)
    slow = context.factory.make_processor_encoder(task, module)
    if isinstance(module, Transformer) and choice is not None:
        fast: Encode | None = context.factory.make_token_encoder(task, module, tokenizer)
        layout, attention, _ = choice
    else:
        # Its vocabulary may lack the probes' words, which would then not show the effect of padding.
        fast, layout = None, InputLayout(form="padded", may_pad=False)
        attention = Choice("none", f"it starts with a {type(module).__name__} module")
    unpadded = replace(layout, may_pad=False)
    reference = _compute_reference(context, task, slow, unpadded)
    objections: list[str] = []
    for encode, candidate in ((fast, layout), (fast, unpadded), (slow, layout)):
        if encode is None:
            continue
        objection = _find_mismatch(context, task, encode, candidate, reference)
        if objection is None:
            return Selection(encode, candidate, _add_objections(attention, objections))
        name = "its own slow preprocessing" if encode is slow else "tokens"
        is_padded = candidate is layout and candidate.form == "padded"
        objections.append(f"{name}{' in padded batches' if is_padded else ''}: {objection}")
    logger.warning("only texts of equal length share a batch: %s", "; ".join(objections))
    return Selection(slow, unpadded, _add_objections(attention, objections))


def _compute_reference(
    context: SelectionContext, task: Task, encode: Encode, layout: InputLayout
) -> Reference:
    encoded = encode(context.probes, InputOptions(task=task.name, outputs=context.outputs))
    vectors = [compute_vectors(context.torch_model, layout, [item]) for item in encoded]
    return Reference(encoded, np.concatenate(vectors))


def _find_mismatch(
    context: SelectionContext, task: Task, encode: Encode, layout: InputLayout, reference: Reference
) -> str | None:
    """Return how a candidate differs from the reference; None if it does not."""
    torch_model = context.torch_model
    try:
        encoded = encode(context.probes, InputOptions(task=task.name, outputs=context.outputs))
    except BadInput as exc:
        return str(exc)
    if not _have_equal_tokens(reference.encoded, encoded):
        return "the tokens differ"
    vectors = compute_vectors(torch_model, layout, encoded)
    difference = measure_difference(vectors, reference.vectors, torch_model.dense_name)
    return None if difference <= get_tolerance(torch_model) else f"the rows differ by {difference:.0e}"


def _have_equal_tokens(expected: list[Encoded], encoded: list[Encoded]) -> bool:
    """Compare token ids where preprocessing made any."""
    return all(
        np.array_equal(a.token_ids, b.token_ids)
        for a, b in zip(expected, encoded, strict=True)
        if a.features is not None and a.features.get("input_ids") is not None
    )


def _add_objections(attention: Choice, objections: list[str]) -> Choice:
    return Choice(attention.value, "; ".join([attention.reason, *objections]))
