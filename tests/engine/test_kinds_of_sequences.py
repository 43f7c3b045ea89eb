"""What holds texts in Python: lists, tuples, arrays, Series, iterators; and what does not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from infinity_emb import EngineArgs, SyncEngineArray
from infinity_emb.engine import AsyncEmbeddingEngine, AsyncEngineArray
from infinity_emb.errors import BadInput
from tests.support.fake_engines import call, fake_args, fake_engine

TEXTS = ["a", "bcd", ""]
PIXELS = np.zeros((4, 4, 3), dtype=np.uint8)


class Series:
    """A stand-in for those of pandas and polars: it is iterable, and no Sequence."""

    def __init__(self, values: list[str]) -> None:
        self._values = values

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


KINDS: dict[str, Callable[[list[str]], Any]] = {
    "list": list,
    "tuple": tuple,
    "array of texts": np.array,
    "array of objects": lambda texts: np.array(texts, dtype=object),
    "Series": Series,
    "iterator": iter,
    "keys": lambda texts: dict.fromkeys(texts).keys().__iter__(),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_texts_come_in_every_ordered_collection(kind: str) -> None:
    """`df["text"].values`, tuples of images and generators were refused."""
    make = KINDS[kind]
    engine = fake_engine("kind=embedder")
    vectors, num_tokens = call(engine, "embed", sentences=make(TEXTS))
    assert ([int(vector[0]) for vector in vectors], num_tokens) == ([1, 3, 0], 4)
    ranked, _ = call(engine, "rerank", query="q", docs=make(TEXTS))
    assert sorted(each.document for each in ranked) == sorted(TEXTS)
    labelled, _ = call(fake_engine("kind=classifier"), "classify", sentences=make(TEXTS))
    assert len(labelled) == len(TEXTS)


@pytest.mark.parametrize("texts", ["abc", b"abc", {"a", "b"}, {"a": 1}, None, 3])
def test_what_is_no_ordered_collection_is_refused(texts: Any) -> None:
    engine = fake_engine("kind=embedder")
    with pytest.raises(BadInput, match="sentences must be a list of texts, not "):
        call(engine, "embed", sentences=texts)
    with pytest.raises(BadInput, match="docs must be a list of texts, not "):
        call(engine, "rerank", query="q", docs=texts)


@pytest.mark.parametrize("texts", [[], (), np.array([]), iter(())])
def test_an_empty_collection_is_refused(texts: Any) -> None:
    with pytest.raises(BadInput, match="sentences is empty"):
        call(fake_engine(), "embed", sentences=texts)


def test_an_item_that_is_no_text_is_named() -> None:
    with pytest.raises(BadInput, match=r"sentences\[1\] is float, not a text"):
        call(fake_engine(), "embed", sentences=np.array(["a", float("nan")], dtype=object))


@pytest.mark.parametrize("make", [list, tuple, iter])
def test_images_and_clips_come_in_lists_tuples_and_iterators(make: Callable[[Any], Any]) -> None:
    from PIL import Image

    engine = fake_engine("kind=embedder")
    vectors, _ = call(engine, "image_embed", images=make([Image.fromarray(PIXELS)]))
    assert len(vectors) == 1
    with pytest.raises(BadInput, match="audios is empty"):
        call(engine, "audio_embed", audios=make([]))


@pytest.mark.parametrize("array", [AsyncEngineArray, SyncEngineArray])
@pytest.mark.parametrize(
    "task",
    ["embed", "encode", "encode_passages", "rerank", "classify", "image_embed", "audio_embed"],
)
def test_the_methods_of_arrays_have_the_signature_of_the_engine_and_a_model(array: type, task: str) -> None:
    """They were `(*, model, **kwargs)`: no completion, and a typo was found by no type checker."""
    own = inspect.signature(getattr(array, task)).parameters
    engines = inspect.signature(getattr(AsyncEmbeddingEngine, task)).parameters
    assert list(own) == ["self", "model", *list(engines)[1:]]
    for name, parameter in list(engines.items())[1:]:
        assert (own[name].default, own[name].annotation) == (parameter.default, parameter.annotation)


def test_a_model_may_be_given_by_its_path_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`SyncEngineArray(["model"])` was an AttributeError, and a text alone was a model for each letter."""
    seen: list[Any] = []
    engine = fake_engine()

    def load(args: Any) -> AsyncEmbeddingEngine:
        seen.append(args.model_name_or_path)
        return engine

    monkeypatch.setattr(AsyncEmbeddingEngine, "from_args", load)
    for given in (["org/model"], "org/model", EngineArgs("org/model"), (EngineArgs("org/model"),)):
        AsyncEngineArray.from_args(given)
    assert seen == ["org/model"] * 4


def test_names_that_public_code_imports_exist() -> None:
    """RunPod's worker begins with the first line; the others stand in annotations."""
    from infinity_emb.engine import AsyncEngineArray, EngineArgs
    from infinity_emb.primitives import (
        AudioInputType,
        EmbeddingReturnType,
        ImageClassType,
        ModelCapabilites,
        ReRankReturnType,
    )

    names = (AudioInputType, EmbeddingReturnType, ImageClassType, ModelCapabilites, ReRankReturnType)
    assert None not in names
    assert AsyncEngineArray.from_args([fake_args()])
    args = EngineArgs(vector_disk_cache_path="")
    assert args.vector_disk_cache_path == ""  # type: ignore[attr-defined]  # the default of an InitVar
