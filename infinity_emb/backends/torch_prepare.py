"""Texts, pairs, images and audio → what `torch_inputs.py` lays out: hop 4 for sentence-transformers models.

Each way into a model is a door. `TokenDoor` is the fast one, for texts that become token ids by the tokenizer
alone; `FeatureDoor` asks the model's own preprocessing, one input at a time. A text stays text: whatever it
says, it is never opened as a file or a URL. Knows nothing of devices or queues.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Router, Transformer

from infinity_emb.backends.base import (
    Clip,
    Encoded,
    Ids,
    Input,
    InputOptions,
    Pair,
    Passages,
    Picture,
    Recipe,
    Rows,
)
from infinity_emb.backends.torch_models import Expansion, input_module
from infinity_emb.errors import BadInput, InputTooLong, ModelNotDeployedError
from infinity_emb.pipeline_tokenizing import check_cut_text
from infinity_emb.primitives import Modality
from infinity_emb.token_ids import tokens_of
from infinity_emb.tokenizing import RawTokenizer, Tokenize, Tokens

# What preprocessing adds that is not an array of the input; `Recipe` and `InputLayout` hold it.
_NOT_FEATURES = ("modality", "task", "prompt_length", "logits_to_keep")
_MAX_REMEMBERED_PROMPTS = 256
# What an image or a clip costs in a batch where its preprocessing does not say.
_MEDIA_TOKENS = 256


class Door(Protocol):
    """One way into a model, for one task."""

    def __call__(self, inputs: Sequence[Input], options: InputOptions) -> list[Encoded]:
        """As `Prepare` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDoor:
    """Texts or pairs that become token ids, for packed and padded layouts.

    task: the recipe's; None for models whose computing does not depend on it.
    prompt_length: tokens of a prompt that pooling leaves out.
    reads_passages: whether the means of late chunking can take the place of the model's pooling.
    """

    tokenize: Tokenize
    max_tokens: int | None
    has_type_ids: bool
    prompt_length: Callable[[str], int]
    task: str | None = None
    expansion: Expansion | None = None
    reads_passages: bool = False

    def __call__(self, inputs: Sequence[Input], options: InputOptions) -> list[Encoded]:
        if isinstance(inputs[0], Passages):
            return [self._read_passages(cast(Passages, each), options) for each in inputs]
        recipe = self._recipe(options)
        tokens = tokens_of(self.tokenize, inputs, options, options.limit(self.max_tokens))
        for position, each in enumerate(tokens):
            _check_longer_than_prompt(len(each.ids), recipe.prompt_length, position)
        return [self._encoded(each, recipe, options.query_rows) for each in tokens]

    def _recipe(self, options: InputOptions) -> Recipe:
        prompt_length = self.prompt_length(options.prompt) if options.prompt else 0
        if prompt_length and options.truncation == "left":
            raise BadInput(
                "cannot be cut on the left: the model leaves out the prompt there; cut on the right"
            )
        return Recipe(task=self.task, prompt_length=prompt_length, outputs=options.outputs)

    def _encoded(self, tokens: Tokens, recipe: Recipe, query_rows: Rows | None) -> Encoded:
        ids, type_ids = tokens
        if self.expansion is None or len(ids) >= self.expansion.length:
            type_ids = type_ids if self.has_type_ids else None
            return Encoded(ids, type_ids, recipe, query_rows=query_rows)
        filler = np.full(self.expansion.length - len(ids), self.expansion.token_id, dtype=np.int32)
        num_attended = None if self.expansion.is_attended else len(ids)
        return Encoded(np.concatenate([ids, filler]), None, recipe, num_attended=num_attended)

    def _read_passages(self, passages: Passages, options: InputOptions) -> Encoded:
        """One text of all, and the token range of each."""
        if not self.reads_passages or not isinstance(self.tokenize, RawTokenizer):
            raise BadInput("cannot be read as passages: late chunking needs a model with a pooling module")
        whole = options.prompt + "".join(passages.texts)
        offsets, num_tokens = self.tokenize.offsets(whole)
        limit = options.limit(self.max_tokens)
        if limit is not None and num_tokens > limit:
            raise InputTooLong(
                f"has {num_tokens} tokens with all passages, the limit is {limit}; late chunking"
                " reads them as one text, so send fewer or shorter ones",
                position=0,
            )
        tokens = self.tokenize([whole], prompt="", truncation="off", max_tokens=limit)[0]
        spans = _token_spans(whole, offsets, passages.texts)
        return Encoded(tokens.ids, None, self._recipe(options), spans=spans)


def _check_longer_than_prompt(num_tokens: int, prompt_length: int, position: int) -> None:
    """Pooling that leaves the prompt out would have nothing left."""
    if prompt_length and num_tokens <= prompt_length:
        raise BadInput(
            f"has {num_tokens} tokens, all of them the prompt's; send a text of its own", position=position
        )


def _token_spans(
    whole: str, offsets: list[tuple[int, int]], texts: Sequence[str]
) -> tuple[tuple[int, int], ...]:
    """The tokens that begin in each of the texts that `whole` ends with. Raises BadInput where none does."""
    begins = np.array([_begin(whole, first, last) for first, last in offsets])
    start = len(whole) - sum(map(len, texts))
    spans = []
    for position, text in enumerate(texts):
        inside = np.flatnonzero((begins >= start) & (begins < start + len(text)))
        if not len(inside):
            raise BadInput("has no token of its own to be averaged", position=position)
        spans.append((int(inside[0]), int(inside[-1]) + 1))
        start += len(text)
    return tuple(spans)


