"""Which graph is computed, how it comes about, and what is refused; answers are in tests/contract."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Transformer

from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.external import graph_loader as graph_loading
from infinity_emb.backends.external import onnx_export
from infinity_emb.backends.external.graph_files import GraphFile
from infinity_emb.backends.external.graph_io import make_input
from infinity_emb.backends.external.parity_check import Probe
from infinity_emb.backends.onnx import load as onnx_backend
from infinity_emb.backends.onnx.network import OnnxNetwork
from infinity_emb.backends.onnx.session import Provider, choose_provider, open_session
from infinity_emb.backends.registry import load_model
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.items import InputOptions, number_inputs
from infinity_emb.types import Dtype, InferenceEngine, ModelKind
from infinity_emb.verify.verify import verify
from tests.support.engine_home import Kept, engine_home
from tests.support.small_models import (
    HIDDEN_SIZE,
    VOCABULARY_SIZE,
    save_small_model,
    save_small_splade,
    save_small_yes_no_reranker,
)
from tests.support.small_models.media import save_clip

# transformers' default configurations name start and end tokens outside of the small vocabularies.
pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]

TEXT = "word1 word2 word3"


def args_of(folder: Path, **options: Any) -> EngineArgs:
    options = {"engine": "onnx", "device": "cpu", "model_warmup": False, "threads": 1} | options
    return EngineArgs(model_name_or_path=str(folder), **options)


def vector_of(model: LoadedModel) -> Any:
    batch = model.encode(number_inputs([TEXT]), InputOptions())
    return model.replicas[0].launch(batch).result()["dense"][0]


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
    return load_model(args_of(folder))


@pytest.fixture(scope="module")
def graph(home: Path, exported: LoadedModel) -> Path:
    (found,) = home.rglob("model.onnx")
    return found


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise AssertionError("a graph is exported")

    monkeypatch.setattr(onnx_export, "export_graph", fail)


@pytest.fixture
def with_files(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the model, with a folder `onnx`."""

    def make(**sources: Path) -> Path:
        copy = tmp_path / "model"
        shutil.copytree(folder, copy)
        (copy / "onnx").mkdir()
        for name, source in sources.items():
            target = copy / "onnx" / f"{name}.onnx"
            onnx.save(onnx.load(source), target)
        return copy

    return make


@pytest.fixture
def wrong_graph(tmp_path: Path) -> Path:
    """Takes what the model takes and answers zeros."""
    shape = ["batch", "sequence"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, shape)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    zeros = helper.make_tensor("zeros", TensorProto.FLOAT, [1, 1, HIDDEN_SIZE], [0.0] * HIDDEN_SIZE)
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["column", "zeros"], ["last_hidden_state"]),
    ]
    last = helper.make_tensor("last", TensorProto.INT64, [1], [2])
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*shape, HIDDEN_SIZE])
    made = helper.make_graph(nodes, "wrong", inputs, [output], [zeros, last])
    path = tmp_path / "wrong.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_onnx_is_another_name_for_optimum() -> None:
    assert EngineArgs(engine="onnx").engine is InferenceEngine.optimum
    assert InferenceEngine.onnx is InferenceEngine.optimum


def test_what_computes_and_how_near_it_is_to_torch_is_told(exported: LoadedModel) -> None:
    assert exported.info.dtype == "float32"
    assert exported.info.dtype_reason.startswith("a graph exported from torch, difference to torch")
    assert (exported.info.attention, exported.info.device) == ("padded", "cpu")
    assert exported.info.attention_reason == "an ONNX graph takes padded batches"


def test_the_vocabulary_ends_where_the_graph_s_table_does(exported: LoadedModel) -> None:
    assert exported.vocabulary is not None
    assert exported.vocabulary.size == VOCABULARY_SIZE


def test_a_graph_is_exported_once(folder: Path, exported: LoadedModel, graph: Path, no_export: None) -> None:
    assert np.array_equal(vector_of(load_model(args_of(folder))), vector_of(exported))


def test_a_graph_as_it_is_written_answers_the_same(
    folder: Path, exported: LoadedModel, no_export: None
) -> None:
    plain = load_model(args_of(folder, onnx_disable_optimize=True))
    assert np.abs(vector_of(plain) - vector_of(exported)).max() <= 1e-5


