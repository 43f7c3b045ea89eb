"""Select engines: fakes that are rejected for a reason, and real models on the selected engine."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infinity_emb import AsyncEmbeddingEngine
from infinity_emb.backends import fake, registry
from infinity_emb.backends.accuracy import find_bound
from infinity_emb.backends.auto import load as auto
from infinity_emb.backends.auto import selection
from infinity_emb.backends.auto.candidate import compare_speed
from infinity_emb.backends.auto.selection import find_engine_bound
from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.registry import load_model
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import BadInput, ModelTooLarge, StartupError
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.types import Device, Dtype, InferenceEngine
from tests.parity.references import load_embedder, load_reranker, one_by_one
from tests.parity.serving import assert_same_scores, assert_same_vectors, engine_args
from tests.support.small_models import (
    random_texts,
    save_small_classifier,
    save_small_model,
    save_small_splade,
)
from tests.support.small_models.media import save_clip

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]

TORCH, ONNX, CT2 = InferenceEngine.torch, InferenceEngine.optimum, InferenceEngine.ctranslate2
ARGS = EngineArgs(model_name_or_path="org/model", engine="auto", device="cpu")
FILES = ModelFiles(Path("nowhere"), "hub", "a commit")


class Engines:
    """Stand-ins for what the registry loads; `loaded` is what was asked for, in order.

    load: by engine, what makes its model of the options.
    """

    def __init__(self, **load: Callable[[EngineArgs], LoadedModel]) -> None:
        self.by_name = load
        self.loaded: list[EngineArgs] = []

    @property
    def names(self) -> list[str]:
        return [str(args.engine) for args in self.loaded]

    def load_from(self, args: EngineArgs, files: ModelFiles) -> LoadedModel:
        self.loaded.append(args)
        model = self.by_name[args.engine.value](args)
        return replace(model, info=replace(model.info, engine=str(args.engine)))


def fake_loader(query: str = "kind=embedder", **changes: Any) -> Callable[[EngineArgs], LoadedModel]:
    """A fake model; changes: of what is detected about it."""

    def load(args: EngineArgs) -> LoadedModel:
        given: Any = {"model_name_or_path": f"debug?{query}", "engine": "debugengine"}
        model = fake.load_model(EngineArgs(**given))
        return replace(model, info=replace(model.info, **changes))

    return load


def with_swapped_inputs(args: EngineArgs) -> LoadedModel:
    model = fake_loader()(args)
    return replace(model, encode=lambda inputs, options: model.encode(inputs[::-1], options))


def failing(error: Exception) -> Callable[[EngineArgs], LoadedModel]:
    def load(args: EngineArgs) -> LoadedModel:
        raise error

    return load


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path / "home"))
    quick = functools.partial(compare_speed, max_duration_s=0, min_turn_s=0)
    monkeypatch.setattr(selection, "compare_speed", quick)
    return tmp_path / "home"


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engines]:
    """Puts stand-ins in the registry's place, each as fast as `speeds` says of the first one."""

    def put(speeds: dict[str, float] | None = None, **load: Callable[[EngineArgs], LoadedModel]) -> Engines:
        engines = Engines(**load)
        installed = {InferenceEngine(name): "numpy" for name in load}
        monkeypatch.setattr(registry, "installed_engines", lambda: installed)
        monkeypatch.setattr(registry, "load_from", engines.load_from)
        if speeds is not None:

            def ratio(challenger: Any, best: Any) -> float:
                return speeds[challenger.model.info.engine] / speeds[best.model.info.engine]

            monkeypatch.setattr(selection, "compare_speed", ratio)
        return engines

    return put


def test_the_fastest_engine_is_served_and_the_table_is_logged(
    use: Callable[..., Engines], caplog: pytest.LogCaptureFixture
) -> None:
    speeds = {"torch": 1.0, "optimum": 1.5, "ctranslate2": 1.2}
    use(speeds, torch=fake_loader(), optimum=fake_loader(), ctranslate2=fake_loader())
    with caplog.at_level(logging.INFO):
        info = auto.load_model(ARGS, FILES).info
    assert info.engine == "optimum"
    assert info.engine_reason == "measured here: torch 1.00x, optimum 1.50x, ctranslate2 1.20x"
    assert [each for each in caplog.messages if each.startswith("engine ")] == [
        "engine torch: float32, 1.00x, the reference",
        "engine optimum: float32, 1.50x, cosine 1.0000000, difference 0e+00; selected",
        "engine ctranslate2: float32, 1.20x, cosine 1.0000000, difference 0e+00",
    ]


