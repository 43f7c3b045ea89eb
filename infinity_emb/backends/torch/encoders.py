"""Encode inputs for sentence-transformers models.

`TokenEncoder` is the fast encoder, for texts whose features are token ids; `ProcessorEncoder` runs the
model's own preprocessing, one input at a time.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers.base.model import BaseModel

from infinity_emb.backends.base import Encode
from infinity_emb.backends.torch.late_chunking import find_token_spans
from infinity_emb.backends.torch.st_introspection import Expansion
from infinity_emb.backends.torch.st_preprocessing import get_modality, preprocess
from infinity_emb.errors import BadInput, InputTooLong, ModelNotDeployedError
from infinity_emb.items import (
    Encoded,
    ForwardSpec,
    Input,
    InputOptions,
    LateChunkingInput,
    RequestInput,
    TokenIdsInput,
)
from infinity_emb.preprocessing.fast_tokenizer import FastTokenizer
from infinity_emb.preprocessing.slow_tokenizer import check_truncated
from infinity_emb.preprocessing.token_ids import tokenize_with_ids
from infinity_emb.preprocessing.tokens import Tokenize, Tokens
from infinity_emb.types import Modality

# Output of preprocessing that is not a feature of the input; `ForwardSpec` and `InputLayout` hold it.
_NOT_FEATURES = ("modality", "task", "prompt_length", "logits_to_keep")
# Number of tokens that an image or audio input counts as if preprocessing creates no token ids.
_MEDIA_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEncoder:
    """Encode texts or pairs as token ids, for packed and padded layouts.

    count_prompt_tokens: return the tokens of a prompt that pooling excludes.
    task: part of the spec; None for models whose outputs do not depend on it.
    has_pooling: whether the averages of late chunking can replace the model's pooling.
    """

    tokenize: Tokenize
    max_tokens: int | None
    has_type_ids: bool
    count_prompt_tokens: Callable[[str], int]
    task: str | None = None
    expansion: Expansion | None = None
    has_pooling: bool = False

    def __call__(self, inputs: Sequence[RequestInput], options: InputOptions) -> list[Encoded]:
        """Implement `Encode`."""
        if isinstance(inputs[0].value, LateChunkingInput):
            return [self._encode_passages(item, options) for item in inputs]
        spec = self._make_spec(options)
        limit = options.limit(self.max_tokens)
        if any(isinstance(item.value, TokenIdsInput) for item in inputs):
            tokens = tokenize_with_ids(self.tokenize, inputs, options, limit)
        else:
            tokens = self.tokenize(
                inputs, prompt=options.prompt, truncation=options.truncation, max_tokens=limit
            )
        for (ids, _), item in zip(tokens, inputs, strict=True):
            _check_longer_than_prompt(len(ids), spec.prompt_length, item.position)
        return [
            self._make_encoded(tokenized, spec, options, item.position)
            for tokenized, item in zip(tokens, inputs, strict=True)
        ]

    def _make_spec(self, options: InputOptions) -> ForwardSpec:
        prompt_length = self.count_prompt_tokens(options.prompt) if options.prompt else 0
        if prompt_length and options.truncation == "left":
            raise BadInput(
                "cannot be cut on the left: the model leaves out the prompt there; cut on the right"
            )
        return ForwardSpec(task=self.task, prompt_length=prompt_length, outputs=options.outputs)

    def _make_encoded(
        self, tokens: Tokens, spec: ForwardSpec, options: InputOptions, position: int
    ) -> Encoded:
        ids, type_ids = tokens
        if self.expansion is None or len(ids) >= self.expansion.length:
            type_ids = type_ids if self.has_type_ids else None
            return Encoded(ids, type_ids, spec, query_vectors=options.query_vectors, position=position)
        padding = np.full(self.expansion.length - len(ids), self.expansion.token_id, dtype=np.int32)
        num_attended = None if self.expansion.attend_to_expansion else len(ids)
        ids = np.concatenate([ids, padding])
        return Encoded(ids, spec=spec, num_attended_tokens=num_attended, position=position)

    def _encode_passages(self, item: RequestInput, options: InputOptions) -> Encoded:
        """Encode all texts as one, with the token range of each."""
        if not self.has_pooling or not isinstance(self.tokenize, FastTokenizer):
            raise BadInput("cannot be read as passages: late chunking needs a model with a pooling module")
        texts = cast(LateChunkingInput, item.value).texts
        joined = options.prompt + "".join(texts)
        encoding = self.tokenize.encode_uncut(joined)
        limit = options.limit(self.max_tokens)
        if limit is not None and len(encoding.ids) > limit:
            raise InputTooLong(
                f"has {len(encoding.ids)} tokens with all passages, the limit is {limit}; late chunking"
                " reads them as one text, so send fewer or shorter ones",
                position=item.position,
            )
        return Encoded(
            np.array(encoding.ids, dtype=np.int32),
            spec=self._make_spec(options),
            spans=find_token_spans(joined, encoding.offsets, texts, item.position),
            position=item.position,
        )


def _check_longer_than_prompt(num_tokens: int, prompt_length: int, position: int) -> None:
    """Raise BadInput if pooling, which excludes the prompt, would have no token left."""
    if prompt_length and num_tokens <= prompt_length:
        raise BadInput(
            f"has {num_tokens} tokens, all of them the prompt's; send a text besides it", position=position
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorEncoder:
    """Encode inputs with the model's own preprocessing, one at a time.

    lock: held if a tokenizer of transformers, which is not thread-safe, takes part.
    count_prompt_tokens: return the tokens of a prompt that pooling excludes.
    task, spec_task: passed to preprocessing; part of the spec.
    """

    model: BaseModel
    lock: threading.Lock | None
    max_tokens: int | None
    count_prompt_tokens: Callable[[str], int]
    task: str | None = None
    spec_task: str | None = None
    sampling_rate: int | None = None

    def __call__(self, inputs: Sequence[RequestInput], options: InputOptions) -> list[Encoded]:
        """Implement `Encode`."""
        return [self._encode(value, options, position) for value, position in inputs]

    def _encode(self, value: Input, options: InputOptions, position: int) -> Encoded:
        if isinstance(value, TokenIdsInput):
            raise BadInput(
                "consists of token ids, but this model's own preprocessing reads texts", position=position
            )
        is_text = get_modality(value) is Modality.text
        if is_text and options.truncation in ("left", "right"):
            raise BadInput(
                f"this model's preprocessing cuts texts itself, and not on the {options.truncation}"
            )
        features = self._preprocess(value, options.prompt)
        ids = features.get("input_ids")
        media_tokens = _MEDIA_TOKENS if ids is None else 0
        num_tokens = media_tokens if ids is None else int(ids.shape[-1])
        num_expansion_tokens = int(np.sum(features.get("query_expansion_positions", 0)))
        if is_text:
            limit = options.limit(self.max_tokens)
            check_truncated(num_tokens - num_expansion_tokens, limit, options.truncation, position)
        prompt_length = features["prompt_length"]
        if options.prompt and is_text:
            prompt_length = prompt_length or self.count_prompt_tokens(options.prompt)
            _check_longer_than_prompt(num_tokens, prompt_length, position)
        spec = ForwardSpec(
            modality=features["modality"],
            task=self.spec_task,
            prompt_length=prompt_length,
            outputs=options.outputs,
        )
        return Encoded(
            np.zeros(0, dtype=np.int32) if ids is None else ids[0].astype(np.int32),
            spec=spec,
            features={name: value for name, value in features.items() if name not in _NOT_FEATURES},
            query_vectors=options.query_vectors,
            media_tokens=media_tokens,
            position=position,
        )

    def _preprocess(self, value: Input, prompt: str) -> dict[str, Any]:
        with self.lock or contextlib.nullcontext():
            output = preprocess(
                self.model, value, prompt=prompt, task=self.task, sampling_rate=self.sampling_rate
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
class TorchEncoder:
    """Encode with the encoder of the inputs' modality and of the request's task.

    text_encoders, media_encoders: by task; None is the default task.
    """

    text_encoders: Mapping[str | None, Encode]
    media_encoders: Mapping[Modality, Mapping[str | None, Encode]]

    def __call__(self, inputs: Sequence[RequestInput], options: InputOptions) -> list[Encoded]:
        """Implement `Encode`. Raise ModelNotDeployedError for a modality that the model does not take."""
        modality = get_modality(inputs[0].value)
        encoders = self.text_encoders if modality is Modality.text else self.media_encoders.get(modality)
        if not encoders:
            raise ModelNotDeployedError(f"the model does not take {modality} inputs")
        return (encoders.get(options.task) or encoders[None])(inputs, options)


@dataclass(frozen=True, slots=True)
class UnroutedEncoder:
    """Refuse inputs with a task that the model has no route for, as sentence-transformers does.

    task: None for inputs that name none, if the model has no default route.
    tasks: those that the model has routes for.
    """

    task: str | None
    tasks: Sequence[str]

    def __call__(self, inputs: Sequence[RequestInput], options: InputOptions) -> list[Encoded]:
        """Raise BadInput."""
        problem = "names no task" if self.task is None else f"names the task {self.task!r}"
        raise BadInput(
            f"the request {problem}, but the model has routes only for {', '.join(self.tasks)};"
            " choose one with input_type"
        )