def test_a_damaged_export_is_made_again(
    folder: Path, exported: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stay for ever, and no start of the model would succeed."""
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path))
    files = ModelFiles(folder, "folder", None)
    for name in ("model.onnx", "model.onnx.data"):
        path = onnx_export.get_exported_graph(Transformer(str(folder)), args_of(folder), files).ensure()
        path.with_name(name).write_bytes(b"half")
        model = load_model(args_of(folder))
        assert np.abs(vector_of(model) - vector_of(exported)).max() <= 1e-6


def test_another_network_has_a_graph_of_its_own(folder: Path) -> None:
    files = ModelFiles(folder, "folder", None)
    transformer: Any = Transformer(str(folder))

    def name(**options: Any) -> str:
        return onnx_export.name_export_folder(transformer, args_of(folder, **options), files)

    names = {name(), name(trust_remote_code=True)}
    transformer.model.__class__ = type("AnotherModel", (type(transformer.model),), {})
    names.add(name())
    assert len(names) == 3


def uninstall(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))


def test_a_graph_that_is_there_is_served_where_nothing_could_export_it(
    folder: Path, exported: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninstall(monkeypatch, "onnxscript")
    assert np.array_equal(vector_of(load_model(args_of(folder))), vector_of(exported))


def test_a_model_that_is_saved_again_is_exported_again(
    folder: Path, exported: LoadedModel, tmp_path: Path
) -> None:
    transformer = Transformer(str(folder))
    files = ModelFiles(folder, "folder", None)
    first = onnx_export.name_export_folder(transformer, args_of(folder), files)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "modules.json").touch()
    again = onnx_export.name_export_folder(transformer, args_of(folder), ModelFiles(copy, "folder", None))
    hub = onnx_export.name_export_folder(transformer, args_of(folder), ModelFiles(folder, "hub", "a commit"))
    assert len({first, again, hub}) == 3


def test_two_that_export_at_once_both_get_a_whole_graph(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    """Each writes into a folder of its own, and the first one stays."""
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path))
    both_write = threading.Barrier(2, timeout=30)

    def write(transformer: Any, path: Path) -> None:
        both_write.wait()
        path.write_text("graph")
        path.with_name("model.onnx.data").write_text("weights")

    monkeypatch.setattr(onnx_export, "export_graph", write)
    files = ModelFiles(folder, "folder", None)
    found: list[Path] = []

    def export() -> None:
        found.append(onnx_export.get_exported_graph(transformer, args_of(folder), files).ensure())

    transformer = Transformer(str(folder))
    threads = [threading.Thread(target=export) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert found[0].read_text() == "graph"
    assert sorted(each.name for each in tmp_path.rglob("*") if each.is_file()) == [
        "model.onnx",
        "model.onnx.data",
    ]


def test_a_network_that_cannot_be_exported_names_the_engine_that_can_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path))

    def fail(*given: Any, **options: Any) -> None:
        raise NotImplementedError("no such\noperator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(StartupError, match=r"to ONNX failed \(.*no such operator\); use --engine torch"):
        load_model(args_of(folder))
    assert not [each for each in tmp_path.rglob("*") if each.is_file()]


def test_the_repository_s_own_file_is_computed(
    with_files: Callable[..., Path], graph: Path, exported: LoadedModel, no_export: None
) -> None:
    model = load_model(args_of(with_files(model=graph)))
    assert model.info.dtype_reason.startswith("onnx/model.onnx (the repository's float32 file), difference")
    assert np.array_equal(vector_of(model), vector_of(exported))


def test_a_file_that_answers_otherwise_than_torch_is_passed_over(
    with_files: Callable[..., Path],
    wrong_graph: Path,
    exported: LoadedModel,
    graph: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(graph_loading, "get_exported_graph", lambda *given: Kept(graph))
    model = load_model(args_of(with_files(model=wrong_graph)))
    assert "cannot be served: onnx/model.onnx (the repository's float32 file) of model" in caplog.text
    assert np.array_equal(vector_of(model), vector_of(exported))


def test_an_export_that_answers_otherwise_than_torch_is_refused(
    monkeypatch: pytest.MonkeyPatch, folder: Path, wrong_graph: Path
) -> None:
    monkeypatch.setattr(graph_loading, "get_exported_graph", lambda *given: Kept(wrong_graph))
    with pytest.raises(StartupError, match=r"differs from torch by .* limit is 1e-04; use --engine torch"):
        load_model(args_of(folder))


def test_a_broken_file_is_passed_over_unless_it_is_named(
    with_files: Callable[..., Path], graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_loading, "get_exported_graph", lambda *given: Kept(graph))
    folder = with_files()
    (folder / "onnx" / "model.onnx").write_bytes(b"no graph")
    assert load_model(args_of(folder)).info.dtype_reason.startswith("a graph exported")
    with pytest.raises(StartupError, match="cannot load"):
        load_model(args_of(folder, graph_file="model.onnx"))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_named_file_of_another_format_than_the_one_asked_for_is_refused(
    with_files: Callable[..., Path], graph: Path, no_export: None, dtype: str
) -> None:
    folder = with_files(model_quantized=graph)
    with pytest.raises(
        StartupError,
        match=rf"model_quantized\.onnx is int8 by its name, but --dtype is {dtype}; leave one",
    ):
        load_model(args_of(folder, graph_file="model_quantized.onnx", dtype=dtype))
    model = load_model(args_of(folder, graph_file="model_quantized.onnx", dtype="int8"))
    assert (model.info.dtype, model.info.graph) == ("int8", "onnx/model_quantized.onnx")


def test_what_exports_is_named_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path))
    uninstall(monkeypatch, "onnxscript")
    with pytest.raises(StartupError, match=r"by onnxscript, .* pip install 'infinity-emb\[onnx\]'"):
        load_model(args_of(folder))


def test_a_quantised_file_that_is_broken_is_not_replaced_by_an_exact_one(
    with_files: Callable[..., Path], graph: Path, no_export: None
) -> None:
    """Which would be served as int8."""
    folder = with_files(model=graph)
    (folder / "onnx" / "model_quantized.onnx").write_bytes(b"no graph")
    with pytest.raises(StartupError, match="cannot load"):
        load_model(args_of(folder, dtype="int8"))


def test_a_named_file_may_differ_but_not_answer_nothing(
    with_files: Callable[..., Path], graph: Path, wrong_graph: Path, tmp_path: Path, no_export: None
) -> None:
    made = onnx.load(wrong_graph)
    made.graph.initializer[0].float_data[0] = float("nan")
    nothing = tmp_path / "nothing.onnx"
    onnx.save(made, nothing)
    folder = with_files(model=graph, model_O3=wrong_graph, model_O2=nothing)
    with pytest.raises(StartupError, match=r"model_O2.onnx .* differs from torch by inf"):
        load_model(args_of(folder, graph_file="model_O2.onnx"))
    # All its rows are equal, which padding does not change.
    assert "(requested)" in load_model(args_of(folder, graph_file="model_O3.onnx")).info.dtype_reason


def test_a_cache_that_cannot_be_written_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path / "file"))
    with pytest.raises(StartupError, match=r"cannot write to .*onnx.*; set INFINITY_HOME to a writable"):
        load_model(args_of(folder))


@pytest.fixture(scope="module")
def quantised_graph(graph: Path, tmp_path_factory: Any) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path: Path = tmp_path_factory.mktemp("int8") / "model.onnx"
    quantize_dynamic(graph, path, weight_type=QuantType.QInt8, per_channel=True)
    return path


def test_a_quantised_file_is_computed_when_it_is_asked_for(
    with_files: Callable[..., Path],
    graph: Path,
    quantised_graph: Path,
    exported: LoadedModel,
    no_export: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = with_files(model=graph, model_quantized=quantised_graph)
    exact = load_model(args_of(folder))
    assert exact.info.dtype == "float32"
    for options in ({"dtype": "int8"}, {"graph_file": "model_quantized.onnx"}):
        model = load_model(args_of(folder, **options))
        assert model.info.dtype == "int8"
        found, expected = vector_of(model), vector_of(exported)
        assert 0 < np.abs(found - expected).max() < 0.2
        assert found @ expected > 0.95
    assert "of equal length" not in caplog.text, "a quantised graph's rows may differ a little in a batch"


def test_a_quantised_file_of_other_weights_is_served_only_where_it_is_named(
    with_files: Callable[..., Path],
    folder: Path,
    tmp_path: Path,
    home: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One that was made before the model was trained further."""
    transformer: Any = Transformer(str(folder))
    torch.manual_seed(1)
    transformer.model = type(transformer.model)(transformer.model.config).eval()
    onnx_export.export_graph(transformer, tmp_path / "other.onnx")
    stale = with_files(model_quantized=tmp_path / "other.onnx")
    with pytest.raises(StartupError, match=r"has a mean cosine of .* as if it came from"):
        load_model(args_of(stale, dtype="int8"))
    with caplog.at_level(logging.WARNING):
        model = load_model(args_of(stale, graph_file="model_quantized.onnx"))
    assert "as if it came from other weights" in model.info.dtype_reason
    assert "is served as requested, although it has a mean cosine of" in caplog.text


def test_a_number_format_without_a_file_is_refused(folder: Path, exported: LoadedModel) -> None:
    for dtype in ("float16", "int8"):
        with pytest.raises(StartupError, match=f"--dtype {dtype} needs a file .onnx of that format"):
            load_model(args_of(folder, dtype=dtype))
    with pytest.raises(StartupError, match="--dtype bfloat16 is not for --engine optimum"):
        load_model(args_of(folder, dtype="bfloat16"))


def test_tensorrt_halves_a_float32_graph() -> None:
    given = args_of(Path("m"))
    provider = Provider("tensorrt", "T", "wheel", "cuda")
    assert onnx_backend.choose_dtype(given, provider) == "float16"
    assert onnx_backend.choose_dtype(given, choose_provider(given)) == "float32"
    files = ModelFiles(Path("none"), "folder", None)
    loader = onnx_backend.make_graph_loader(given, files, provider, torch.device("cpu"))
    assert loader.choose_file([]) is None, "asked for float32, which can be exported; not for float16"


def test_weights_of_a_graph_are_fetched_whatever_their_names(
    folder: Path, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of BAAI/bge-m3, which has `Constant_7_attr__value` beside its `model.onnx_data`."""
    (tmp_path / "onnx").mkdir()
    onnx.save(
        onnx.load(graph),
        tmp_path / "onnx" / "model.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        size_threshold=4096,
    )
    fetched: list[str] = []

    def fetch(files: ModelFiles, name: str) -> Path:
        fetched.append(name)
        return tmp_path / name

    monkeypatch.setattr(graph_loading, "fetch_file", fetch)
    given = args_of(folder)
    files = ModelFiles(folder, "folder", None)
    loader = onnx_backend.make_graph_loader(given, files, choose_provider(given), torch.device("cpu"))
    beside = [path.relative_to(tmp_path).as_posix() for path in (tmp_path / "onnx").iterdir()]
    names = ["config.json", "model.onnx_data", "onnx/model_int8.onnx", "onnx/config.json"]
    chosen = GraphFile("onnx/model.onnx", Dtype.float32, "chosen")
    assert loader.fetch(chosen, [*names, *beside]) == tmp_path / "onnx" / "model.onnx"
    assert len(beside) > 3
    assert sorted(fetched) == sorted(beside)


def test_tensorrt_builds_anew_for_weights_that_changed(graph: Path, tmp_path: Path) -> None:
    """A graph with its weights in a file of their own stays the same file."""
    onnx.save(onnx.load(graph), tmp_path / "m.onnx", save_as_external_data=True, location="weights")
    first = onnx_export.engine_folder(tmp_path / "m.onnx")
    with (tmp_path / "weights").open("ab") as file:
        file.write(b"others")
    assert onnx_export.engine_folder(tmp_path / "m.onnx") != first


def test_tensorrt_has_one_engine_for_all_batches_or_several_where_it_cannot(
    folder: Path,
    graph: Path,
    exported: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where it computes only parts of a graph, it has to find the shapes between them by itself."""
    given = args_of(folder, batch_size=2)
    tensorrt = Provider("tensorrt", "TensorrtExecutionProvider", "wheel", "cuda")
    cpu = choose_provider(given)
    told: list[dict[str, str]] = []
    takes_boxes = True

    def open_on_the_cpu(path: Path, provider: Any, options: Any, args: EngineArgs) -> Any:
        told.append(options)
        if "trt_profile_max_shapes" in options and not takes_boxes:
            raise StartupError("User needs to provide all")
        return open_session(path, cpu, {}, args)

    monkeypatch.setattr(onnx_backend, "open_session", open_on_the_cpu)
    transformer = Transformer(str(folder))
    probe = Probe.of(transformer, ModelKind.embedder)

    def network() -> OnnxNetwork:
        return onnx_backend.open_network(graph, probe, Dtype.float16, given, tensorrt, torch.device("cpu"))

    boxed = network()
    assert boxed.max_items == 2
    assert told[-1]["trt_profile_max_shapes"].startswith("input_ids:2x256,attention_mask:2x256,")
    assert "computes only 2 texts of up to 256 tokens at a time" in caplog.text
    takes_boxes = False
    free = network()
    assert free.max_items is None
    assert "trt_profile_max_shapes" not in told[-1]
    assert "will rebuild its engine" in caplog.text
    ids = torch.randint(5, VOCABULARY_SIZE, (5, 9), generator=torch.Generator().manual_seed(0))
    features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        expected = transformer.model.eval()(**features).last_hidden_state
    for each in (boxed, free):
        assert (each.compute(features) - expected).abs().max() <= 2e-5


def test_a_sparse_model_has_a_box_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer: Any = SparseEncoder(str(save_small_splade(tmp_path / "splade", "bert")))[0]
    given = args_of(tmp_path)
    whole = onnx_backend.choose_shapes(transformer, given)
    transformer.config.vocab_size = 2**20
    smaller = onnx_backend.choose_shapes(transformer, given)
    assert whole is not None
    assert smaller is not None
    assert (smaller.max_items, smaller.max_tokens) == (2**10 // whole.max_tokens, whole.max_tokens)


def test_a_text_without_limit_has_no_box(folder: Path) -> None:
    transformer = Transformer(str(folder))
    assert onnx_backend.choose_shapes(transformer, args_of(folder)) == (256, 256)
    transformer.max_seq_length = None
    assert onnx_backend.choose_shapes(transformer, args_of(folder)) is None


def test_tensorrt_builds_anew_for_a_graph_that_changed(home: Path, tmp_path: Path) -> None:
    """It would take the engine of a graph of the same structure with other weights."""
    graph = tmp_path / "model.onnx"
    graph.write_text("graph")
    first = onnx_export.engine_folder(graph)
    assert onnx_export.engine_folder(graph) == first
    assert home in first.parents
    graph.write_text("graph of another revision")
    assert onnx_export.engine_folder(graph) != first


def test_a_gpu_computes_one_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider("cuda", "C", "wheel", "cuda")
    with pytest.raises(StartupError, match=r"--device-id has 2 devices.* serves a model on one"):
        onnx_backend.choose_devices(args_of(Path("m"), device_id=(0, 1)), provider)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert onnx_backend.choose_devices(args_of(Path("m"), device_id=(1,)), provider) == [
        torch.device("cuda", 1)
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert onnx_backend.choose_devices(args_of(Path("m")), provider) == [torch.device("cpu")]


@pytest.mark.parametrize(
    ("save", "reason"),
    [
        (lambda folder: save_clip(folder), "its texts do not go through the network's own forward"),
        (
            lambda folder: save_small_yes_no_reranker(folder / "rerank", "qwen3"),
            "its task is text-generation",
        ),
    ],
)
def test_what_it_cannot_compute_names_the_engine_that_can(
    home: Path, tmp_path: Path, save: Callable[[Path], Path], reason: str
) -> None:
    with pytest.raises(StartupError, match=f"is not for --engine optimum: {reason}; use --engine torch"):
        load_model(args_of(save(tmp_path)))


def test_a_served_graph_verifies(folder: Path, exported: LoadedModel) -> None:
    lines: list[str] = []
    checks = verify(args_of(folder), write_line=lines.append)
    assert all(check.is_passed for check in checks), "\n".join(lines)
    assert "embedder by optimum on cpu, float32, attention padded" in lines[0]


class _Session:
    """As much of a session as a network asks for before it computes."""

    def __init__(self, inputs: list[str], outputs: list[str]) -> None:
        self._inputs, self._outputs = inputs, outputs

    def get_inputs(self) -> list[Any]:
        return [_Named(name) for name in self._inputs]

    def get_outputs(self) -> list[Any]:
        return [_Named(name) for name in self._outputs]


class _Named:
    type = "tensor(int64)"

    def __init__(self, name: str) -> None:
        self.name = name


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (["input_ids", "pixel_values"], ["last_hidden_state"], "needs the inputs pixel_values"),
        (
            ["input_ids"],
            ["sentence_embedding"],
            "has the outputs sentence_embedding, but the model needs last_hidden",
        ),
    ],
)
def test_a_graph_of_another_kind_is_refused(
    folder: Path, inputs: list[str], outputs: list[str], message: str
) -> None:
    session: Any = _Session(inputs, outputs)
    with pytest.raises(StartupError, match=message):
        OnnxNetwork(session, Transformer(str(folder)), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 9", "OutOfMemory"),
        ("Available memory of 5 is smaller than requested bytes of 9", "OutOfMemory"),
        ("std::bad_alloc", "OutOfMemory"),
        ("CUDA failure 2: out of memory ; GPU=0", "OutOfMemory"),
        ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT", "RuntimeError"),
    ],
)
def test_lack_of_memory_is_told_from_other_failures(
    folder: Path, exported: LoadedModel, monkeypatch: pytest.MonkeyPatch, message: str, error: str
) -> None:
    def fail(self: Any, binding: Any) -> None:
        raise RuntimeError(message)

    batch = exported.encode(number_inputs([TEXT]), InputOptions())
    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", fail)
    with pytest.raises(RuntimeError) as raised:
        exported.replicas[0].launch(batch)
    assert error in type(raised.value).__name__


def test_inputs_that_a_tokenizer_does_not_make_come_from_the_tokens() -> None:
    """Segment ids are 0, and positions count what is no padding, on whichever side that is."""
    features = {"input_ids": torch.ones(2, 4), "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])}
    assert torch.equal(make_input("token_type_ids", features), torch.zeros(2, 4))
    positions = make_input("position_ids", features)
    assert positions[0, 2:].tolist() == [0, 1]
    assert positions[1, :3].tolist() == [0, 1, 2]
    # A query that is filled up with tokens that the others do not see: each has a place of its own.
    hidden = features | {"attention_mask": torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])}
    assert make_input("position_ids", hidden).tolist() == [[0, 1, 2, 3]] * 2


