"""Which graph OpenVINO computes, and that it answers as sentence-transformers does."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from sentence_transformers.base.modules import Transformer

from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.external import graph_loader as graph_loading
from infinity_emb.backends.external import onnx_export
from infinity_emb.backends.openvino import load as openvino_backend
from infinity_emb.backends.openvino.compile import compile_graph
from infinity_emb.backends.openvino.device import make_properties
from infinity_emb.backends.openvino.network import OpenVinoNetwork
from infinity_emb.backends.openvino.runtime import core, openvino
from infinity_emb.backends.registry import load_model
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import DeviceOutOfMemory, ModelTooLarge, StartupError
from infinity_emb.items import InputOptions, number_inputs
from infinity_emb.types import Dtype
from tests.parity.references import load_embedder, vectors
from tests.support.engine_home import Kept, engine_home
from tests.support.small_models import (
    VOCABULARY_SIZE,
    random_texts,
    save_small_model,
    save_small_yes_no_reranker,
)

# transformers' default configurations name start and end tokens outside of the small vocabularies.
pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]

TEXTS = random_texts(24, max_words=200)
FILE = "openvino/openvino_model.xml"
QUANTISED_FILE = "openvino/openvino_model_qint8_quantized.xml"


def args_of(folder: Path, **options: Any) -> EngineArgs:
    options = {"engine": "openvino", "device": "cpu", "model_warmup": False, "threads": 2} | options
    return EngineArgs(model_name_or_path=str(folder), **options)


def rows_of(model: LoadedModel, texts: list[str] = TEXTS, *, replica: int = 0) -> Any:
    batch = model.encode(number_inputs(texts), InputOptions())
    return model.replicas[replica].launch(batch).result()["dense"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: Any) -> Iterator[Path]:
    with engine_home(tmp_path_factory) as folder:
        yield folder


@pytest.fixture(scope="module")
def folder(home: Path, tmp_path_factory: Any) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"), "bert")


@pytest.fixture(scope="module")
def exported(folder: Path) -> LoadedModel:
    """The model, whose graph is in the cache from now on."""
    return load_model(args_of(folder, device_id=(0, 1)))


@pytest.fixture(scope="module")
def graph(home: Path, exported: LoadedModel) -> Path:
    (found,) = (home / "infinity_emb" / "onnx").rglob("model.onnx")
    return found


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise AssertionError("a graph is exported")

    monkeypatch.setattr(onnx_export, "export_graph", fail)


@pytest.fixture
def with_files(folder: Path, tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """A copy of the model, with graphs of OpenVINO in it: path → graph."""

    def make(graphs: dict[str, Any]) -> Path:
        copy = tmp_path / "model"
        shutil.copytree(folder, copy)
        for name, made in graphs.items():
            (copy / name).parent.mkdir(exist_ok=True)
            openvino.save_model(made, copy / name, compress_to_fp16=False)
        return copy

    return make


def scaled(graph: Path, factor: float) -> Any:
    """The graph with its output times a number."""
    opset: Any = openvino.opset13
    model = core().read_model(graph)
    result = model.get_results()[0]
    rows = opset.multiply(result.input_value(0), opset.constant(np.float32(factor)))
    rows.output(0).set_names({"last_hidden_state"})
    return openvino.Model([opset.result(rows)], model.get_parameters())


def quantised(graph: Path) -> Any:
    """The graph with the weights of its products in 8 bits, one scale for each channel."""
    opset: Any = openvino.opset13
    model = core().read_model(graph)
    for node in model.get_ops():
        source = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
        if source is None or source.get_type_name() != "Constant" or source.data.ndim != 2:
            continue
        scales = np.abs(source.data).max(axis=0, keepdims=True) / 127
        integers = opset.constant(np.round(source.data / scales).astype(np.int8))
        restored = opset.multiply(opset.convert(integers, "f32"), opset.constant(scales))
        node.input(1).replace_source_output(restored.output(0))
    return model


@pytest.mark.parametrize("model_type", ["mpnet", "modernbert"])
def test_texts_of_mixed_lengths_have_sentence_transformers_vectors(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    """BERT's and RoBERTa's are compared in tests/contract."""
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path / "home"))
    path = save_small_model(tmp_path / "model", model_type)
    found = rows_of(load_model(args_of(path)))
    assert np.abs(found - vectors(load_embedder(path).encode, TEXTS)).max() <= 2e-5


def test_several_threads_each_get_their_own_rows(exported: LoadedModel) -> None:
    """Both replicas at once, and one from two threads."""
    expected = rows_of(exported)
    with ThreadPoolExecutor(4) as pool:
        starts = [number % 7 for number in range(32)]
        futures = [
            pool.submit(rows_of, exported, TEXTS[start : start + 9], replica=start % 2) for start in starts
        ]
        for start, future in zip(starts, futures, strict=True):
            assert np.abs(future.result() - expected[start : start + 9]).max() <= 1e-5


def test_what_computes_and_how_near_it_is_to_torch_is_told(exported: LoadedModel) -> None:
    info = exported.info
    assert (info.engine, info.device, info.dtype, info.attention) == ("openvino", "cpu", "float32", "padded")
    assert info.dtype_reason.startswith("a graph exported from torch, difference to torch")


def test_the_second_start_exports_and_compiles_nothing(
    folder: Path, home: Path, exported: LoadedModel, no_export: None
) -> None:
    before = sorted(home.rglob("*.blob"))
    again = load_model(args_of(folder))
    assert np.abs(rows_of(again) - rows_of(exported)).max() <= 1e-6
    assert sorted(home.rglob("*.blob")) == before


def test_onnx_s_export_is_openvino_s(folder: Path, exported: LoadedModel, no_export: None) -> None:
    model = load_model(args_of(folder, engine="onnx"))
    assert np.abs(rows_of(model) - rows_of(exported)).max() <= 1e-5


def test_the_repository_s_openvino_file_goes_before_its_onnx_file(
    with_files: Callable[..., Path], graph: Path, exported: LoadedModel, no_export: None
) -> None:
    path = with_files({FILE: core().read_model(graph)})
    (path / "onnx").mkdir()
    shutil.copy(graph, path / "onnx")
    shutil.copy(graph.with_name("model.onnx.data"), path / "onnx")
    model = load_model(args_of(path))
    assert model.info.dtype_reason.startswith(f"{FILE} (the repository's float32 file), difference to torch")
    assert np.abs(rows_of(model) - rows_of(exported)).max() <= 1e-6
    (path / FILE).unlink()
    model = load_model(args_of(path))
    assert model.info.dtype_reason.startswith("onnx/model.onnx (the repository's float32 file), difference")


def test_a_file_that_answers_otherwise_than_torch_is_passed_over_unless_it_is_named(
    with_files: Callable[..., Path],
    graph: Path,
    exported: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(graph_loading, "get_exported_graph", lambda *given: Kept(graph))
    path = with_files({FILE: scaled(graph, 1.01)})
    model = load_model(args_of(path))
    assert f"cannot be served: {FILE} (the repository's float32 file) of model" in caplog.text
    assert np.abs(rows_of(model) - rows_of(exported)).max() <= 1e-6
    for option in ("graph_file", "onnx_file"):
        assert "(requested)" in load_model(args_of(path, **{option: "openvino_model.xml"})).info.dtype_reason


def test_an_export_that_answers_otherwise_than_torch_is_refused(
    with_files: Callable[..., Path], folder: Path, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = with_files({FILE: scaled(graph, 1.01)}) / FILE
    monkeypatch.setattr(graph_loading, "get_exported_graph", lambda *given: Kept(wrong))
    with pytest.raises(StartupError, match=r"differs from torch by .* limit is 1e-04; use --engine torch"):
        load_model(args_of(folder))


def test_a_quantised_file_is_computed_when_it_is_asked_for(
    with_files: Callable[..., Path], graph: Path, exported: LoadedModel, no_export: None
) -> None:
    path = with_files({FILE: core().read_model(graph), QUANTISED_FILE: quantised(graph)})
    assert load_model(args_of(path)).info.dtype == "float32"
    model = load_model(args_of(path, dtype="int8"))
    assert model.info.dtype == "int8"
    assert model.info.dtype_reason.startswith(QUANTISED_FILE)
    found, expected = rows_of(model), rows_of(exported)
    assert np.abs(found - expected).max() > 0
    assert np.sum(found * expected, axis=1).min() > 0.99


def test_int8_without_a_file_of_openvino_is_refused(
    with_files: Callable[..., Path], graph: Path, no_export: None
) -> None:
    path = with_files({FILE: core().read_model(graph)})
    (path / "onnx").mkdir()
    shutil.copy(graph, path / "onnx" / "model_quantized.onnx")
    with pytest.raises(
        StartupError, match=r"--dtype int8 needs a file \.xml of that .*or use --engine torch"
    ):
        load_model(args_of(path, dtype="int8"))


def test_half_precision_is_computed_or_refused_as_the_cpu_can(folder: Path, exported: LoadedModel) -> None:
    if "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(StartupError, match="--dtype bfloat16 is not supported by CPU"):
            load_model(args_of(folder, dtype="bfloat16"))
        return
    model = load_model(args_of(folder, dtype="bfloat16"))
    assert model.info.dtype == "bfloat16"
    assert 1e-6 < np.abs(rows_of(model) - rows_of(exported)).max() < 0.05


def in_a_hub_s_cache(folder: Path, target: Path) -> Path:
    """The folder as huggingface_hub keeps it: each file a link, to one without its name."""
    target = target / "models--org--small"
    snapshot = target / "snapshots" / "0123abcd"
    (target / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(each for each in folder.rglob("*") if each.is_file())):
        shutil.copy(path, target / "blobs" / str(number))
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target / "blobs" / str(number))
    return snapshot


@pytest.mark.parametrize("can_link", [True, False])
def test_an_onnx_graph_is_read_from_the_hub_s_cache_with_its_weights(
    home: Path,
    folder: Path,
    graph: Path,
    tmp_path: Path,
    no_export: None,
    monkeypatch: pytest.MonkeyPatch,
    can_link: bool,
) -> None:
    """OpenVINO refuses weights that a link leads elsewhere for, as all do there."""
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path / "home"))
    if not can_link:
        monkeypatch.setattr("os.link", _refuse_to_link)
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "onnx").mkdir()
    made = onnx.load(graph)
    onnx.save(
        made, tmp_path / "model" / "onnx" / "model.onnx", save_as_external_data=True, location="of_any_name"
    )
    path = in_a_hub_s_cache(tmp_path / "model", tmp_path / "cache")
    for _ in range(2):
        model = load_model(args_of(path))
        assert model.info.dtype_reason.startswith(
            "onnx/model.onnx (the repository's float32 file), difference"
        )
        assert np.abs(rows_of(model) - vectors(load_embedder(folder).encode, TEXTS)).max() <= 2e-5
    (weights,) = (tmp_path / "home").rglob("of_any_name")
    assert weights.samefile(path / "onnx" / "of_any_name") == can_link
    weights.unlink()  # by whoever cleans folders of caches
    load_model(args_of(path))


def _refuse_to_link(*given: Any) -> None:
    raise OSError("another disk")


def test_weights_of_another_revision_are_read_anew(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph beside them is the same file, as in two snapshots of the hub."""
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path / "home"))
    (tmp_path / "snapshot").mkdir()
    onnx.save(
        onnx.load(graph), tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx_data"
    )
    (tmp_path / "model.onnx_data").rename(tmp_path / "weights")
    (tmp_path / "snapshot" / "model.onnx").symlink_to(tmp_path / "model.onnx")
    (tmp_path / "snapshot" / "model.onnx_data").symlink_to(tmp_path / "weights")
    told = {"INFERENCE_PRECISION_HINT": "f32"}
    ids = np.full((1, 4), 7)

    def answer() -> Any:
        compiled = compile_graph(tmp_path / "snapshot" / "model.onnx", "CPU", told)
        return compiled(
            [np.zeros_like(ids) if "type" in each.get_any_name() else ids for each in compiled.inputs]
        )[0]

    first = answer()
    (tmp_path / "weights").rename(tmp_path / "before")
    (tmp_path / "weights").write_bytes(bytes((tmp_path / "before").stat().st_size))
    assert np.abs(answer() - first).max() > 0.1


