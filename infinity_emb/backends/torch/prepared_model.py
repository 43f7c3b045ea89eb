"""Prepare a loaded model: install packing, and select an encoder and a layout for each task."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer

from infinity_emb.backends.base import Encode
from infinity_emb.backends.torch.device import Choice
from infinity_emb.backends.torch.encoder_factory import EncoderFactory, Task, make_fast_tokenizer
from infinity_emb.backends.torch.encoder_selection import (
    Selection,
    SelectionContext,
    make_probes,
    select_encoder,
)
from infinity_emb.backends.torch.encoders import TokenEncoder, TorchEncoder, UnroutedEncoder
from infinity_emb.backends.torch.forward import TorchModel
from infinity_emb.backends.torch.input_layout import InputLayout
from infinity_emb.backends.torch.packing import LayoutChoice, choose_layout, install_packing
from infinity_emb.backends.torch.st_introspection import (
    depends_on_task,
    get_input_module,
    get_max_tokens,
    get_tasks,
    get_text_limit,
    tokenizes_by_task,
)
from infinity_emb.items import ForwardSpec
from infinity_emb.preprocessing.fast_tokenizer import FastTokenizer
from infinity_emb.types import Modality, ModelKind, OutputName

logger = logging.getLogger("infinity_emb")

# Tasks of every model whose outputs or tokens depend on the task, in addition to the model's own.
_COMMON_TASKS = ("query", "document")


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


def prepare_model(torch_model: TorchModel, kind: ModelKind, outputs: tuple[OutputName, ...]) -> PreparedModel:
    """Install packing and select an encoder for each task.

    Raises what the model raises on the probes with its own preprocessing: then it cannot be served.
    """
    model = torch_model.model
    context = SelectionContext(
        torch_model=torch_model,
        factory=EncoderFactory(model, threading.Lock()),
        probes=make_probes(get_max_tokens(model), is_pair=kind is ModelKind.reranker),
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