def test_an_engine_that_is_really_faster_is_selected(use: Callable[..., Engines]) -> None:
    use(torch=fake_loader("kind=embedder&delay_s=0.03"), optimum=fake_loader("kind=embedder&delay_s=0.001"))
    assert auto.load_model(ARGS, FILES).info.engine == "optimum"


def test_a_named_graph_limits_the_choice_to_engines_that_read_graphs(
    use: Callable[..., Engines],
) -> None:
    engines = use({"torch": 9.0, "optimum": 1.0}, torch=fake_loader(), optimum=fake_loader())
    info = auto.load_model(replace(ARGS, graph_file="model_O3.onnx"), FILES).info
    assert (info.engine, engines.names) == ("optimum", ["optimum", "torch"])  # torch to compare with


def test_a_named_graph_is_served_whatever_its_finite_outputs(use: Callable[..., Engines]) -> None:
    dense = fake_loader("kind=embedder", outputs=("dense",))

    def with_other_outputs(args: EngineArgs) -> LoadedModel:
        model = dense(args)
        return replace(
            model,
            encode=lambda inputs, how: model.encode(
                [each._replace(value=f"{each.value}!") for each in inputs], how
            ),
        )

    use({}, torch=dense, optimum=with_other_outputs)
    info = auto.load_model(replace(ARGS, graph_file="model_quantized.onnx"), FILES).info
    assert info.engine == "optimum"
    use({}, torch=fake_loader(), optimum=fake_loader("kind=embedder&nan_on=e"))
    with pytest.raises(StartupError, match="no engine can serve model"):
        auto.load_model(replace(ARGS, graph_file="model_O2.onnx"), FILES)


def test_a_named_graph_needs_an_engine_that_reads_graphs(use: Callable[..., Engines]) -> None:
    use(torch=fake_loader())
    with pytest.raises(StartupError, match=r"--graph-file needs infinity-emb\[onnx\] or"):
        auto.load_model(replace(ARGS, graph_file="model_O3.onnx"), FILES)


def test_a_tie_goes_to_torch(use: Callable[..., Engines]) -> None:
    use({"torch": 1.0, "optimum": 1.04}, torch=fake_loader(), optimum=fake_loader())
    assert auto.load_model(ARGS, FILES).info.engine == "torch"


def test_an_engine_with_other_outputs_is_rejected_however_fast(
    use: Callable[..., Engines], caplog: pytest.LogCaptureFixture
) -> None:
    use({"torch": 1.0, "optimum": 9.0}, torch=fake_loader(), optimum=with_swapped_inputs)
    with caplog.at_level(logging.INFO):
        assert auto.load_model(ARGS, FILES).info.engine == "torch"
    (row,) = (each for each in caplog.messages if each.startswith("engine optimum"))
    assert row.startswith("engine optimum: rejected, differs from torch by ")
    assert row.endswith(", the limit is 1e-04")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            StartupError("model 'm' is not for it: no; use --engine torch"),
            "rejected, model 'm' is not for it: no",
        ),
        (ModelTooLarge("no memory; unload another one"), "rejected, no memory"),
        (OSError("libabacus.so is missing"), "rejected, OSError: libabacus.so is missing"),
    ],
)
def test_an_engine_that_fails_to_load_is_rejected_and_the_start_succeeds(
    use: Callable[..., Engines], caplog: pytest.LogCaptureFixture, error: Exception, told: str
) -> None:
    use({}, torch=fake_loader(), optimum=failing(error))
    with caplog.at_level(logging.INFO):
        assert auto.load_model(ARGS, FILES).info.engine == "torch"
    assert f"engine optimum: {told}" in caplog.messages


def test_an_engine_that_fails_while_it_computes_is_rejected(use: Callable[..., Engines]) -> None:
    use({}, torch=fake_loader(), optimum=fake_loader("kind=embedder&fail_on=e"))
    assert auto.load_model(ARGS, FILES).info.engine == "torch"


def test_a_start_fails_with_all_reasons_if_every_engine_is_rejected(
    use: Callable[..., Engines], home: Path
) -> None:
    use({}, torch=failing(StartupError("no int8 here")), optimum=failing(StartupError("no file")))
    with pytest.raises(
        StartupError, match=r"'org/model': engine torch: rejected, no int8 here; engine optimum: rejected, no"
    ):
        auto.load_model(ARGS, FILES)
    assert not list(home.rglob("*.json"))