def test_a_quantised_file_of_other_weights_is_not_served(
    with_files: Callable[[dict[str, Any]], Path], folder: Path, graph: Path, tmp_path: Path
) -> None:
    transformer: Any = Transformer(str(folder))
    torch.manual_seed(1)
    transformer.model = type(transformer.model)(transformer.model.config).eval()
    onnx_export.export_graph(transformer, tmp_path / "other.onnx")
    path = with_files({QUANTISED_FILE: quantised(tmp_path / "other.onnx")})
    with pytest.raises(
        StartupError, match=r"has a mean cosine of .* limit is 0\.5, as if it came from other"
    ):
        load_model(args_of(path, dtype="int8"))


def test_what_it_cannot_compute_names_the_engine_that_can(home: Path, tmp_path: Path) -> None:
    path = save_small_yes_no_reranker(tmp_path / "rerank", "qwen3")
    with pytest.raises(StartupError, match=r"not for --engine openvino: its task is .*; use --engine torch"):
        load_model(args_of(path))


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (MemoryError(), DeviceOutOfMemory),
        (RuntimeError("Exception from src/inference: std::bad_alloc"), DeviceOutOfMemory),
        (RuntimeError("Check 'ptr' failed: Failed to allocate 3145728000 bytes"), DeviceOutOfMemory),
        (RuntimeError("[GPU] clEnqueueMapBuffer, error code: -5 CL_OUT_OF_RESOURCES"), DeviceOutOfMemory),
        (RuntimeError("Exception from src/inference: shapes do not match"), RuntimeError),
    ],
)
def test_lack_of_memory_is_told_from_other_failures(
    exported: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    expected: type[Exception],
) -> None:
    def fail(*given: Any, **options: Any) -> None:
        raise raised

    monkeypatch.setattr(openvino.InferRequest, "start_async", fail)
    with pytest.raises(expected) as found:
        rows_of(exported)
    assert isinstance(found.value, DeviceOutOfMemory) == (expected is DeviceOutOfMemory)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_after_a_batch_that_failed_the_next_one_is_computed(
    folder: Path, graph: Path, num_threads: int
) -> None:
    """OpenVINO's graph on the CPU goes on failing, or answers nothing at all."""
    told = make_properties(args_of(folder, threads=num_threads), "CPU", Dtype.float32, num_replicas=1)
    compiling = functools.partial(compile_graph, graph, "CPU", told)
    network = OpenVinoNetwork(compiling, Transformer(str(folder)), torch.float32)
    ids = torch.full((2, 9), 7)
    features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = network.compute(features)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="mismatch"):
            network.compute(features | {"token_type_ids": torch.zeros((2, 8), dtype=torch.int64)})
        assert torch.equal(network.compute(features), expected)


