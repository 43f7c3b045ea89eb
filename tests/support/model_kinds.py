"""List a small model of every kind that the parity suite serves, with what it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import (
    CNN,
    Pooling,
    StaticEmbedding,
    WeightedLayerPooling,
)
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

from infinity_emb.items import AudioInput, ImageInput, Input, Pair
from tests.parity import (
    test_classifiers,
    test_embedders,
    test_language_model_rerankers,
    test_late_interaction,
    test_sparse_models,
    test_word_models,
)
from tests.support.small_models import (
    ARCHITECTURES,
    HIDDEN_SIZE,
    make_tokenizer,
    media,
    random_texts,
    save_network,
    save_pipeline,
    save_small_classifier,
    save_small_late_interaction,
    save_small_m3,
    save_small_model,
    save_small_router,
    save_small_splade,
    save_small_yes_no_reranker,
    save_sparse_encoder,
    splade_modules,
)

Family = Literal["embedder", "sparse", "multivector", "reranker", "classifier"]
TEXTS = random_texts(4, max_words=60)
QUERY = "word12 word7 word300"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of model.

    save: write its folder and return the path.
    media: images or clips that it reads, besides texts.
    """

    family: Family
    save: Callable[[Path], Path]
    media: Sequence[Input] = ()

    def list_inputs(self) -> list[Sequence[Input]]:
        """Return a batch of texts or pairs, and one of images or clips if the model reads any."""
        texts = [Pair(QUERY, text) for text in TEXTS] if self.family == "reranker" else TEXTS
        return [texts, self.media] if self.media else [texts]


def list_kinds() -> dict[str, Kind]:
    """Return a kind for each entry of the parity suite's tables, by name."""
    return {
        **_list_embedders(),
        **_list_word_models(),
        **_list_sparse(),
        **_list_multivector(),
        **_list_scorers(),
        **_list_media(),
    }


def _list_embedders() -> dict[str, Kind]:
    kinds = {
        f"embedder: {name}": Kind("embedder", partial(save_small_model, model_type=name))
        for name in (*ARCHITECTURES, "llama", "gpt2")
    }
    kinds |= {
        f"pooling: {mode}": Kind("embedder", partial(save_small_model, model_type="bert", pooling_mode=mode))
        for mode in test_embedders.MODES
    }
    kinds |= {
        f"module: {name}": Kind("embedder", partial(_save_pipeline, make=make))
        for name, make in test_embedders.PIPELINES.items()
    }
    # The last layer of four reads whole texts; that of three is a local one.
    deep = partial(save_small_model, model_type="modernbert", pooling_mode="cls", num_hidden_layers=4)
    return kinds | {
        "pooling: cls, modernbert": Kind("embedder", deep),
        "pooling: all at once, padded": Kind(
            "embedder", lambda folder: save_small_model(folder, "mpnet", pooling_mode=test_embedders.MODES)
        ),
        "module: average of layers": Kind("embedder", _save_average_of_layers),
        "module: convolution": Kind("embedder", lambda folder: _save_pipeline(folder, _make_convolution)),
        "pooling without the prompt": Kind(
            "embedder", lambda folder: save_small_model(folder, "bert", include_prompt=False)
        ),
        "static": Kind("embedder", _save_static),
        "M3": Kind("embedder", save_small_m3),
        "M3, padded": Kind("embedder", lambda folder: save_small_m3(folder, "mpnet")),
        "router": Kind("embedder", save_small_router),
    }


def _list_word_models() -> dict[str, Kind]:
    return {
        f"words: {name}": Kind("embedder", partial(_save_word_model, make=make))
        for name, make in test_word_models.LEGACY.items()
    }


def _list_sparse() -> dict[str, Kind]:
    kinds = {
        f"sparse: {name}, {strategy}, {activation}": Kind(
            "sparse",
            partial(save_small_splade, model_type=name, strategy=strategy, activation=activation),
        )
        for name, strategy, activation, _ in test_sparse_models.SPLADES
    }
    return kinds | {
        "sparse: largest weights": Kind("sparse", _save_largest_weights),
        "sparse: table": Kind(
            "sparse", lambda folder: save_sparse_encoder(folder, [test_sparse_models.static_embedding()])
        ),
        "sparse: autoencoder": Kind("sparse", _save_autoencoder),
        "sparse: router": Kind("sparse", _save_sparse_router),
    }


def _list_multivector() -> dict[str, Kind]:
    return {
        f"multivector: {name}": Kind(
            "multivector",
            partial(save_small_late_interaction, model_type=model_type, **options),
        )
        for name, (model_type, options, _) in test_late_interaction.MODELS.items()
    }