@pytest.mark.parametrize(
    ("torch_s", "other_s"),
    [
        (ModelTooLarge("no room"), ModelTooLarge("no room")),
        (ModelTooLarge("no room"), StartupError("not its architecture")),
        (StartupError("not its architecture"), RuntimeError("CUDA failure 2: out of memory")),
    ],
)
def test_a_model_that_only_lacks_memory_is_too_large(
    use: Callable[..., Engines], home: Path, torch_s: Exception, other_s: Exception
) -> None:
    """It was called one that cannot be served, for which no other model is unloaded."""
    use({}, torch=failing(torch_s), optimum=failing(other_s))
    with pytest.raises(
        ModelTooLarge, match=r"not enough memory for model 'org/model': engine torch: rej.*unload"
    ):
        auto.load_model(ARGS, FILES)
    assert not list(home.rglob("*.json"))


def test_a_graph_without_weights_that_lacks_memory_is_too_large(
    use: Callable[..., Engines], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')  # and no weights
    files = ModelFiles(tmp_path, "folder", None)
    use({}, torch=failing(StartupError("has no weights")), optimum=failing(ModelTooLarge("no room")))
    with pytest.raises(
        ModelTooLarge,
        match=r"optimum: rejected, no room; engine torch: rejected, has no.*; unload",
    ):
        auto.load_model(ARGS, files)
    use({}, torch=failing(StartupError("has no weights")), optimum=failing(StartupError("no file")))
    with pytest.raises(StartupError, match="the repository has no torch weights") as caught:
        auto.load_model(ARGS, files)
    assert not isinstance(caught.value, ModelTooLarge)


def test_torch_alone_is_not_measured(use: Callable[..., Engines], home: Path) -> None:
    engines = use(torch=fake_loader("kind=embedder&fail_on=e"))
    info = auto.load_model(ARGS, FILES).info
    assert (info.engine, info.engine_reason) == ("torch", "no other engine is installed")
    assert engines.names == ["torch"]
    assert not list(home.rglob("*.json"))


def test_the_error_of_torch_is_raised_if_it_is_alone(use: Callable[..., Engines]) -> None:
    use(torch=failing(ModelTooLarge("no memory")))
    with pytest.raises(ModelTooLarge, match="no memory"):
        auto.load_model(ARGS, FILES)


def test_an_engine_is_compared_with_torch_on_the_cpu_if_torch_refuses_the_device(
    use: Callable[..., Engines],
) -> None:
    """Such as on a device that torch does not serve: the reference is then computed on the CPU."""
    engines = use({}, torch=failing(StartupError("not for torch")), optimum=fake_loader())
    reference = fake_loader()
    engines.by_name["torch"] = lambda args: (
        reference(args) if args.device is Device.cpu else failing(StartupError("not for torch"))(args)
    )
    info = auto.load_model(replace(ARGS, device=Device.tensorrt), FILES).info
    assert (info.engine, engines.names) == ("optimum", ["torch", "optimum", "torch", "torch"])


@pytest.mark.parametrize(
    ("named", "default", "dtype"),
    [
        ("auto", "float32", "float32"),
        ("auto", "bfloat16", "bfloat16"),
        ("int8", "float32", "int8"),
        ("float32", "bfloat16", "float32"),
        ("auto", "int3_from_somewhere", "float32"),
    ],
)
def test_the_bound_is_that_of_the_named_dtype_or_else_of_torchs_default(
    named: str, default: str, dtype: str
) -> None:
    assert find_engine_bound(Dtype(named), default) == find_bound("engine", dtype)


def test_coarser_dtypes_are_compared_with_float32(use: Callable[..., Engines]) -> None:
    """By the bound of the format; torch too, which is loaded once more for the reference."""
    engines = use(
        {"torch": 1.0, "optimum": 2.0}, torch=fake_loader(dtype="int8"), optimum=fake_loader(dtype="int8")
    )
    info = auto.load_model(replace(ARGS, dtype=Dtype.int8), FILES).info
    assert info.engine == "optimum"
    assert [str(args.dtype) for args in engines.loaded] == ["int8", "float32", "int8"]
    assert [args.model_warmup for args in engines.loaded] == [True, False, True]


def test_expected_outputs_that_do_not_fit_on_the_device_are_computed_on_the_cpu(
    use: Callable[..., Engines],
) -> None:
    def load(args: EngineArgs) -> LoadedModel:
        if args.dtype is Dtype.float32 and args.device is not Device.cpu:
            raise ModelTooLarge("no memory")
        return fake_loader(dtype="bfloat16")(args)

    engines = use({"torch": 1.0, "optimum": 2.0}, torch=load, optimum=fake_loader(dtype="float16"))
    assert auto.load_model(replace(ARGS, device=Device.cuda), FILES).info.engine == "optimum"
    assert [(str(args.device), str(args.dtype)) for args in engines.loaded] == [
        ("cuda", "auto"),
        ("cuda", "float32"),
        ("cpu", "float32"),
        ("cuda", "auto"),
    ]


def test_a_model_without_texts_stays_with_torch(use: Callable[..., Engines]) -> None:
    def wordless(args: EngineArgs) -> LoadedModel:
        def refuse(inputs: Any, options: Any) -> Any:
            raise BadInput("takes no texts")

        return replace(fake_loader(capabilities=("audio_embed",), dtype="bfloat16")(args), encode=refuse)

    use({}, torch=wordless, optimum=wordless)
    info = auto.load_model(ARGS, FILES).info
    assert (info.engine, info.engine_reason) == ("torch", "measured here: torch 1.00x, optimum rejected")


def test_at_most_two_models_are_alive_and_the_loser_is_freed(use: Callable[..., Engines]) -> None:
    alive: list[weakref.ref[Any]] = []
    most: list[int] = []
    freed: list[str] = []

    def watched(name: str) -> Callable[[EngineArgs], LoadedModel]:
        def load(args: EngineArgs) -> LoadedModel:
            model = replace(fake_loader()(args), free_memory=lambda: freed.append(name))
            alive.append(weakref.ref(model.replicas[0]))
            gc.collect()
            most.append(sum(each() is not None for each in alive))
            return model

        return load

    speeds = {"torch": 1.0, "optimum": 2.0, "ctranslate2": 1.5}
    use(speeds, torch=watched("torch"), optimum=watched("optimum"), ctranslate2=watched("ctranslate2"))
    model = auto.load_model(ARGS, FILES)
    gc.collect()
    assert most == [1, 2, 2]
    assert freed == ["torch", "ctranslate2"]
    assert [each() for each in alive] == [None, model.replicas[0], None]


# What is remembered


def test_the_next_start_loads_only_the_selected_engine(
    use: Callable[..., Engines], caplog: pytest.LogCaptureFixture
) -> None:
    engines = use({"torch": 1.0, "optimum": 2.0}, torch=fake_loader(), optimum=fake_loader())
    first = auto.load_model(ARGS, FILES).info
    engines.loaded.clear()
    with caplog.at_level(logging.INFO):
        again = auto.load_model(ARGS, FILES).info
    assert engines.names == ["optimum"]
    assert (again.engine, again.engine_reason) == (first.engine, first.engine_reason)
    assert "optimum 2.00x; remembered in " in caplog.text


def test_engines_are_measured_again_if_the_selected_one_fails(
    use: Callable[..., Engines], caplog: pytest.LogCaptureFixture
) -> None:
    engines = use({"torch": 1.0, "optimum": 2.0}, torch=fake_loader(), optimum=fake_loader())
    auto.load_model(ARGS, FILES)
    engines.by_name["optimum"] = failing(StartupError("the graph is gone"))
    assert auto.load_model(ARGS, FILES).info.engine == "torch"
    assert "selected before and fails now; measuring again: the graph is gone" in caplog.text
    engines.loaded.clear()
    assert auto.load_model(ARGS, FILES).info.engine == "torch"
    assert engines.names == ["torch"]


def test_a_selected_engine_that_lacks_memory_is_neither_measured_again_nor_forgotten(
    use: Callable[..., Engines],
) -> None:
    """Measuring takes two models in memory, where there was not enough for one."""
    engines = use({"torch": 1.0, "optimum": 2.0}, torch=fake_loader(), optimum=fake_loader())
    auto.load_model(ARGS, FILES)
    engines.by_name["optimum"] = failing(ModelTooLarge("no room; unload another one"))
    engines.loaded.clear()
    with pytest.raises(ModelTooLarge, match="no room; unload another one"):
        auto.load_model(ARGS, FILES)
    assert engines.names == ["optimum"]
    engines.by_name["optimum"] = fake_loader()
    assert auto.load_model(ARGS, FILES).info.engine == "optimum"


def test_engines_are_measured_again_if_the_file_is_corrupt(use: Callable[..., Engines], home: Path) -> None:
    engines = use({"torch": 1.0, "optimum": 2.0}, torch=fake_loader(), optimum=fake_loader())
    auto.load_model(ARGS, FILES)
    (path,) = home.rglob("*.json")
    path.write_text(path.read_text()[:-40])
    engines.loaded.clear()
    assert auto.load_model(ARGS, FILES).info.engine == "optimum"
    assert engines.names == ["torch", "optimum"]


# Real models


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: Any) -> Path:
    """Where graphs are kept: each model is exported once."""
    folder: Path = tmp_path_factory.mktemp("graphs")
    torch.set_num_threads(1)
    return folder


