"""The fast encoder, packing and padding are selected only if they give the model's own vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from infinity_emb.backends.torch import packing, prepared_model
from infinity_emb.backends.torch.encoders import ProcessorEncoder, TokenEncoder, TorchEncoder
from infinity_emb.backends.torch.forward import TorchModel
from infinity_emb.backends.torch.prepared_model import PreparedModel, prepare_model
from infinity_emb.errors import BadInput
from infinity_emb.items import Encoded
from infinity_emb.preprocessing.fast_tokenizer import FastTokenizer
from infinity_emb.types import Modality, ModelKind
from tests.support.small_models import save_small_model

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture
def model(bert: Path) -> SentenceTransformer:
    return SentenceTransformer(str(bert), device="cpu").eval()


def prepare(model: Any) -> PreparedModel:
    return prepare_model(TorchModel(model=model, layouts={}), ModelKind.embedder, ("dense",))


def test_a_model_that_can_be_packed_gets_the_fast_encoder(model: SentenceTransformer) -> None:
    prepared = prepare(model)
    assert isinstance(prepared.encode, TokenEncoder)
    assert prepared.fast_tokenizer is prepared.encode.tokenize
    assert prepared.attention.value == "packed"
    assert {layout.form for layout in prepared.torch_model.layouts.values()} == {"packed"}


def change_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = TokenEncoder.__call__

    def change(self: TokenEncoder, *args: Any) -> list[Encoded]:
        return [Encoded(item.token_ids[::-1], spec=item.spec) for item in encode(self, *args)]

    monkeypatch.setattr(TokenEncoder, "__call__", change)


def refuse_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: TokenEncoder, *args: Any) -> list[Encoded]:
        raise BadInput("is not for this tokenizer")

    monkeypatch.setattr(TokenEncoder, "__call__", refuse)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(change_tokens, "the tokens differ"), (refuse_texts, "is not for this tokenizer")],
)
def test_a_fast_encoder_that_reads_other_tokens_is_not_used(
    model: SentenceTransformer,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    fault(monkeypatch)
    prepared = prepare(model)
    assert isinstance(prepared.encode, ProcessorEncoder)
    assert prepared.fast_tokenizer is None
    assert f"tokens: {reason}" in prepared.attention.reason


@pytest.mark.parametrize("is_caught", [False, True], ids=["exact", "padding changes vectors"])
def test_a_model_on_which_padding_shows_gets_no_padding(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch, is_caught: bool
) -> None:
    """The model attends to padding; so no two of its texts of different lengths may share a batch."""
    network: Any = model[0].model
    monkeypatch.setattr(type(network), "is_backend_compatible", lambda self: False)
    if is_caught:
        forward = network.forward
        monkeypatch.setattr(
            network, "forward", lambda attention_mask, **kwargs: forward(attention_mask=None, **kwargs)
        )
        transformer: Any = model[0]
        transformer.model_forward_params = {"input_ids", "attention_mask", "token_type_ids"}
    prepared = prepare(model)
    layout = prepared.torch_model.layouts[None]
    assert isinstance(prepared.encode, TokenEncoder)
    assert (layout.form, layout.may_pad) == ("padded", not is_caught)
    assert ("tokens in padded batches: the rows differ" in prepared.attention.reason) == is_caught


def test_a_model_that_cannot_compute_the_probes_is_an_error(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(ZeroDivisionError):
        prepare(model)


def test_a_router_has_an_encoder_for_each_route(bert: Path) -> None:
    routes: dict[str, list[Any]] = {
        name: list(SentenceTransformer(str(bert), device="cpu")) for name in ("query", "document")
    }
    model = SentenceTransformer(modules=[Router(routes, allow_empty_key=False)], device="cpu").eval()
    prepared = prepare(model)
    assert isinstance(prepared.encode, TorchEncoder)
    assert prepared.text_encoders.keys() == {"query", "document"}
    assert prepared.torch_model.layouts.keys() == {"query", "document", None}
    query = prepared.text_encoders["query"]
    assert isinstance(query, TokenEncoder)
    assert query.task == "query"


def test_a_static_model_is_a_bag_of_words() -> None:
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "one": 1}, unk_token="[UNK]"))
    tokenizer.enable_truncation(7, direction="left")
    static = StaticEmbedding(tokenizer, embedding_weights=np.eye(2, dtype=np.float32))
    prepared = prepare(SentenceTransformer(modules=[static], device="cpu"))
    assert prepared.torch_model.layouts[None].form == "bag"
    assert prepared.attention.value == "none"
    encode = prepared.encode
    assert isinstance(encode, TokenEncoder)
    assert isinstance(encode.tokenize, FastTokenizer)
    assert encode.tokenize.truncation_side == "left"
    assert encode.max_tokens == 7


def test_nothing_is_prepared_for_texts_of_a_model_without_texts(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SentenceTransformer, "modalities", property(lambda self: ["image"]))
    prepared = prepare(model)
    assert prepared.text_encoders == {}
    assert prepared.fast_tokenizer is None
    assert isinstance(prepared.encode, TorchEncoder)
    assert prepared.encode.media_encoders.keys() == {Modality.image}


def test_packing_is_installed_once_for_tasks_that_share_a_transformer(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_layout = Mock(wraps=packing.choose_layout)
    monkeypatch.setattr(prepared_model, "choose_layout", choose_layout)
    modules = list(SentenceTransformer(str(bert), device="cpu"))
    routes: dict[str, list[Any]] = {"query": modules, "document": modules}
    model = SentenceTransformer(modules=[Router(routes, default_route="document")], device="cpu").eval()
    prepared = prepare(model)
    assert [call.args[1] for call in choose_layout.call_args_list] == [modules[0]]
    assert prepared.attention.value == "packed"


def test_the_weights_stay_as_they_are(model: SentenceTransformer) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    prepare(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
