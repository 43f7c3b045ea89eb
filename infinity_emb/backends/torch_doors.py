"""How inputs enter a loaded model: a door and a layout for each task, checked against the model's own way.

The fast ways (`TokenDoor`, packed rows) are taken only where they give what sentence-transformers' own
preprocessing and forward pass give for probe inputs; a model on which they do not goes the slow way, and says
so. Knows nothing of queues, or of where the model came from.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

from infinity_emb.backends.base import Encoded, Input, InputOptions, Pair, Recipe, Rows
from infinity_emb.backends.torch_backend import Pipeline
from infinity_emb.backends.torch_device import Choice
from infinity_emb.backends.torch_inputs import InputLayout
from infinity_emb.backends.torch_layout import choose_layout, difference, padded_layout, rows_of, tolerance_of
from infinity_emb.backends.torch_models import (
    Expansion,
    input_module,
    leaves_prompts_out,
    limit_of,
    max_tokens_of,
    num_prompt_tokens,
    reads_task,
    sampling_rate_of,
    tasks_of,
    tokenizes_by_task,
)
from infinity_emb.backends.torch_prepare import (
    Door,
    FeatureDoor,
    TokenDoor,
    TorchPrepare,
    preprocess,
    remembered,
)
from infinity_emb.errors import BadInput
from infinity_emb.pipeline_tokenizing import PipelineTokenizer
from infinity_emb.primitives import Modality, ModelKind, OutputName
from infinity_emb.tokenizing import RawTokenizer, Tokenize, Tokens

logger = logging.getLogger("infinity_emb")

# Queries and documents, whatever the model's own names for its tasks are.
_COMMON_TASKS = ("query", "document")
_LONGER_PROBE = "Größe, naïve café, 東京 and \U0001f600; snake_case() over two\nlines. " * 3
# The last two are so near in length that they share a padded batch, and show whether padding matters.
_PROBES = ("The quick brown fox: 3.14 EUR, isn't it?", _LONGER_PROBE, f"{_LONGER_PROBE}And more.")
# A probe longer than the limit shows how a text is cut; for larger limits it would take too long.
_MAX_PROBED_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model that is ready to be given inputs."""

    pipeline: Pipeline
    prepare: TorchPrepare
    attention: Choice  # "packed", "padded" or "none", and why
    raw_tokenizer: RawTokenizer | None  # where plain texts are tokenized by the fast door


