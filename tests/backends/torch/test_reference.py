"""The reference against the libraries that it stands for, asked for the same input by hand."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import pipeline

from infinity_emb.backends.torch.reference import Reference, load_reference
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import BackendFailed, BadInput, StartupError
from infinity_emb.hub.resolve import resolve_model_files
from infinity_emb.items import AudioInput, ImageInput, Pair
from tests.support.small_models import (
    HIDDEN_SIZE,
    TOKEN_DIM,
    VOCABULARY_SIZE,
    random_texts,
    save_network,
    save_pipeline,
    save_small_classifier,
    save_small_late_interaction,
    save_small_model,
    save_small_splade,
)
from tests.support.small_models.media import SAMPLING_RATE, random_images, save_clap, save_clip, sine_waves

pytestmark = pytest.mark.model

TEXT, OTHER = random_texts(2, max_words=20)
PROMPTS = {"query": "word1 word2 ", "document": "word3 "}


def reference_of(path: Path, **options: Any) -> Reference:
    args = EngineArgs(model_name_or_path=str(path), device="cpu", **options)
    return load_reference(args, resolve_model_files(str(path)))


@pytest.mark.parametrize("task", [None, "query", "document"])
def test_a_text_has_the_vector_of_its_task(tmp_path: Path, task: str | None) -> None:
    path = save_small_model(tmp_path, "bert", prompts=PROMPTS)
    model = SentenceTransformer(str(path), device="cpu")
    prompt = PROMPTS.get(task or "", "")
    assert np.array_equal(reference_of(path).embed(TEXT, task), model.encode(prompt + TEXT))


def test_a_model_that_was_saved_in_bfloat16_is_computed_in_float32(tmp_path: Path) -> None:
    path = save_small_model(tmp_path, "bert", dtype=torch.bfloat16)
    expected = SentenceTransformer(str(path), device="cpu").float().encode(TEXT)
    assert np.abs(reference_of(path).embed(TEXT) - expected).max() <= 1e-6


def test_the_pooling_that_was_asked_for_is_the_reference_s_too(tmp_path: Path) -> None:
    path = save_small_model(tmp_path, "bert")
    model: Any = SentenceTransformer(str(path), device="cpu")
    model[1].pooling_mode = "cls"
    assert np.array_equal(reference_of(path, pooling_method="cls").embed(TEXT), model.encode(TEXT))


def test_a_sparse_vector_has_a_value_for_each_word_of_the_vocabulary(tmp_path: Path) -> None:
    path = save_small_splade(tmp_path, "bert")
    model = SparseEncoder(str(path), device="cpu")
    reference = reference_of(path)
    expected = model.encode([TEXT], convert_to_sparse_tensor=False)[0].numpy()
    assert reference.embed(TEXT).shape == (VOCABULARY_SIZE,)
    assert np.array_equal(reference.embed(TEXT), expected)
    dot = model.similarity(model.encode_query([TEXT]), model.encode_document([OTHER])).item()
    assert reference.score(TEXT, [OTHER]) == pytest.approx(dot)


def test_a_late_interaction_model_has_a_vector_for_each_token(tmp_path: Path) -> None:
    path = save_small_late_interaction(tmp_path, "bert", prompts=PROMPTS)
    model = MultiVectorEncoder(str(path), device="cpu")
    reference = reference_of(path)
    rows = reference.embed(TEXT, "query")
    assert rows.shape == (len(f"{PROMPTS['query']}{TEXT}".split()) + 2, TOKEN_DIM)
    maxsim = (rows @ reference.embed(OTHER, "document").T).max(axis=1).sum()
    assert reference.score(TEXT, [OTHER]) == pytest.approx(maxsim, rel=1e-5)
    assert np.array_equal(rows, model.encode_query([TEXT], convert_to_numpy=True)[0])


def test_an_embedder_scores_by_its_similarity(tmp_path: Path) -> None:
    reference = reference_of(save_small_model(tmp_path, "bert", prompts=PROMPTS))
    cosine = reference.embed(TEXT, "query") @ reference.embed(OTHER, "document")
    scores = reference.score(TEXT, [TEXT, OTHER])
    assert scores.shape == (2,)
    assert scores[1] == pytest.approx(cosine, abs=1e-6)


def test_a_reranker_scores_as_cross_encoder_predicts(tmp_path: Path) -> None:
    path = save_small_classifier(tmp_path, "bert", num_labels=1)
    expected = CrossEncoder(str(path), device="cpu").predict([(TEXT, TEXT), (TEXT, OTHER)], batch_size=1)
    assert np.array_equal(reference_of(path).score(TEXT, [TEXT, OTHER]), expected)


@pytest.mark.parametrize("given", [TEXT, Pair(TEXT, OTHER)], ids=["text", "pair"])
def test_logits_of_texts_and_pairs_equal_those_of_transformers_pipeline(
    tmp_path: Path, given: str | Pair
) -> None:
    path = save_small_classifier(tmp_path, "bert", num_labels=3)
    classify: Any = pipeline("text-classification", str(path), top_k=None, device="cpu")
    inputs = {"text": TEXT} if isinstance(given, str) else {"text": TEXT, "text_pair": OTHER}
    expected = {each["label"]: each["score"] for each in classify(inputs, function_to_apply="none")}
    logits = reference_of(path).classify(given)
    assert np.abs(logits - [expected[f"LABEL_{number}"] for number in range(3)]).max() <= 1e-5


@pytest.mark.filterwarnings("ignore")  # the small vocabularies have no start and end token of transformers'
def test_an_image_is_embedded_by_its_pixels(tmp_path: Path) -> None:
    path = save_clip(tmp_path)
    image = random_images(1)[0]
    reference = reference_of(path)
    expected: Any = SentenceTransformer(str(path), device="cpu").encode([image])
    assert np.array_equal(reference.embed_media(ImageInput(np.asarray(image))), expected[0])
    assert reference.sampling_rate is None


@pytest.mark.filterwarnings("ignore")
def test_a_sound_is_embedded_at_the_model_s_rate(tmp_path: Path) -> None:
    path = save_clap(tmp_path)
    samples = sine_waves(1)[0]
    reference = reference_of(path)
    given: Any = {"array": samples, "sampling_rate": SAMPLING_RATE}
    expected: Any = SentenceTransformer(str(path), device="cpu").encode([given])
    assert np.array_equal(reference.embed_media(AudioInput(samples)), expected[0])
    assert reference.sampling_rate == SAMPLING_RATE


def test_what_sentence_transformers_refuses_is_a_bad_input(tmp_path: Path) -> None:
    """A router without a default route takes no text that is neither query nor document."""

    def route(name: str) -> list[Any]:
        backbone = save_network(tmp_path / name, "bert")
        return [Transformer(str(backbone)), Pooling(HIDDEN_SIZE, pooling_mode="mean")]

    router = Router({"query": route("queries"), "document": route("documents")}, allow_empty_key=False)
    reference = reference_of(save_pipeline(tmp_path / "model", [router, Normalize()]))
    with pytest.raises(BadInput, match=r"^sentence-transformers refuses it: Could not determine route"):
        reference.embed(TEXT)
    assert reference.embed(TEXT, "query").shape == (HIDDEN_SIZE,)


def test_what_a_model_raises_is_one_line_of_a_failed_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = reference_of(save_small_model(tmp_path, "bert"))

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory,\n  they say")

    monkeypatch.setattr(Transformer, "forward", fail)
    with pytest.raises(BackendFailed, match=r"raises RuntimeError: out of memory, they say$"):
        reference.embed(TEXT)


def test_the_library_is_named_with_its_version(tmp_path: Path) -> None:
    name, _, version = reference_of(save_small_model(tmp_path, "bert")).library.partition(" ")
    assert name == "sentence-transformers"
    assert f"{metadata.version('sentence-transformers')}.".startswith(f"{version}.")


def test_a_folder_that_cannot_be_loaded_is_a_start_up_error(tmp_path: Path) -> None:
    path = save_small_model(tmp_path, "bert")
    (path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(StartupError, match="is not a safetensors file; copy or download it again"):
        reference_of(path)
