"""Make the encoders of a loaded model."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

from infinity_emb.backends.base import Encode
from infinity_emb.backends.torch.encoders import ProcessorEncoder, TokenEncoder
from infinity_emb.backends.torch.packing import get_padded_layout
from infinity_emb.backends.torch.st_introspection import (
    Expansion,
    count_prompt_tokens,
    excludes_prompt,
    get_sampling_rate,
    get_task_limit,
    get_text_limit,
)
from infinity_emb.backends.torch.st_preprocessing import preprocess
from infinity_emb.items import Pair
from infinity_emb.preprocessing.fast_tokenizer import FastTokenizer
from infinity_emb.preprocessing.slow_tokenizer import SlowTokenizer
from infinity_emb.preprocessing.tokens import Tokenize, Tokens
from infinity_emb.types import Modality

_MAX_CACHED_PROMPTS = 256


class Task(NamedTuple):
    """A task, and its name in the spec: None if outputs do not depend on it."""

    name: str | None
    spec_task: str | None


@dataclass(frozen=True, slots=True)
class EncoderFactory:
    """Make encoders that share a model and a lock.

    lock: held while a tokenizer of transformers is used.
    """

    model: BaseModel
    lock: threading.Lock

    def make_token_encoder(
        self, task: Task, transformer: Transformer, tokenizer: FastTokenizer | None
    ) -> TokenEncoder:
        """Make the fast encoder of a transformer.

        tokenizer: None if the transformer's tokenizer is not from the `tokenizers` library.
        """
        return TokenEncoder(
            tokenize=self._choose_tokenizer(task, transformer, tokenizer),
            max_tokens=get_task_limit(transformer, task.name, get_text_limit(transformer)),
            has_type_ids=get_padded_layout(transformer).has_type_ids,
            count_prompt_tokens=self._make_prompt_counter(transformer),
            task=task.spec_task,
            expansion=Expansion.resolve(transformer) if task.name == "query" else None,
            has_pooling=any(isinstance(module, Pooling) for module in self.model),
        )

    def make_processor_encoder(self, task: Task, module: object) -> ProcessorEncoder:
        """Make the encoder that runs the model's own preprocessing.

        module: the first module for the inputs; None for media.
        """
        max_tokens = get_text_limit(module)
        return ProcessorEncoder(
            model=self.model,
            lock=self.lock,
            max_tokens=get_task_limit(module, task.name, max_tokens)
            if isinstance(module, Transformer)
            else max_tokens,
            count_prompt_tokens=self._make_prompt_counter(module),
            task=task.name,
            spec_task=task.spec_task,
            sampling_rate=get_sampling_rate(self.model),
        )

    def make_media_encoders(self, tasks: Sequence[Task]) -> dict[Modality, dict[str | None, Encode]]:
        """Make an encoder for each modality besides text and each task."""
        return {
            modality: {task.name: self._make_media_encoder(task, modality) for task in tasks}
            for modality in (Modality.image, Modality.audio)
            if str(modality) in self.model.modalities
        }

    def _make_media_encoder(self, task: Task, modality: Modality) -> Encode:
        """Make an encoder; it needs no lock if the modality has its own tower and so uses no tokenizer."""
        config = getattr(self.model[0], "modality_config", {}).get(str(modality), {})
        has_tower = str(config.get("method", "")).startswith("get_")
        encoder = self.make_processor_encoder(Task(task.spec_task, task.spec_task), None)
        return replace(encoder, lock=None) if has_tower else encoder

    def _choose_tokenizer(
        self, task: Task, transformer: Transformer, tokenizer: FastTokenizer | None
    ) -> Tokenize:
        """Return the fast tokenizer unless there is none or a chat template."""
        if tokenizer is not None and "message" not in transformer.modality_config:
            return tokenizer

        def encode(value: str | Pair, prompt: str) -> Tokens:
            features = preprocess(self.model, value, prompt=prompt, task=task.name)
            type_ids = features.get("token_type_ids")
            return Tokens(
                features["input_ids"][0].numpy().astype(np.int32),
                None if type_ids is None else type_ids[0].numpy().astype(np.int32),
            )

        side = getattr(transformer.tokenizer, "truncation_side", None) or "right"
        return SlowTokenizer(encode, truncation_side=side, lock=self.lock)

    def _make_prompt_counter(self, module: object) -> Callable[[str], int]:
        """Return a cached function that counts the tokens of a prompt that pooling excludes."""
        if not isinstance(module, Transformer) or not excludes_prompt(self.model):
            return lambda prompt: 0

        @functools.lru_cache(_MAX_CACHED_PROMPTS)
        def count(prompt: str) -> int:
            with self.lock:
                return count_prompt_tokens(module, prompt)

        return count


def make_bag_encoder(static: StaticEmbedding, task: Task) -> TokenEncoder:
    """Make the encoder of a static model."""
    truncation = static.tokenizer.truncation
    side = "right" if truncation is None else truncation["direction"]
    return TokenEncoder(
        tokenize=FastTokenizer(
            static.tokenizer, truncation_side=side, adds_special_tokens=False, allows_empty=True
        ),
        max_tokens=None if truncation is None else int(truncation["max_length"]),
        has_type_ids=False,
        count_prompt_tokens=lambda prompt: 0,
        task=task.spec_task,
    )


def make_fast_tokenizer(transformer: Transformer) -> FastTokenizer | None:
    """Make a fast tokenizer; None if the transformer's is not from the `tokenizers` library."""
    tokenizer: Any = transformer.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else FastTokenizer(backend, truncation_side=tokenizer.truncation_side)