@pytest.fixture
def two_engines(monkeypatch: pytest.MonkeyPatch, graphs: Path) -> Callable[[float], None]:
    """torch and onnxruntime alone; the second is said to be so many times as fast."""

    def put(ratio: float) -> None:
        monkeypatch.setenv("INFINITY_HOME", str(graphs))
        monkeypatch.setattr(registry, "installed_engines", lambda: {TORCH: "torch", ONNX: "onnxruntime"})
        monkeypatch.setattr(selection, "compare_speed", lambda challenger, best: ratio)

    return put


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: Any) -> Path:
    return save_small_model(tmp_path_factory.mktemp("embedder"), "bert")


def test_both_engines_are_measured_on_a_real_model(
    monkeypatch: pytest.MonkeyPatch, graphs: Path, embedder: Path
) -> None:
    """Which one wins is the machine's affair; both are within the bound, and have a speed."""
    monkeypatch.setenv("INFINITY_HOME", str(graphs))
    monkeypatch.setattr(registry, "installed_engines", lambda: {TORCH: "torch", ONNX: "onnxruntime"})
    info = load_model(engine_args(embedder, engine="auto")).info
    assert info.engine in ("torch", "optimum")
    assert info.engine_reason.startswith("measured here: torch 1.00x, optimum ")
    assert not info.engine_reason.endswith("rejected")


