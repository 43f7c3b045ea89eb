"""Which networks are converted, how near they are to torch, and what is refused; see tests/contract, too."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from transformers import AutoConfig, AutoModel, T5EncoderModel

from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.ctranslate2 import convert as ct2_conversion
from infinity_emb.backends.ctranslate2.network import Ct2Network
from infinity_emb.backends.ctranslate2.spec import explain_unsupported, make_spec
from infinity_emb.backends.registry import load_model
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import ModelTooLarge, StartupError
from infinity_emb.items import InputOptions, Pair, number_inputs
from infinity_emb.verify.verify import verify
from tests.parity.references import (
    load_embedder,
    load_late_interaction,
    load_reranker,
    raw_scores,
    token_vectors,
    vectors,
)
from tests.support.engine_home import engine_home
from tests.support.small_models import (
    ARCHITECTURES,
    random_texts,
    save_small_classifier,
    save_small_late_interaction,
    save_small_model,
    save_small_yes_no_reranker,
)
from tests.support.small_models.media import save_clip

# transformers' default configurations name start and end tokens outside of the small vocabularies.
pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]

TEXTS = [*random_texts(12, max_words=150), "word7", " ".join(["word3 word4"] * 200)]
MAX_DIFFERENCE = 2e-5


def args_of(folder: Path, **options: Any) -> EngineArgs:
    options = {"engine": "ctranslate2", "device": "cpu", "model_warmup": False, "threads": 1} | options
    return EngineArgs(model_name_or_path=str(folder), **options)


def rows_of(model: LoadedModel, inputs: Sequence[Any], *, replica: int = 0, **options: Any) -> Any:
    batch = model.encode(number_inputs(inputs), InputOptions(**options))
    (rows,) = model.replicas[replica].launch(batch).result().values()
    return rows


def assert_near(rows: Any, expected: Any) -> None:
    assert rows.shape == expected.shape
    assert np.abs(rows - expected).max() <= MAX_DIFFERENCE * max(1, np.abs(expected).max())
    assert np.ptp(expected, axis=0).max() > 1e-3, "the reference's rows are all alike"


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: Any) -> Iterator[Path]:
    with engine_home(tmp_path_factory) as folder:
        yield folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"), "bert")


@pytest.fixture(scope="module")
def converted(folder: Path) -> LoadedModel:
    """The model, whose conversion is in the cache from now on."""
    return load_model(args_of(folder, device_id=(0, 0), threads=2))


@pytest.fixture(scope="module")
def expected(folder: Path) -> Any:
    return vectors(load_embedder(folder).encode, TEXTS)


@pytest.fixture
def no_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise AssertionError("a network is converted")

    monkeypatch.setattr(ct2_conversion, "make_spec", fail)


# Architectures and kinds


def save_camembert(folder: Path) -> Path:
    """RoBERTa's files under another name; camembert's own tokenizer is not made of words."""
    path = save_small_model(folder, "roberta")
    config = path / "config.json"
    config.write_text(config.read_text().replace('"model_type": "roberta"', '"model_type": "camembert"'))
    assert Transformer(str(path)).config.model_type == "camembert"
    return path


@pytest.mark.parametrize(
    "save",
    [
        lambda folder: save_small_model(folder, "roberta"),
        lambda folder: save_small_model(folder, "roberta", pooling_mode="cls"),
        lambda folder: save_small_model(folder, "xlm-roberta"),
        lambda folder: save_small_model(folder, "distilbert"),
        save_camembert,
        lambda folder: save_small_model(folder, "t5"),
    ],
    ids=["roberta", "roberta by its first token", "xlm-roberta", "distilbert", "camembert", "t5"],
)
def test_each_architecture_answers_as_sentence_transformers_does(
    tmp_path: Path, save: Callable[[Path], Path]
) -> None:
    path = save(tmp_path)
    rows = rows_of(load_model(args_of(path)), TEXTS)
    assert_near(rows, vectors(load_embedder(path).encode, TEXTS))


def test_gated_layers_are_those_of_transformers(tmp_path: Path) -> None:
    """T5 1.1 has them; the T5 that sentence-transformers trained has not."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("t5", **ARCHITECTURES["t5"], feed_forward_proj="gated-gelu")
    network = T5EncoderModel(config).eval()
    ids = torch.randint(5, 512, (2, 100))
    with torch.inference_mode():
        make_spec(network).save(str(tmp_path))
        expected = network(input_ids=ids).last_hidden_state.numpy()
    encoder = ctranslate2.Encoder(str(tmp_path), intra_threads=1)
    rows = encoder.forward_batch(ids.tolist()).last_hidden_state
    assert_near(np.asarray(rows), expected)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "relu", "silu", "quick_gelu"])