def _begin(whole: str, first: int, last: int) -> int:
    """Where a token's word begins: many tokens carry the space before it. -1 for a special one."""
    if last <= first:
        return -1
    token = whole[first:last]
    return min(first + len(token) - len(token.lstrip()), last - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureDoor:
    """Inputs that the model's own preprocessing reads, one at a time.

    prompt_length: tokens of a prompt that pooling leaves out.
    task, recipe_task: what preprocessing is told, and what computing depends on.
    """

    model: BaseModel
    lock: threading.Lock | None  # where a tokenizer of transformers takes part, which is not thread-safe
    max_tokens: int | None
    prompt_length: Callable[[str], int]
    task: str | None = None
    recipe_task: str | None = None
    sampling_rate: int | None = None

    def __call__(self, inputs: Sequence[Input], options: InputOptions) -> list[Encoded]:
        return [self._read(each, options, position) for position, each in enumerate(inputs)]

    def _read(self, each: Input, options: InputOptions, position: int) -> Encoded:
        if isinstance(each, Ids):
            raise BadInput("is token ids, and this model's own preprocessing reads texts", position=position)
        modality = _modality_of(each)
        if modality is Modality.text and options.truncation in ("left", "right"):
            raise BadInput(
                f"this model's preprocessing cuts texts by itself, not on the {options.truncation}"
            )
        features = self._preprocess(each, options.prompt)
        ids = features.get("input_ids")
        num_tokens = int(ids.shape[-1]) if ids is not None else _MEDIA_TOKENS
        num_own = num_tokens - int(np.sum(features.get("query_expansion_positions", 0)))
        if modality is Modality.text:
            check_cut_text(num_own, options.limit(self.max_tokens), options.truncation, position)
        prompt_length = features["prompt_length"]
        if options.prompt and modality is Modality.text:
            prompt_length = prompt_length or self.prompt_length(options.prompt)
            _check_longer_than_prompt(num_tokens, prompt_length, position)
        recipe = Recipe(
            modality=features["modality"],
            task=self.recipe_task,
            prompt_length=prompt_length,
            outputs=options.outputs,
        )
        return Encoded(
            np.zeros(0, dtype=np.int32) if ids is None else ids[0].astype(np.int32),
            recipe=recipe,
            features={name: array for name, array in features.items() if name not in _NOT_FEATURES},
            query_rows=options.query_rows,
            num_tokens=num_tokens,
        )

    def _preprocess(self, each: Input, prompt: str) -> dict[str, Any]:
        with self.lock or contextlib.nullcontext():
            output = preprocess(
                self.model, each, prompt=prompt, task=self.task, sampling_rate=self.sampling_rate
            )
        features: dict[str, Any] = {
            name: value.numpy() if isinstance(value, torch.Tensor) else value
            for name, value in output.items()
            if isinstance(value, torch.Tensor) or (isinstance(value, list) and len(value) == 1)
        }
        features["modality"] = output.get("modality", "text")
        features["prompt_length"] = output.get("prompt_length") or 0
        return features


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchPrepare:
    """`Prepare` for one model: doors for texts by task, and one for each kind of media.

    text_doors: None stands for every task that is not named.
    """

    text_doors: Mapping[str | None, Door]
    media_doors: Mapping[Modality, Mapping[str | None, Door]]

    def __call__(self, inputs: Sequence[Input], options: InputOptions) -> list[Encoded]:
        modality = _modality_of(inputs[0])
        doors = self.text_doors if modality is Modality.text else self.media_doors.get(modality)
        if not doors:
            raise ModelNotDeployedError(f"the model does not take {modality} inputs")
        return (doors.get(options.task) or doors[None])(inputs, options)


def preprocess(
    model: BaseModel, each: Input, *, prompt: str, task: str | None, sampling_rate: int | None = None
) -> dict[str, Any]:
    """What the model's own preprocessing makes of one input, which it is told the kind of.

    sentence-transformers takes a bare text, or a prompt, that is a URL or a path of an image for that image,
    and would open it; a router would send it the way of images.
    """
    is_text = _modality_of(each) is Modality.text
    if is_text and prompt and _joins_prompts(input_module(model, task)):
        each, prompt = _after_prompt(each, prompt), ""
    given = _wrapped(each, model, task, sampling_rate)
    told = {"modality": "text"} if is_text and isinstance(model[0], Router) else {}
    return model.preprocess([given], prompt=prompt or None, task=task, **told)


def _joins_prompts(entered: object) -> bool:
    """Whether the module puts the prompt right before the text, and then reads the prompt alone as well."""
    return isinstance(entered, Transformer) and "message" not in entered.modality_config


def _after_prompt(each: Input, prompt: str) -> Input:
    if isinstance(each, Pair):
        return Pair(prompt + each.query, each.document)
    return prompt + cast(str, each)


def _wrapped(each: Input, model: BaseModel, task: str | None, sampling_rate: int | None) -> Any:
    """The input in a form that can be taken for nothing else."""
    if isinstance(each, Picture):
        from PIL import Image

        return Image.fromarray(each.pixels)
    if isinstance(each, Clip):
        return {"array": each.samples, "sampling_rate": sampling_rate}
    entered: Any = input_module(model, task)
    if not isinstance(entered, Transformer):
        return tuple(each) if isinstance(each, Pair) else each
    if isinstance(each, Pair):
        takes_messages = "message" in entered.modality_config
        if takes_messages and entered.input_formatter.message_format == "structured":
            return {"text": each.query}, {"text": each.document}
        return tuple(each)
    return {"text": each}


def _modality_of(each: Input) -> Modality:
    if isinstance(each, Picture):
        return Modality.image
    return Modality.audio if isinstance(each, Clip) else Modality.text


def remembered(count: Callable[[str], int]) -> Callable[[str], int]:
    """The same, counting a prompt once; of the users' many prompts only the latest are kept."""
    return functools.lru_cache(_MAX_REMEMBERED_PROMPTS)(count)
