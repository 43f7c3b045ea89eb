"""A text that is a URL or a path stays a text: nothing is opened, nothing is fetched.

sentence-transformers takes a bare text for an image, a video or a sound where it looks like one and the model
takes such a thing. The texts of a server come from strangers.
"""

from __future__ import annotations

import builtins
import socket
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoModelForCausalLM

from infinity_emb.backends.torch.st_introspection import count_prompt_tokens
from infinity_emb.backends.torch.st_preprocessing import preprocess
from infinity_emb.items import Pair
from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import load_embedder, load_reranker
from tests.parity.serving import assert_same_scores, assert_same_vectors
from tests.parity.test_language_model_rerankers import TEMPLATE
from tests.support.small_models import (
    HIDDEN_SIZE,
    save_network,
    save_pipeline,
    save_small_classifier,
    save_small_model,
    save_small_yes_no_reranker,
)
from tests.support.small_models.media import save_clip, save_siglip

pytestmark = [
    pytest.mark.model,
    # transformers' default configurations name start and end tokens outside of these small vocabularies.
    pytest.mark.filterwarnings("ignore"),
]

ADDRESSES = [
    "https://example.com/cat.png",
    "http://127.0.0.1:1/cat.JPG",
    "https://example.com/sound.mp3",
    "https://www.youtube.com/watch?v=x",
    "data:image/png;base64,iVBORw0KGgo=",
    "word5 word6",
]


@pytest.fixture
def texts_of_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses and paths of files that exist; whoever touches them fails the test."""
    files = [tmp_path / "secret.png", tmp_path / "secret.mp3", tmp_path / "secret.mp4"]
    Image.fromarray(np.full((40, 40, 3), 200, dtype=np.uint8)).save(files[0])
    for file in files[1:]:
        file.write_bytes(b"secret")
    real_open = builtins.open

    def guarded_open(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file) in map(str, files):
            pytest.fail(f"the text {file} was opened")
        return real_open(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", guarded_open)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("a text was opened as an image"))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("a text was fetched"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_, **__: pytest.fail("a text was connected to"))
    return [*ADDRESSES, *map(str, files)]


def save_template_model(folder: Path) -> Path:
    path = save_network(folder / "model", "qwen3", AutoModelForCausalLM)
    (path / "chat_template.jinja").write_text(TEMPLATE.replace("'query'", "'user'"))
    return path


def save_router(folder: Path, *, text_modules: list[Any]) -> Path:
    """Texts one way, images another."""
    images = SentenceTransformer(str(save_clip(folder / "clip")), device="cpu")
    router = Router(
        {"text": text_modules, "image": list(images)},
        route_mappings={(None, "text"): "text", (None, "image"): "image"},
    )
    return save_pipeline(folder / "router", [router])


def save_plain_router(folder: Path) -> Path:
    bert = SentenceTransformer(str(save_small_model(folder / "bert", "bert")), device="cpu")
    return save_router(folder, text_modules=list(bert))


def save_template_router(folder: Path) -> Path:
    transformer = Transformer(str(save_template_model(folder)), max_seq_length=256)
    return save_router(folder, text_modules=[transformer, Pooling(HIDDEN_SIZE, "lasttoken")])


@pytest.mark.parametrize(
    "save",
    [
        lambda folder: save_small_model(folder, "bert"),
        save_clip,
        save_siglip,
        save_template_model,
        save_plain_router,
        save_template_router,
    ],
    ids=["bert", "clip", "siglip", "chat template", "router", "router with chat template"],
)
def test_an_embedder_reads_addresses_and_paths(
    save: Any, serve: Serve, tmp_path_factory: Any, texts_of_strangers: list[str]
) -> None:
    path = save(tmp_path_factory.mktemp("model"))
    actual = serve(path).embed(texts_of_strangers)
    model = load_embedder(path)
    expected = [model.encode([{"text": text}], show_progress_bar=False)[0] for text in texts_of_strangers]
    assert_same_vectors(actual, np.array(expected))


@pytest.mark.parametrize("save", [save_clip, save_siglip, save_template_model, save_plain_router])
def test_a_prompt_that_is_an_address_or_a_path_is_read(
    save: Any, serve: Serve, tmp_path_factory: Any, texts_of_strangers: list[str]
) -> None:
    path = save(tmp_path_factory.mktemp("model"))
    served, model = serve(path), load_embedder(path)
    actual, expected = [], []
    for prompt in texts_of_strangers:
        actual.append(served.embed(["word7"], prompt=prompt)[0])
        if save is save_template_model:  # the template puts it where it likes
            expected.append(model.encode([{"text": "word7"}], prompt=prompt, show_progress_bar=False)[0])
        else:
            expected.append(model.encode([{"text": f"{prompt}word7"}], show_progress_bar=False)[0])
    assert_same_vectors(np.array(actual), np.array(expected))


def test_the_slow_way_reads_a_prompt_that_is_an_address_or_a_path(
    tmp_path: Path, texts_of_strangers: list[str]
) -> None:
    clip = SentenceTransformer(str(save_clip(tmp_path / "clip")), device="cpu")
    bert = SentenceTransformer(str(save_small_model(tmp_path / "bert", "bert")), device="cpu")  # takes pairs
    for prompt in texts_of_strangers:
        for model, given, read in (
            (clip, "word7", {"text": f"{prompt}word7"}),
            (bert, Pair("word7", "word8"), (f"{prompt}word7", "word8")),
        ):
            actual = preprocess(model, given, prompt=prompt, task=None)["input_ids"]
            assert actual.tolist() == model.preprocess([read])["input_ids"].tolist()


def test_the_tokens_of_a_prompt_are_counted_without_opening_it(
    tmp_path: Path, texts_of_strangers: list[str]
) -> None:
    """As many as the same prompt has where it is no address, to which sentence-transformers' own count is."""
    transformer: Any = SentenceTransformer(str(save_clip(tmp_path)), device="cpu")[0]
    for prompt in texts_of_strangers:
        ids = transformer.tokenizer(prompt, truncation=True)["input_ids"]
        assert count_prompt_tokens(transformer, prompt) == len(ids) - 1  # less the end token
    assert count_prompt_tokens(transformer, "word9 word10 ") == transformer._get_prompt_length(
        "word9 word10 "
    )


@pytest.mark.parametrize("has_template", [True, False])
def test_a_reranker_reads_addresses_and_paths(
    has_template: bool, serve: Serve, tmp_path_factory: Any, texts_of_strangers: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("model") / "small-reranker"
    if has_template:
        path = save_small_yes_no_reranker(folder, "qwen3", chat_template=TEMPLATE)
    else:
        path = save_small_classifier(folder, "bert")
    served, model = serve(path), load_reranker(path)
    for query in (texts_of_strangers[0], texts_of_strangers[-3]):
        expected = references.scores(model, query, texts_of_strangers)
        assert_same_scores(served.scores(query, texts_of_strangers), expected)