@pytest.mark.parametrize(("ratio", "chosen"), [(0.5, "torch"), (2.0, "optimum")])
def test_the_selected_engine_has_the_outputs_of_sentence_transformers(
    two_engines: Callable[[float], None], embedder: Path, tmp_path: Path, ratio: float, chosen: str
) -> None:
    two_engines(ratio)
    texts = random_texts(12)
    args = replace(engine_args(embedder, engine="auto"), threads=int(4 * ratio))  # a decision of its own

    async def serve() -> Any:
        async with AsyncEmbeddingEngine.from_args(args) as engine:
            return engine.info.engine, (await engine.embed(texts))[0]

    engine, vectors = asyncio.run(serve())
    assert engine == chosen
    assert_same_vectors(vectors, np.array(one_by_one(load_embedder(embedder).encode, texts)))


def test_a_reranker_on_another_engine_scores_as_sentence_transformers(
    two_engines: Callable[[float], None], tmp_path: Path
) -> None:
    two_engines(2.0)
    folder = save_small_classifier(tmp_path / "reranker", "roberta")
    docs = random_texts(8)

    async def serve() -> Any:
        async with AsyncEmbeddingEngine.from_args(engine_args(folder, engine="auto")) as engine:
            ranked, _ = await engine.rerank(query="word1 word2", docs=docs, raw_scores=True)
            return engine.info.engine, {each.index: each.relevance_score for each in ranked}

    engine, scores = asyncio.run(serve())
    assert engine == "optimum"
    pairs = [("word1 word2", doc) for doc in docs]
    expected = one_by_one(load_reranker(folder).predict, pairs, activation_fn=torch.nn.Identity())
    assert_same_scores([scores[at] for at in range(len(docs))], np.array(expected).reshape(-1))


@pytest.mark.parametrize(
    ("save", "kind"),
    [
        (lambda folder: save_small_classifier(folder, "bert", num_labels=3), "classifier"),
        (lambda folder: save_small_splade(folder, "bert"), "sparse"),
    ],
)
def test_other_kinds_of_models_are_within_the_bound_on_another_engine(
    two_engines: Callable[[float], None], tmp_path: Path, save: Callable[[Path], Path], kind: str
) -> None:
    two_engines(2.0)
    info = load_model(engine_args(save(tmp_path / "model"), engine="auto")).info
    assert (str(info.kind), info.engine) == (kind, "optimum")


def test_a_model_that_only_torch_computes_is_served_by_it(
    two_engines: Callable[[float], None], tmp_path: Path
) -> None:
    two_engines(2.0)
    info = load_model(engine_args(save_clip(tmp_path), engine="auto")).info
    assert (info.engine, info.engine_reason) == ("torch", "measured here: torch 1.00x, optimum rejected")
