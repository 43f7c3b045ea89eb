"""Select the encoder and the layout of each task of a loaded model.

Token encoders, packed layouts and padding are used only where they give the tokens and the vectors of
sentence-transformers' own preprocessing and of single texts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from infinity_emb.backends.base import Encode
from infinity_emb.backends.probes import PARITY_TEXTS
from infinity_emb.backends.torch.device import Choice
from infinity_emb.backends.torch.encoder_factory import (
    EncoderFactory,
    Task,
    make_bag_encoder,
    make_fast_tokenizer,
)
from infinity_emb.backends.torch.encoders import TokenEncoder, TorchEncoder, UnroutedEncoder
from infinity_emb.backends.torch.forward import TorchModel
from infinity_emb.backends.torch.input_layout import InputLayout
from infinity_emb.backends.torch.layout_check import compute_vectors, get_tolerance, measure_difference
from infinity_emb.backends.torch.packing import (
    LayoutChoice,
    choose_layout,
    install_packing,
)
from infinity_emb.backends.torch.st_introspection import (
    depends_on_task,
    get_input_module,
    get_max_tokens,
    get_tasks,
    get_text_limit,
    tokenizes_by_task,
)
from infinity_emb.errors import BadInput
from infinity_emb.items import (
    Encoded,
    Float32Array,
    ForwardSpec,
    InputOptions,
    Pair,
    RequestInput,
    number_inputs,
)
from infinity_emb.preprocessing.fast_tokenizer import FastTokenizer
from infinity_emb.types import Modality, ModelKind, OutputName

logger = logging.getLogger("infinity_emb")

# Tasks of every model whose outputs or tokens depend on the task, in addition to the model's own.
_COMMON_TASKS = ("query", "document")
# A probe longer than the limit shows how texts are truncated; for larger limits it would take too long.
_MAX_PROBED_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model with a layout and an encoder for each task.

    text_encoders: by the name of the task, the default first; empty if the model takes no texts.
    attention: "packed", "padded" or "none", and why.
    fast_tokenizer: the tokenizer of plain texts if a token encoder was selected.
    """

    torch_model: TorchModel
    encode: Encode
    text_encoders: Mapping[str | None, Encode]
    attention: Choice
    fast_tokenizer: FastTokenizer | None


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


def prepare_model(torch_model: TorchModel, kind: ModelKind, outputs: tuple[OutputName, ...]) -> PreparedModel:
    """Install packing and select an encoder for each task.

    Raises what the model raises on the probes with its own preprocessing: then it cannot be served.
    """
    model = torch_model.model
    context = SelectionContext(
        torch_model=torch_model,
        factory=EncoderFactory(model, threading.Lock()),
        probes=_make_probes(get_max_tokens(model), is_pair=kind is ModelKind.reranker),
        outputs=outputs[:1] or ("dense",),
    )
    tasks = _list_tasks(model)
    modules = _find_input_modules(model, tasks)
    choices = _install_packing(context, modules)
    tokenizers = {transformer: make_fast_tokenizer(transformer) for transformer in choices}
    selections = {
        task: select_encoder(context, task, module, choices.get(module), tokenizers.get(module))
        for task, module in modules.items()
    }
    text_encoders = {task.name: selection.encode for task, selection in selections.items()}
    return PreparedModel(
        torch_model=replace(torch_model, layouts=_collect_layouts(selections)),
        encode=_combine_encoders(
            text_encoders | _refuse_without_route(model, tasks, text_encoders),
            context.factory.make_media_encoders(tasks),
        ),
        text_encoders=text_encoders,
        attention=_summarize_attention([selection.attention for selection in selections.values()]),
        fast_tokenizer=_find_used_tokenizer(tokenizers.values(), text_encoders.values()),
    )


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


def _make_probes(max_tokens: int | None, *, is_pair: bool) -> list[RequestInput]:
    texts = list(PARITY_TEXTS)
    if max_tokens is not None and max_tokens <= _MAX_PROBED_LIMIT:
        texts.append("limits cut what is too long " * max_tokens)
    return number_inputs([Pair(texts[0], text) for text in texts] if is_pair else texts)


def _list_tasks(model: BaseModel) -> list[Task]:
    """Return the default task and, if tokens or outputs depend on the task, all others."""
    is_dependent = depends_on_task(model)
    names: list[str | None] = [None]
    if is_dependent or tokenizes_by_task(model):
        names += dict.fromkeys((*_COMMON_TASKS, *get_tasks(model)))
    return [Task(name, name if is_dependent else None) for name in names]


def _find_input_modules(model: BaseModel, tasks: Sequence[Task]) -> dict[Task, Any]:
    """Return the first module for texts of each task, without tasks for which a router has no route."""
    modules = {}
    for task in tasks if "text" in model.modalities else ():
        try:
            modules[task] = get_input_module(model, task.name)
        except ValueError as exc:
            logger.debug("the model has no route for the task %r: %s", task.name, exc)
    return modules


def _refuse_without_route(
    model: BaseModel, tasks: Sequence[Task], text_encoders: Mapping[str | None, Encode]
) -> dict[str | None, Encode]:
    """Return an encoder that refuses its inputs for each task for which a router has no route."""
    if not text_encoders:
        return {}
    missing = [task.name for task in tasks if task.name not in text_encoders]
    return {name: UnroutedEncoder(name, get_tasks(model)) for name in missing}


def _install_packing(
    context: SelectionContext, modules: Mapping[Task, Any]
) -> dict[Transformer, LayoutChoice]:
    """Choose a layout for each transformer and install its kernel."""
    choices: dict[Transformer, LayoutChoice] = {}
    for task, module in modules.items():
        if isinstance(module, Transformer) and module not in choices:
            spec = ForwardSpec(task=task.spec_task, outputs=context.outputs)
            choice = choose_layout(context.torch_model, module, spec, max_tokens=get_text_limit(module))
            if choice.kernel is not None:
                install_packing(module, choice.kernel, choice.layout)
            choices[module] = choice
    return choices


def _collect_layouts(selections: Mapping[Task, Selection]) -> dict[str | None, InputLayout]:
    """Return the layouts by the task of the spec; None is the default."""
    layouts: dict[str | None, InputLayout] = {}
    for task, selection in selections.items():
        layouts = {None: selection.layout, **layouts, task.spec_task: selection.layout}
    return {None: InputLayout(form="padded"), **layouts}


def _summarize_attention(choices: list[Choice]) -> Choice:
    packed = [choice for choice in choices if choice.value == "packed"]
    return next(iter([*packed, *choices]), Choice("none", "it takes no texts"))


def _find_used_tokenizer(
    tokenizers: Iterable[FastTokenizer | None], encoders: Iterable[Encode]
) -> FastTokenizer | None:
    """Return the first tokenizer that a selected encoder uses; others may give different tokens."""
    used = [encoder.tokenize for encoder in encoders if isinstance(encoder, TokenEncoder)]
    return next((tokenizer for tokenizer in tokenizers if tokenizer is not None and tokenizer in used), None)


def _combine_encoders(
    text_encoders: Mapping[str | None, Encode],
    media_encoders: Mapping[Modality, Mapping[str | None, Encode]],
) -> Encode:
    if text_encoders.keys() == {None} and not media_encoders:
        return text_encoders[None]
    return TorchEncoder(text_encoders=text_encoders, media_encoders=media_encoders)