class DoorMaker:
    """Opens the doors of one model; `pipeline` grows layouts as it goes."""

    def __init__(self, pipeline: Pipeline, kind: ModelKind, outputs: tuple[OutputName, ...]) -> None:
        self._pipeline = pipeline
        self._model: BaseModel = pipeline.model
        self._takes_pairs = kind is ModelKind.reranker
        self._outputs = outputs[:1] or ("dense",)
        self._max_tokens = max_tokens_of(self._model)
        self._lock = threading.Lock()
        self._choices: dict[int, tuple[InputLayout, Choice]] = {}
        self._tokenizers: dict[int, RawTokenizer | None] = {}
        self._attention: list[Choice] = []

    def open(self) -> OpenedModel:
        """Raises whatever the model raises on the probes the slow way: then it cannot be served."""
        depends = reads_task(self._model)
        tasks: list[str | None] = [None]
        if depends or tokenizes_by_task(self._model):
            tasks += dict.fromkeys((*_COMMON_TASKS, *tasks_of(self._model)))
        text_doors: dict[str | None, Door] = {}
        for task in tasks if "text" in self._model.modalities else ():
            door = self._open_text_door(task, task if depends else None)
            if door is not None:
                text_doors[task] = door
        if text_doors and None not in text_doors:  # a router without a default route
            text_doors[None] = next(iter(text_doors.values()))
        media_doors = {
            modality: {task: self._media_door(modality, task if depends else None) for task in tasks}
            for modality in (Modality.image, Modality.audio)
            if str(modality) in self._model.modalities
        }
        self._pipeline = replace(
            self._pipeline, layouts={None: InputLayout(form="padded"), **self._pipeline.layouts}
        )
        attention = next(
            (choice for choice in self._attention if choice.value == "packed"),
            self._attention[0] if self._attention else Choice("none", "it takes no texts"),
        )
        prepare = TorchPrepare(text_doors=text_doors, media_doors=media_doors)
        return OpenedModel(self._pipeline, prepare, attention, self._chosen_raw_tokenizer(text_doors))

    def _chosen_raw_tokenizer(self, doors: dict[str | None, Door]) -> RawTokenizer | None:
        """None where the fast door was rejected, whose tokens are others than the model's."""
        known = [each for each in self._tokenizers.values() if each is not None]
        used = [door.tokenize for door in doors.values() if isinstance(door, TokenDoor)]
        return next((each for each in known if each in used), None)

    def _open_text_door(self, task: str | None, recipe_task: str | None) -> Door | None:
        try:
            entered: Any = input_module(self._model, task)
        except ValueError as exc:  # a router without a route for this task
            logger.debug("no way into the model for the task %r: %s", task, exc)
            return None
        if isinstance(entered, StaticEmbedding):
            self._attention.append(Choice("none", "a static model attends to nothing"))
            self._set_layout(recipe_task, InputLayout(form="bag"))
            return self._bag_door(entered, recipe_task)
        slow = self._feature_door(entered, task, recipe_task)
        # What is no transformer may know no word of the probes, so that they would show nothing of padding.
        layout = InputLayout(form="padded", may_pad=False)
        fast: Door | None = None
        choice = Choice("none", f"it starts with a {type(entered).__name__} module")
        if isinstance(entered, Transformer):
            layout, choice = self._layout_of(entered, recipe_task)
            fast = self._token_door(entered, task, recipe_task)
        door, layout, objection = self._choose_door(fast, slow, task, layout)
        self._set_layout(recipe_task, layout)
        self._attention.append(Choice(choice.value, f"{choice.reason}; {objection}") if objection else choice)
        return door

    def _choose_door(
        self, fast: Door | None, slow: Door, task: str | None, layout: InputLayout
    ) -> tuple[Door, InputLayout, str]:
        """The fastest way that gives the rows of single texts read the model's own way, and what spoke
        against the faster ones."""
        options = InputOptions(task=task, outputs=self._outputs)
        probes = self._probes()
        unpadded = replace(layout, may_pad=False)
        read = slow(probes, options)
        expected = np.concatenate([rows_of(self._pipeline, unpadded, [each]) for each in read])
        objections: list[str] = []
        for door, way in ((fast, layout), (fast, unpadded), (slow, layout)):
            if door is None:
                continue
            objection = self._objection(door, way, probes, options, read, expected)
            if objection is None:
                return door, way, "; ".join(objections)
            name = "its own slow preprocessing" if door is slow else "tokens"
            name += " in padded batches" if way is layout and way.form == "padded" else ""
            objections.append(f"{name}: {objection}")
        logger.warning("texts are read one length at a time: %s", "; ".join(objections))
        return slow, unpadded, "; ".join(objections)

    def _objection(
        self,
        door: Door,
        layout: InputLayout,
        probes: list[Input],
        options: InputOptions,
        read: list[Encoded],
        expected: Rows,
    ) -> str | None:
        """What speaks against a way in; None where it gives what is expected."""
        try:
            inputs = door(probes, options)
        except BadInput as exc:
            return str(exc)
        if not _read_alike(read, inputs):
            return "the tokens are others"
        found = difference(rows_of(self._pipeline, layout, inputs), expected, self._pipeline.dense_name)
        return None if found <= tolerance_of(self._pipeline) else f"the rows differ by {found:.0e}"

    def _set_layout(self, task: str | None, layout: InputLayout) -> None:
        layouts = {None: layout, **self._pipeline.layouts, task: layout}
        self._pipeline = replace(self._pipeline, layouts=layouts)

    def _layout_of(self, transformer: Transformer, task: str | None) -> tuple[InputLayout, Choice]:
        """Chosen once per transformer, however many tasks go through it."""
        if id(transformer) not in self._choices:
            recipe = Recipe(task=task, outputs=self._outputs)
            self._choices[id(transformer)] = choose_layout(
                self._pipeline, transformer, recipe, max_tokens=self._max_tokens
            )
        return self._choices[id(transformer)]

    def _feature_door(self, entered: object, task: str | None, recipe_task: str | None) -> FeatureDoor:
        max_tokens = self._max_tokens
        return FeatureDoor(
            model=self._model,
            lock=self._lock,
            max_tokens=limit_of(entered, task, max_tokens)
            if isinstance(entered, Transformer)
            else max_tokens,
            prompt_length=self._prompt_counter(entered),
            task=task,
            recipe_task=recipe_task,
            sampling_rate=sampling_rate_of(self._model),
        )

    def _media_door(self, modality: Modality, task: str | None) -> FeatureDoor:
        """Without a lock for a tower of its own, whose preprocessing uses no tokenizer."""
        ways = getattr(self._model[0], "modality_config", {}).get(str(modality), {})
        has_tower = str(ways.get("method", "")).startswith("get_")
        door = self._feature_door(None, task, task)
        return replace(door, lock=None) if has_tower else door

    def _token_door(self, transformer: Transformer, task: str | None, recipe_task: str | None) -> TokenDoor:
        expansion = Expansion.of(transformer) if task == "query" else None
        return TokenDoor(
            tokenize=self._tokenize_for(transformer, task),
            max_tokens=limit_of(transformer, task, self._max_tokens),
            has_type_ids=padded_layout(transformer).has_type_ids,
            prompt_length=self._prompt_counter(transformer),
            task=recipe_task,
            expansion=expansion,
            reads_passages=any(isinstance(module, Pooling) for module in self._model),
        )

    def _prompt_counter(self, entered: object) -> Callable[[str], int]:
        """How many tokens of a prompt pooling leaves out."""
        if not isinstance(entered, Transformer) or not leaves_prompts_out(self._model):
            return lambda prompt: 0

        def count(prompt: str) -> int:
            with self._lock:
                return num_prompt_tokens(entered, prompt)

        return remembered(count)

    def _tokenize_for(self, transformer: Transformer, task: str | None) -> Tokenize:
        if "message" not in transformer.modality_config:
            raw = self._raw_tokenizer(transformer)
            if raw is not None:
                return raw
        side = getattr(transformer.tokenizer, "truncation_side", None) or "right"
        return PipelineTokenizer(
            lambda each, prompt: self._tokenize_slowly(each, prompt, task),
            truncation_side=side,
            lock=self._lock,
        )

    def _raw_tokenizer(self, transformer: Transformer) -> RawTokenizer | None:
        if id(transformer) not in self._tokenizers:
            tokenizer: Any = transformer.tokenizer
            backend = getattr(tokenizer, "backend_tokenizer", None)
            self._tokenizers[id(transformer)] = (
                None if backend is None else RawTokenizer(backend, truncation_side=tokenizer.truncation_side)
            )
        return self._tokenizers[id(transformer)]

    def _tokenize_slowly(self, each: str | Pair, prompt: str, task: str | None) -> Tokens:
        features = preprocess(self._model, each, prompt=prompt, task=task)
        type_ids = features.get("token_type_ids")
        return Tokens(
            features["input_ids"][0].numpy().astype(np.int32),
            None if type_ids is None else type_ids[0].numpy().astype(np.int32),
        )

    def _bag_door(self, static: StaticEmbedding, task: str | None) -> TokenDoor:
        truncation = static.tokenizer.truncation
        side = "right" if truncation is None else truncation["direction"]
        return TokenDoor(
            tokenize=RawTokenizer(
                static.tokenizer, truncation_side=side, adds_special_tokens=False, allows_empty=True
            ),
            max_tokens=None if truncation is None else int(truncation["max_length"]),
            has_type_ids=False,
            prompt_length=lambda prompt: 0,
            task=task,
        )

    def _probes(self) -> list[Input]:
        texts = list(_PROBES)
        if self._max_tokens is not None and self._max_tokens <= _MAX_PROBED_LIMIT:
            texts.append("limits cut what is too long " * self._max_tokens)
        if self._takes_pairs:
            return [Pair(texts[0], text) for text in texts]
        return list(texts)


def _read_alike(expected: list[Encoded], inputs: list[Encoded]) -> bool:
    """Whether both ways read the same tokens, but for what a late-interaction model fills up with."""
    return all(
        len(a.token_ids) == len(b.token_ids) and np.array_equal(a.token_ids, b.token_ids)
        for a, b in zip(expected, inputs, strict=True)
        if a.features is not None and a.features.get("input_ids") is not None
    )
