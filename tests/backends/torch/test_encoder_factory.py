"""Encoders have the limits and prompts of their task."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

from infinity_emb.backends.torch.encoder_factory import EncoderFactory, Task, make_fast_tokenizer
from infinity_emb.backends.torch.encoders import ProcessorEncoder, TokenEncoder
from infinity_emb.errors import BadInput, InputTooLong
from infinity_emb.items import InputOptions, number_inputs
from infinity_emb.preprocessing.fast_tokenizer import FastTokenizer
from infinity_emb.preprocessing.slow_tokenizer import SlowTokenizer
from tests.support.small_models import save_small_model

pytestmark = pytest.mark.model

DEFAULT, QUERY = Task(None, None), Task("query", None)


def load(folder: Path, **options: Any) -> tuple[EncoderFactory, Any]:
    model = SentenceTransformer(str(save_small_model(folder, "bert", **options)), device="cpu")
    return EncoderFactory(model, threading.Lock()), model[0]


def make_both(
    factory: EncoderFactory, transformer: Transformer, task: Task
) -> list[TokenEncoder | ProcessorEncoder]:
    tokenizer = make_fast_tokenizer(transformer)
    return [
        factory.make_token_encoder(task, transformer, tokenizer),
        factory.make_processor_encoder(task, transformer),
    ]


def test_both_encoders_have_the_limit_of_the_task(tmp_path: Path) -> None:
    factory, transformer = load(tmp_path)
    transformer.query_length = 10
    text, options = number_inputs(["word1 " * 12]), InputOptions(truncation="off")
    for encode in make_both(factory, transformer, QUERY):
        with pytest.raises(InputTooLong, match="10"):
            encode(text, options)
    for encode in make_both(factory, transformer, DEFAULT):
        (item,) = encode(text, options)
        assert item.num_tokens == 14


def test_both_encoders_count_the_prompt_that_pooling_excludes(tmp_path: Path) -> None:
    factory, transformer = load(tmp_path, include_prompt=False, max_seq_length=10)
    text = number_inputs(["word1"])
    for encode in make_both(factory, transformer, DEFAULT):
        (item,) = encode(text, InputOptions(prompt="word2 word3 "))
        assert item.spec.prompt_length == 3
        encode = replace(encode, count_prompt_tokens=lambda prompt: 10)
        with pytest.raises(BadInput, match="all of them the prompt's") as caught:
            encode(text, InputOptions(prompt="word2 " * 20))
        assert caught.value.position == 0


def test_a_prompt_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factory, transformer = load(tmp_path, include_prompt=False)
    encode = factory.make_token_encoder(DEFAULT, transformer, make_fast_tokenizer(transformer))
    preprocess = Mock(wraps=transformer.preprocess)
    monkeypatch.setattr(transformer, "preprocess", preprocess)
    for _ in range(3):
        encode(number_inputs(["word1"]), InputOptions(prompt="word2 "))
    preprocess.assert_called_once_with([{"text": "word2 "}])


def test_a_chat_template_is_tokenized_by_the_model(tmp_path: Path) -> None:
    factory, transformer = load(tmp_path)
    tokenizer = make_fast_tokenizer(transformer)
    encode = factory.make_token_encoder(DEFAULT, transformer, tokenizer)
    assert isinstance(encode.tokenize, FastTokenizer)
    assert isinstance(factory.make_token_encoder(DEFAULT, transformer, None).tokenize, SlowTokenizer)
    transformer.modality_config |= {"message": {"method": "forward", "method_output_name": None}}
    encode = factory.make_token_encoder(DEFAULT, transformer, tokenizer)
    assert isinstance(encode.tokenize, SlowTokenizer)


def test_a_tokenizer_that_the_library_does_not_know_has_no_fast_form() -> None:
    transformer: Any = type("Module", (), {"tokenizer": object()})()
    assert make_fast_tokenizer(transformer) is None