def test_each_activation_is_the_one_of_transformers(tmp_path: Path, activation: str) -> None:
    path = save_small_classifier(tmp_path, "bert", hidden_act=activation)
    model = load_model(args_of(path))
    rows = rows_of(model, [Pair(TEXTS[0], text) for text in TEXTS])
    assert_near(rows[:, 0], raw_scores(load_reranker(path), TEXTS[0], TEXTS))


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "distilbert"])
def test_rerankers_keep_their_own_head(tmp_path: Path, model_type: str) -> None:
    """bert's segment ids tell the query from the document, and its head reads the pooler."""
    path = save_small_classifier(tmp_path, model_type)
    model = load_model(args_of(path))
    assert model.info.kind == "reranker"
    rows = rows_of(model, [Pair(TEXTS[0], text) for text in TEXTS])
    assert_near(rows[:, 0], raw_scores(load_reranker(path), TEXTS[0], TEXTS))


def test_late_interaction_models_answer_a_vector_per_token(tmp_path: Path) -> None:
    path = save_small_late_interaction(tmp_path, "bert")
    rows = rows_of(load_model(args_of(path)), TEXTS, task="document", outputs=("multivector",))
    expected = token_vectors(load_late_interaction(path).encode_document, TEXTS)
    assert [each.shape for each in rows] == [each.shape for each in expected]
    assert_near(np.concatenate(list(rows)), np.concatenate(expected))


def test_replicas_on_several_threads_answer_alike(converted: LoadedModel, expected: Any) -> None:
    """They share one encoder, which computes two batches at once."""
    assert len(converted.replicas) == 2
    differences: list[float] = []

    def ask(number: int) -> None:
        for _ in range(4):
            rows = rows_of(converted, TEXTS, replica=number % 2)
            differences.append(float(np.abs(rows - expected).max()))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(differences) == 16
    assert max(differences) <= MAX_DIFFERENCE


def test_more_threads_compute_the_same(folder: Path, expected: Any) -> None:
    assert_near(rows_of(load_model(args_of(folder, threads=3)), TEXTS), expected)


# What is told, and how near it is


def test_what_computes_and_how_near_it_is_to_torch_is_told(converted: LoadedModel) -> None:
    assert converted.info.dtype == "float32"
    assert converted.info.dtype_reason.startswith("CTranslate2's float32, difference to torch ")
    assert (converted.info.attention, converted.info.device) == ("padded", "cpu")
    assert converted.info.attention_reason == "CTranslate2 takes padded batches"


def test_int8_is_coarser_but_near(folder: Path, converted: LoadedModel, expected: Any) -> None:
    """The same folder serves it: CTranslate2 rounds the weights when it opens it."""
    model = load_model(args_of(folder, dtype="int8"))
    assert model.info.dtype == "int8"
    assert "int8_float32" in model.info.dtype_reason
    rows = rows_of(model, TEXTS)
    assert np.abs(rows - expected).max() > 1e-4
    assert (rows * expected).sum(axis=1).min() > 0.99


