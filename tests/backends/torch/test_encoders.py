"""Encoders pass on the position, the spec and the limits of each input; tokenizers are scripted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from infinity_emb.backends.torch.encoders import ProcessorEncoder, TokenEncoder, TorchEncoder
from infinity_emb.backends.torch.st_introspection import Expansion
from infinity_emb.errors import BadInput, InputTooLong, ModelNotDeployedError
from infinity_emb.items import (
    Encoded,
    ImageInput,
    InputOptions,
    LateChunkingInput,
    RequestInput,
    TokenIdsInput,
    number_inputs,
)
from infinity_emb.preprocessing.fast_tokenizer import FastTokenizer
from infinity_emb.preprocessing.tokens import Tokens
from infinity_emb.types import Modality, Truncation


@dataclass
class CountingTokenizer:
    """A token per character; remembers the limits that it was called with."""

    truncation_side: str = "right"
    limits: list[int | None] = field(default_factory=list)

    def __call__(
        self, inputs: Sequence[RequestInput], *, prompt: str, truncation: Truncation, max_tokens: int | None
    ) -> list[Tokens]:
        self.limits.append(max_tokens)
        lengths = [len(prompt + str(item.value)) for item in inputs]
        return [Tokens(np.arange(n, dtype=np.int32), np.zeros(n, np.int32)) for n in lengths]


def make_encoder(**options: Any) -> TokenEncoder:
    defaults: dict[str, Any] = {
        "tokenize": CountingTokenizer(),
        "max_tokens": 10,
        "has_type_ids": False,
        "count_prompt_tokens": lambda prompt: 0,
    }
    return TokenEncoder(**(defaults | options))


def test_inputs_keep_their_positions_and_the_spec_of_the_request() -> None:
    encode = make_encoder(task="query", count_prompt_tokens=len)
    inputs = [RequestInput("one", 4), RequestInput(TokenIdsInput((7, 8, 9)), 2), RequestInput("three", 9)]
    encoded = encode(inputs, InputOptions(outputs=("dense", "sparse")))
    assert [item.position for item in encoded] == [4, 2, 9]
    assert [item.num_tokens for item in encoded] == [3, 3, 5]
    assert encoded[1].token_ids.tolist() == [7, 8, 9]
    assert {(item.spec.task, item.spec.outputs) for item in encoded} == {("query", ("dense", "sparse"))}


def test_the_lower_of_both_limits_applies() -> None:
    tokenize = CountingTokenizer()
    encode = make_encoder(tokenize=tokenize)
    for max_tokens in (None, 4, 99):
        encode(number_inputs(["one"]), InputOptions(max_tokens=max_tokens))
    assert tokenize.limits == [10, 4, 10]


@pytest.mark.parametrize("has_type_ids", [False, True])
def test_segment_ids_are_kept_for_models_that_take_them(has_type_ids: bool) -> None:
    (item,) = make_encoder(has_type_ids=has_type_ids)(number_inputs(["one"]), InputOptions())
    assert (item.type_ids is not None) == has_type_ids


def test_a_text_must_be_longer_than_the_prompt_that_pooling_excludes() -> None:
    encode = make_encoder(count_prompt_tokens=len)
    (item,) = encode([RequestInput("x", 3)], InputOptions(prompt="query: "))
    assert item.spec.prompt_length == 7
    with pytest.raises(BadInput, match="all of them the prompt's") as caught:
        encode([RequestInput("x", 2), RequestInput("", 3)], InputOptions(prompt="query: "))
    assert caught.value.position == 3
    with pytest.raises(BadInput, match="cannot be cut on the left"):
        encode([RequestInput("x", 3)], InputOptions(prompt="query: ", truncation="left"))


@pytest.mark.parametrize("attend", [False, True])
def test_a_short_query_is_expanded(attend: bool) -> None:
    encode = make_encoder(expansion=Expansion(length=5, token_id=99, attend_to_expansion=attend))
    short, long = encode(number_inputs(["abc", "abcdef"]), InputOptions())
    assert short.token_ids.tolist() == [0, 1, 2, 99, 99]
    assert short.num_attended_tokens == (None if attend else 3)
    assert long.token_ids.tolist() == list(range(6))
    assert long.num_attended_tokens is None


def make_word_tokenizer() -> FastTokenizer:
    words = ("[UNK]", "one", "two", "three", "query:")
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return FastTokenizer(tokenizer)


def test_passages_are_encoded_as_one_text_with_spans() -> None:
    encode = make_encoder(tokenize=make_word_tokenizer(), has_pooling=True)
    passages = RequestInput(LateChunkingInput(("one two ", "three")), 5)
    (item,) = encode([passages], InputOptions(outputs=("chunks",)))
    assert item.token_ids.tolist() == [1, 2, 3]
    assert item.spans == ((0, 2), (2, 3))
    assert item.position == 5
    with pytest.raises(InputTooLong, match="has 3 tokens with all passages, the limit is 2") as caught:
        encode([passages], InputOptions(outputs=("chunks",), max_tokens=2))
    assert caught.value.position == 5


@pytest.mark.parametrize("options", [{"has_pooling": True}, {"tokenize": make_word_tokenizer()}])
def test_passages_need_pooling_and_offsets(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="late chunking needs a model with a pooling module"):
        make_encoder(**options)(number_inputs([LateChunkingInput(("one",))]), InputOptions())


class Preprocessor:
    """Stands for a model of sentence-transformers: its preprocessing makes a token per character."""

    def __init__(self, **extra: Any) -> None:
        self._extra = extra

    def __getitem__(self, index: int) -> object:
        return object()

    def preprocess(self, inputs: list[Any], *, prompt: str | None, task: str | None) -> dict[str, Any]:
        if not isinstance(inputs[0], str):
            return {"pixels": torch.ones(1, 3), "modality": "image", "task": task}
        length = len((prompt or "") + inputs[0])
        return {"input_ids": torch.arange(length)[None], "task": task, **self._extra}


def make_processor_encoder(model: Any, **options: Any) -> ProcessorEncoder:
    defaults: dict[str, Any] = {"lock": None, "max_tokens": 10, "count_prompt_tokens": lambda prompt: 0}
    return ProcessorEncoder(model=model, **(defaults | options))


def test_features_are_arrays_with_what_the_spec_holds_left_out() -> None:
    encode = make_processor_encoder(
        Preprocessor(prompt_length=2, ignored="text"), task="query", spec_task="route"
    )
    (item,) = encode([RequestInput("abc", 6)], InputOptions(prompt="q "))
    assert item.position == 6
    assert item.features is not None
    assert item.features.keys() == {"input_ids"}
    assert item.token_ids.tolist() == list(range(5))
    assert (item.spec.task, item.spec.prompt_length, item.spec.modality) == ("route", 2, "text")


def test_an_image_without_token_ids_counts_a_fixed_number() -> None:
    encode = make_processor_encoder(Preprocessor())
    image = ImageInput(np.zeros((2, 2, 3), dtype=np.uint8))
    (item,) = encode(number_inputs([image]), InputOptions(truncation="left"))
    assert item.spec.modality == "image"
    assert item.num_tokens == 256
    assert item.token_ids.shape == (0,)


@pytest.mark.parametrize(
    ("value", "options", "words"),
    [
        (TokenIdsInput((1,)), InputOptions(), "consists of token ids"),
        ("abc", InputOptions(truncation="right"), "cuts texts itself, and not on the right"),
        ("abc" * 5, InputOptions(truncation="off"), "limit of 10 tokens"),
        ("", InputOptions(prompt="q "), "all of them the prompt's"),
    ],
)
def test_an_input_that_preprocessing_cannot_take_is_an_error(
    value: Any, options: InputOptions, words: str
) -> None:
    encode = make_processor_encoder(Preprocessor(), count_prompt_tokens=len)
    with pytest.raises(BadInput, match=words):
        encode(number_inputs([value]), options)


def encode_nothing(inputs: Sequence[RequestInput], options: InputOptions) -> list[Encoded]:
    return []


def encode_as(name: int) -> Any:
    return lambda inputs, options: [Encoded(np.array([name], dtype=np.int32))]


@pytest.mark.parametrize(
    ("task", "name"), [(None, 0), ("query", 1), ("unknown", 0)], ids=["default", "query", "unknown"]
)
def test_the_encoder_of_the_task_is_used(task: str | None, name: int) -> None:
    encode = TorchEncoder(text_encoders={None: encode_as(0), "query": encode_as(1)}, media_encoders={})
    (item,) = encode(number_inputs(["one"]), InputOptions(task=task))
    assert item.token_ids.tolist() == [name]


def test_a_modality_that_the_model_does_not_take_is_an_error() -> None:
    image = ImageInput(np.zeros((2, 2, 3), dtype=np.uint8))
    encode = TorchEncoder(text_encoders={None: encode_nothing}, media_encoders={})
    with pytest.raises(ModelNotDeployedError, match="does not take image inputs"):
        encode(number_inputs([image]), InputOptions())
    encode = TorchEncoder(text_encoders={}, media_encoders={Modality.image: {None: encode_as(3)}})
    (item,) = encode(number_inputs([image]), InputOptions(task="query"))
    assert item.token_ids.tolist() == [3]