class _WithPositions(torch.nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Any, mask: Any, positions: Any) -> Any:
        return self.network(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state


@pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet"])
def test_a_graph_that_asks_for_positions_answers_as_the_network_that_makes_them(
    tmp_path: Path, model_type: str
) -> None:
    """RoBERTa's begin behind the place of padding, which it leaves out wherever it stands."""
    path = save_small_model(tmp_path / "model", model_type)
    transformer: Any = SentenceTransformer(str(path))[0]
    transformer.model.eval()
    padding = transformer.model.config.pad_token_id
    ids = torch.randint(5, VOCABULARY_SIZE, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = padding, 0
    ids[2, 4] = padding  # which a text may say
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    torch.onnx.export(
        _WithPositions(transformer.model),
        (ids, mask, torch.arange(9).expand(3, 9)),
        tmp_path / "graph.onnx",
        input_names=["input_ids", "attention_mask", "position_ids"],
        output_names=["last_hidden_state"],
        dynamic_shapes=(sizes, sizes, sizes),
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "graph.onnx"))
    network = OnnxNetwork(session, transformer, torch.device("cpu"), torch.float32)
    features = {"input_ids": ids, "attention_mask": mask}
    with torch.inference_mode():
        expected = transformer.model(**features).last_hidden_state
    assert (network.compute(features) - expected)[mask.bool()].abs().max() <= 2e-5


def test_other_names_of_the_rows_are_known(folder: Path) -> None:
    session: Any = _Session(["input_ids"], ["token_embeddings", "sentence_embedding"])
    network = OnnxNetwork(session, Transformer(str(folder)), torch.device("cpu"), torch.float32)
    assert network.output_name == "last_hidden_state"