def test_ids_that_the_network_does_not_know_are_refused(folder: Path, graph: Path) -> None:
    """OpenVINO would read whatever lies beside its table."""
    told = make_properties(args_of(folder), "CPU", Dtype.float32, num_replicas=1)
    compiling = functools.partial(compile_graph, graph, "CPU", told)
    network = OpenVinoNetwork(compiling, Transformer(str(folder)), torch.float32)
    for wrong in (-1, VOCABULARY_SIZE):
        ids = torch.tensor([[2, wrong, 3]])
        with pytest.raises(IndexError, match=rf"token ids from .* network knows 0 to {VOCABULARY_SIZE - 1}"):
            network.compute({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def test_segment_ids_that_the_network_does_not_know_are_refused(folder: Path, graph: Path) -> None:
    """torch raises for them, and OpenVINO would read whatever lies beside its table."""
    told = make_properties(args_of(folder), "CPU", Dtype.float32, num_replicas=1)
    compiling = functools.partial(compile_graph, graph, "CPU", told)
    transformer = Transformer(str(folder))
    network = OpenVinoNetwork(compiling, transformer, torch.float32)
    ids = torch.tensor([[2, 7, 3]])
    features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for wrong in (-1, 2):
        told_wrongly = features | {"token_type_ids": torch.tensor([[0, 1, wrong]])}
        with pytest.raises(IndexError):
            transformer.model(**told_wrongly)
        with pytest.raises(IndexError, match=r"segment ids from .* the network knows 0 to 1"):
            network.compute(told_wrongly)
    network.compute(features | {"token_type_ids": torch.tensor([[0, 1, 1]])})


def test_lack_of_memory_at_start_leaves_room_for_others(
    folder: Path, exported: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is too large may fit where another one is unloaded."""

    def fail(*given: Any, **options: Any) -> None:
        raise RuntimeError(
            "Exception from src/inference: [GPU] Exceeded max size of memory object allocation"
        )

    monkeypatch.setattr(openvino.Core, "compile_model", fail)
    with pytest.raises(ModelTooLarge):
        load_model(args_of(folder))


def test_a_graph_of_another_kind_is_refused(folder: Path) -> None:
    opset: Any = openvino.opset13
    for name, message in (
        ("pixel_values", "needs the inputs pixel_values"),
        ("input_ids", "but the model needs last"),
    ):
        given = opset.parameter([-1, -1], openvino.Type.i64, name=name)
        given.output(0).set_names({name})
        answer = opset.convert(given, "f32")
        answer.output(0).set_names({"sentence_embedding"})
        compiling = functools.partial(core().compile_model, openvino.Model([answer], [given]), "CPU")
        with pytest.raises(StartupError, match=message):
            OpenVinoNetwork(compiling, Transformer(str(folder)), torch.float32)


def test_batches_are_as_large_as_what_computes_them_takes(
    monkeypatch: pytest.MonkeyPatch, folder: Path, exported: LoadedModel
) -> None:
    """Not as large as the CPU takes, on which the modules around the network are computed."""
    monkeypatch.setattr(openvino_backend, "_format_device_name", lambda device: "xpu:0")
    model = load_model(args_of(folder))
    assert (model.info.device, model.max_batch_tokens) == ("xpu:0", 16_384)
    assert exported.max_batch_tokens == 1024