def test_int16_is_nearer(folder: Path, home: Path, expected: Any) -> None:
    """By MKL, which CTranslate2 takes on other CPUs than Intel's where it is told to before it starts."""
    code = """
import sys, ctranslate2, numpy as np
from tests.backends.ctranslate2.test_load import TEXTS, args_of, load_model, rows_of
if "int16" not in ctranslate2.get_supported_compute_types("cpu"):
    sys.exit(77)
model = load_model(args_of(sys.argv[1], dtype="int16"))
np.save(sys.argv[2], rows_of(model, TEXTS))
print(model.info.dtype, model.info.dtype_reason)
"""
    saved = folder / "rows.npy"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(saved)],
        env=os.environ | {"CT2_USE_MKL": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode == 77:
        pytest.skip("this CTranslate2 has no MKL")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("int16 CTranslate2's int16, difference to torch")
    assert np.abs(np.load(saved) - expected).max() < 5e-3


def test_a_network_that_answers_otherwise_than_torch_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path))

    def make_other_spec(network: Any) -> Any:
        changed = AutoModel.from_config(network.config)
        changed.load_state_dict(network.state_dict())
        changed.embeddings.position_embeddings.weight[0, 0] += 0.1
        return make_spec(changed)

    monkeypatch.setattr(ct2_conversion, "make_spec", make_other_spec)
    with pytest.raises(
        StartupError,
        match=r"what CTranslate2 computes of model .* differs from torch by .*e-0[1-3], the limit",
    ):
        load_model(args_of(folder))


def test_a_served_network_verifies(folder: Path, converted: LoadedModel) -> None:
    lines: list[str] = []
    checks = verify(args_of(folder), write_line=lines.append)
    assert all(check.is_passed for check in checks), "\n".join(lines)
    assert "embedder by ctranslate2 on cpu, float32, attention padded" in lines[0]


# The cache


def test_a_network_is_converted_once(
    folder: Path, converted: LoadedModel, expected: Any, no_conversion: None
) -> None:
    assert_near(rows_of(load_model(args_of(folder)), TEXTS), expected)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-4000] + b"\x3f" * 4000),
        lambda path: path.with_name("config.json").write_text("{"),
        lambda path: path.with_name("vocabulary.json").unlink(),
    ],
    ids=["cut", "empty", "weights", "config", "vocabulary"],
)
def test_a_damaged_conversion_is_made_again(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    expected: Any,
    damage: Callable[[Path], object],
) -> None:
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path))
    load_model(args_of(folder))
    (path,) = tmp_path.rglob("model.bin")
    damage(path)
    assert_near(rows_of(load_model(args_of(folder)), TEXTS), expected)
    assert "to CTranslate2 again, because" in caplog.text


def test_a_cache_that_cannot_be_written_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path / "file"))
    with pytest.raises(StartupError, match=r"cannot write to .*ctranslate2.*; set INFINITY_HOME"):
        load_model(args_of(folder))


# What is refused


@pytest.mark.parametrize(
    ("save", "reason"),
    [
        (
            lambda folder: save_small_model(folder, "mpnet"),
            "its network is MPNetModel, but CTranslate2 computes only",
        ),
        (
            lambda folder: save_small_model(folder, "qwen3"),
            "its network is Qwen3Model, but CTranslate2 computes only",
        ),
        (lambda folder: save_clip(folder), "its texts do not go through the network's own forward"),
        (
            lambda folder: save_small_yes_no_reranker(folder / "rerank", "qwen3"),
            "its task is text-generation",
        ),
        (
            lambda folder: save_small_late_interaction(
                folder,
                "bert",
                query_length=32,
                query_expansion={"strategy": "fixed", "length": 32, "token": "[MASK]", "attend": False},
            ),
            "its queries are filled up with tokens that the other tokens do not attend to",
        ),
        (
            lambda folder: save_small_classifier(folder, "bert", is_decoder=True),
            "its tokens look only at those before them",
        ),
        (lambda folder: save_small_classifier(folder, "bert", hidden_act="mish"), "no activation 'mish'"),
        (lambda folder: pad_left(save_small_model(folder, "roberta")), "its tokenizer pads on the left"),
    ],
)
def test_what_it_cannot_compute_names_the_engine_that_can(
    tmp_path: Path, save: Callable[[Path], Path], reason: str
) -> None:
    with pytest.raises(
        StartupError, match=f"is not for --engine ctranslate2: .*{reason}.*; use --engine torch"
    ):
        load_model(args_of(save(tmp_path)))


