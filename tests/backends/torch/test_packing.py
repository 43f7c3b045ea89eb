"""A transformer is packed only where the comparison with single texts allows it; choosing changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from infinity_emb.backends.torch import packed_attention, packed_heads, packing
from infinity_emb.backends.torch.forward import TorchModel
from infinity_emb.backends.torch.input_layout import InputLayout
from infinity_emb.backends.torch.layout_check import compute_vectors
from infinity_emb.backends.torch.packed_heads import PackedBase
from infinity_emb.backends.torch.packing import (
    PACKED_FEATURES,
    LayoutChoice,
    choose_layout,
    get_padded_layout,
    install_packing,
)
from infinity_emb.items import TEXT_SPEC
from tests.support.small_models import save_small_classifier, save_small_model

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_classifier(tmp_path_factory.mktemp("bert_classifier"), "bert")


@pytest.fixture
def model(bert: Path) -> Any:
    return SentenceTransformer(str(bert), device="cpu").eval()


@pytest.fixture
def scorer(classifier: Path) -> Any:
    return CrossEncoder(str(classifier), device="cpu").eval()


def choose(model: Any) -> LayoutChoice:
    dense_name = "scores" if isinstance(model, CrossEncoder) else "sentence_embedding"
    torch_model = TorchModel(model=model, layouts={}, dense_name=dense_name)
    return choose_layout(torch_model, model[0], TEXT_SPEC, max_tokens=256)


def describe_state(model: Any) -> tuple[Any, ...]:
    transformer = model[0]
    return transformer.model.config._attn_implementation, set(transformer.model_forward_params or ())


@pytest.mark.parametrize(("name", "reads"), [("model", "flat"), ("scorer", "first")])
def test_choosing_leaves_the_model_unchanged_and_installing_switches_it(
    request: pytest.FixtureRequest, name: str, reads: str
) -> None:
    model = request.getfixturevalue(name)
    before = describe_state(model)
    choice = choose(model)
    assert describe_state(model) == before
    assert (choice.layout.form, choice.layout.reads) == ("packed", reads)
    assert choice.attention.value == "packed"
    assert choice.kernel == packed_attention.GROUPED

    install_packing(model[0], choice.kernel, choice.layout)
    assert describe_state(model)[0] == packed_attention.GROUPED
    assert any(isinstance(module, PackedBase) for module in model.modules()) == (reads != "flat")


def test_packed_features_are_passed_on_to_a_network_that_does_not_name_them(model: Any) -> None:
    model[0].model_forward_params = {"input_ids"}
    install_packing(model[0], packed_attention.GROUPED, InputLayout(form="packed"))
    assert model[0].model_forward_params == {"input_ids", *PACKED_FEATURES}


def compute_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(torch_model: Any, layout: Any, batch: Any) -> Any:
        vectors = compute_vectors(torch_model, layout, batch)
        return np.roll(vectors, 1, axis=1) if layout.form == "packed" else vectors

    monkeypatch.setattr(packing, "compute_vectors", change)


def fail_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise ValueError("no kernel\nof this name")

    monkeypatch.setattr(packing, "install_packing", fail)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (compute_wrongly, "the difference to single texts is"),
        (fail_to_install, "ValueError: no kernel of this name"),
    ],
)
def test_a_model_that_packing_changes_is_padded_and_says_why(
    model: Any, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None], reason: str
) -> None:
    before = describe_state(model)
    fault(monkeypatch)
    choice = choose(model)
    assert choice.layout == get_padded_layout(model[0])
    assert choice.kernel is None
    assert choice.attention.value == "padded"
    assert reason in choice.attention.reason
    assert describe_state(model) == before


def test_a_head_on_a_network_without_a_name_is_padded(scorer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_heads, "wrap_base", lambda network: False)
    choice = choose(scorer)
    assert choice.attention.value == "padded"
    assert "has no name" in choice.attention.reason


def has_own_attention(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model[0].model), "is_backend_compatible", lambda self: False)


def has_a_tower(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    method = {"method": "get_text_features", "method_output_name": None}
    monkeypatch.setitem(model[0].modality_config, "text", method)


def has_another_task(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model[0], "transformer_task", "any-to-any")


def has_no_embeddings(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(type(model[0].model), "get_input_embeddings", fail)


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        (has_own_attention, "bert has its own attention code"),
        (has_a_tower, "its texts do not go through the model's own forward"),
        (has_another_task, "its task is any-to-any"),
        (has_no_embeddings, "it has no embedding table"),
    ],
)
def test_a_model_that_is_not_tried_says_why(
    model: Any, monkeypatch: pytest.MonkeyPatch, obstacle: Callable[..., None], reason: str
) -> None:
    obstacle(model, monkeypatch)
    choice = choose(model)
    assert choice.attention.value == "padded"
    assert reason in choice.attention.reason


@pytest.mark.parametrize(
    ("methods", "is_padded"),
    [
        ({"image": "forward"}, True),
        ({"audio": "forward"}, True),
        ({"message": "forward", ("image", "text"): "forward"}, True),
        ({"image": "get_image_features"}, False),
        ({"message": "forward"}, False),
    ],
    ids=str,
)
def test_a_network_that_reads_media_like_its_texts_keeps_its_own_attention(
    model: Any, methods: dict[Any, str], is_padded: bool
) -> None:
    model[0].modality_config |= {name: {"method": method} for name, method in methods.items()}
    choice = choose(model)
    assert choice.attention.value == choice.layout.form == ("padded" if is_padded else "packed")
    assert ("images or audio" in choice.attention.reason) == is_padded


def test_a_classifier_is_padded_with_the_token_that_its_head_skips(scorer: Any) -> None:
    scorer[0].model.config.pad_token_id = 7
    layout = get_padded_layout(scorer[0])
    assert (layout.pad_token_id, layout.skipped_token_id) == (7, 7)
    assert layout.has_type_ids


def test_only_half_precision_on_a_gpu_is_tried_with_the_kernel_of_torch() -> None:
    assert packing.list_kernels(torch.nn.Linear(1, 1)) == (packed_attention.GROUPED,)
    assert packing.list_kernels(torch.nn.Linear(1, 1).half()) == (packed_attention.GROUPED,)
