"""Run sentence-transformers' own preprocessing on one input, so that a text is never taken for a file."""

from __future__ import annotations

from typing import Any, cast

from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Router, Transformer

from infinity_emb.backends.torch.st_introspection import get_input_module
from infinity_emb.items import AudioInput, ImageInput, Input, Pair
from infinity_emb.types import Modality


def preprocess(
    model: BaseModel, value: Input, *, prompt: str, task: str | None, sampling_rate: int | None = None
) -> dict[str, Any]:
    """Return the features of one input, whose modality is passed explicitly.

    sentence-transformers takes a bare text or prompt that is the URL or path of an image to be that image,
    and opens it; a router sends it to the modules for images.
    """
    is_text = get_modality(value) is Modality.text
    if is_text and prompt and _joins_prompts(get_input_module(model, task)):
        value, prompt = _prepend_prompt(value, prompt), ""
    wrapped = _wrap(value, model, task, sampling_rate)
    options = {"modality": "text"} if is_text and isinstance(model[0], Router) else {}
    return model.preprocess([wrapped], prompt=prompt or None, task=task, **options)


def get_modality(value: Input) -> Modality:
    """Return the modality of an input; everything but images and audio is text."""
    if isinstance(value, ImageInput):
        return Modality.image
    return Modality.audio if isinstance(value, AudioInput) else Modality.text


def _joins_prompts(module: object) -> bool:
    """Return whether the module joins prompt and text, and then also reads the prompt alone."""
    return isinstance(module, Transformer) and "message" not in module.modality_config


def _prepend_prompt(value: Input, prompt: str) -> Input:
    if isinstance(value, Pair):
        return Pair(prompt + value.query, value.document)
    return prompt + cast(str, value)


def _wrap(value: Input, model: BaseModel, task: str | None, sampling_rate: int | None) -> Any:
    """Return the input in a form that is unambiguous to sentence-transformers."""
    if isinstance(value, ImageInput):
        from PIL import Image

        return Image.fromarray(value.pixels)
    if isinstance(value, AudioInput):
        return {"array": value.samples, "sampling_rate": sampling_rate}
    module: Any = get_input_module(model, task)
    if not isinstance(module, Transformer):
        return tuple(value) if isinstance(value, Pair) else value
    if isinstance(value, Pair):
        takes_messages = "message" in module.modality_config
        if takes_messages and module.input_formatter.message_format == "structured":
            return {"text": value.query}, {"text": value.document}
        return tuple(value)
    return {"text": value}