def _list_scorers() -> dict[str, Kind]:
    kinds = {
        f"reranker: {name}": Kind("reranker", partial(save_small_classifier, model_type=name))
        for name in ARCHITECTURES
    }
    kinds |= {
        f"classifier: {name}": Kind(
            "classifier",
            partial(save_small_classifier, model_type=model_type, **({"num_labels": 3} | values)),
        )
        for name, (model_type, values, *_) in test_classifiers.MODELS.items()
    }
    kinds |= {
        f"yes or no: {name}{', chat template' if has_template else ''}": Kind(
            "reranker",
            partial(_save_yes_no_reranker, model_type=name, has_template=has_template),
        )
        for name, has_template in test_language_model_rerankers.MODELS
    }
    deep = partial(save_small_classifier, model_type="modernbert", num_hidden_layers=4)
    return kinds | {
        "reranker: modernbert of four layers": Kind("reranker", deep),
        "reranker: separate modules": Kind("reranker", _save_head_of_modules),
    }


def _list_media() -> dict[str, Kind]:
    images = [ImageInput(_to_pixels(image)) for image in media.random_images(3)]
    clips = [AudioInput(samples) for samples in media.sine_waves(2)]
    return {
        "images: CLIP": Kind("embedder", media.save_clip, images),
        "images: SigLIP": Kind("embedder", media.save_siglip, images),
        "images: ColPali": Kind("multivector", media.save_colpali, images),
        "images: ColQwen2": Kind("multivector", media.save_colqwen, images),
        "audio: CLAP": Kind("embedder", media.save_clap, clips),
    }


def _to_pixels(image: Any) -> Any:
    return np.asarray(image.convert("RGB"))


def _make_transformer(folder: Path, **options: Any) -> Transformer:
    module: Transformer = Transformer(
        str(save_network(folder / "backbone", "bert")), max_seq_length=256, **options
    )
    return module


def _save_pipeline(folder: Path, make: Callable[[], list[torch.nn.Module]]) -> Path:
    return save_pipeline(folder / "model", [_make_transformer(folder), *make()])


def _make_convolution() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    return [CNN(HIDDEN_SIZE, 8, kernel_sizes=[1, 3]), Pooling(16)]


def _save_average_of_layers(folder: Path) -> Path:
    transformer = _make_transformer(folder, config_kwargs={"output_hidden_states": True})
    transformer.model.config.output_hidden_states = True
    weights = torch.nn.Parameter(torch.tensor([0.5, 2.0, 1.0]))
    layers = WeightedLayerPooling(HIDDEN_SIZE, num_hidden_layers=3, layer_start=1, layer_weights=weights)
    return save_pipeline(folder / "model", [transformer, layers, Pooling(HIDDEN_SIZE)])


def _save_word_model(folder: Path, make: Callable[[], list[torch.nn.Module]]) -> Path:
    return save_pipeline(folder / "model", make())


def _save_yes_no_reranker(folder: Path, model_type: str, *, has_template: bool) -> Path:
    template = test_language_model_rerankers.TEMPLATE if has_template else None
    return save_small_yes_no_reranker(folder / "small-reranker", model_type, chat_template=template)


def _save_static(folder: Path) -> Path:
    torch.manual_seed(0)
    static = StaticEmbedding(make_tokenizer("roberta")._tokenizer, embedding_dim=24)
    return save_pipeline(folder, [static, Normalize()])


def _save_largest_weights(folder: Path) -> Path:
    modules = splade_modules(folder / "backbone", "bert")
    return save_sparse_encoder(folder / "model", modules, max_active_dims=7)


def _save_autoencoder(folder: Path) -> Path:
    torch.manual_seed(0)
    autoencoder = SparseAutoEncoder(HIDDEN_SIZE, hidden_dim=128, k=4, k_aux=32, normalize=True)
    modules = [_make_transformer(folder), Pooling(HIDDEN_SIZE), autoencoder]
    return save_sparse_encoder(folder / "model", modules)


def _save_sparse_router(folder: Path) -> Path:
    documents = splade_modules(folder / "backbone", "bert")
    router = Router.for_query_document([test_sparse_models.static_embedding()], documents)
    return save_sparse_encoder(folder / "model", [router])


def _save_head_of_modules(folder: Path) -> Path:
    transformer = _make_transformer(folder)
    torch.manual_seed(0)
    head = Dense(HIDDEN_SIZE, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
    CrossEncoder(modules=[transformer, Pooling(HIDDEN_SIZE), head], device="cpu").save_pretrained(
        str(folder / "model")
    )
    return folder / "model"