def pad_left(path: Path) -> Path:
    for config in path.rglob("tokenizer_config.json"):
        config.write_text(config.read_text().rstrip().removesuffix("}") + ', "padding_side": "left"}')
    return path


def test_code_that_a_model_brings_is_not_taken_for_what_it_calls_itself() -> None:
    """jina's BERT has another kind of positions."""

    class BertModel(AutoModel):
        """Of the same name."""

    network: Any = BertModel.__new__(BertModel)
    assert "its network is BertModel" in str(explain_unsupported(network))


# A batch


@pytest.mark.parametrize(
    ("ids", "message"),
    [([2, 512, 3], "token ids from 2 to 512, the network knows 0 to 511"), ([2, -1, 3], "from -1 to 3")],
)
def test_ids_that_have_no_row_are_refused_before_ctranslate2_reads_beside_its_table(
    converted: LoadedModel, ids: list[int], message: str
) -> None:
    (item,) = converted.encode(number_inputs([TEXTS[0]]), InputOptions())
    wrong = type(item)(np.array(ids, dtype=np.int32))
    with pytest.raises(IndexError, match=message):
        converted.replicas[0].launch([wrong])


def test_segments_that_have_no_row_are_refused(tmp_path: Path) -> None:
    model = load_model(args_of(save_small_model(tmp_path, "bert")))
    (item,) = model.encode(number_inputs([TEXTS[0]]), InputOptions())
    wrong = type(item)(item.token_ids, type_ids=np.full(len(item.token_ids), 2))
    with pytest.raises(IndexError, match="segment ids from 2 to 2, the network knows 0 to 1"):
        model.replicas[0].launch([wrong])


def test_an_item_without_tokens_does_not_touch_its_neighbours(converted: LoadedModel, expected: Any) -> None:
    items = converted.encode(number_inputs(TEXTS), InputOptions())
    empty = type(items[0])(np.array([], dtype=np.int32))
    rows = converted.replicas[0].launch([*items, empty]).result()["dense"]
    assert isinstance(rows, np.ndarray)
    assert_near(rows[:-1], expected)
    assert np.isfinite(rows).all()


class _Failing:
    """As much of an encoder as a network asks for."""

    def __init__(self, exc: Exception) -> None:
        self._exc = exc

    def forward_batch(self, *given: Any) -> None:
        raise self._exc


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (RuntimeError("mkl_malloc: failed to allocate memory"), torch.OutOfMemoryError),
        (RuntimeError("CUDA failed with error out of memory"), torch.OutOfMemoryError),
        (MemoryError("std::bad_alloc"), torch.OutOfMemoryError),
        (RuntimeError("No position encodings are defined"), RuntimeError),
    ],
)
def test_lack_of_memory_is_told_from_other_failures(
    folder: Path, raised: Exception, seen: type[Exception]
) -> None:
    encoder: Any = _Failing(raised)
    network = Ct2Network(encoder, Transformer(str(folder)), torch.device("cpu"), torch.float32)
    ids = torch.full((1, 4), 5)
    with pytest.raises(seen) as caught:
        network(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert type(caught.value) is seen


def test_a_network_that_does_not_fit_is_too_large(
    folder: Path, converted: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any, **options: Any) -> None:
        raise RuntimeError("mkl_malloc: failed to allocate memory")

    monkeypatch.setattr(ctranslate2, "Encoder", fail)
    with pytest.raises(ModelTooLarge, match="does not fit into the memory"):
        load_model(args_of(folder))


def test_a_network_keeps_the_head_and_lets_the_encoder_s_weights_go(tmp_path: Path) -> None:
    path = save_small_classifier(tmp_path, "bert")
    transformer = CrossEncoder(str(path), device="cpu")[0]
    before = set(dict(transformer.model.named_parameters()))
    encoder: Any = _Failing(RuntimeError())
    network = Ct2Network(encoder, transformer, torch.device("cpu"), torch.float32)
    kept = {name.split(".")[-2] for name, _ in network.named_parameters()}
    assert kept == {"dense", "classifier"}  # the pooler's
    assert set(dict(transformer.model.named_parameters())) == before, "the network itself is left as it was"
