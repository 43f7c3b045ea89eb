"""Names in a model's files make nothing run but modules of torch.nn and of sentence-transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense

from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from infinity_emb.backends.torch.class_names import CrossEncoder, is_activation, may_be_named
from infinity_emb.errors import StartupError
from infinity_emb.hub.config_files import ConfigField
from tests.support.small_models.embedders import save_small_model
from tests.support.small_models.scorers import save_small_classifier

HARMFUL = [
    "torch._C._abort",
    "torch.distributed.run.main",
    "torch.multiprocessing.Pool",
    "torch.utils.collect_env.main",
    "torch.nn.functional.sigmoid",
    "torch.nn.init.torch._C._abort",
    "torch.nn.modules.module.torch",
    "torch.nn.parallel.DistributedDataParallel",
    "torch.nn.Parameter",
    "torch.nn.modules",
    "torch.nn.modules_of_mine.Act",
    "torch.jit.ScriptModule",
    "os.system",
    "activation.Act",
    "Sigmoid",
    "",
]


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.Sigmoid",
        "torch.nn.modules.activation.Tanh",
        "torch.nn.modules.linear.Identity",
        "torch.nn.modules.Identity",
    ],
)
def test_modules_of_torch_may_be_activations(name: str) -> None:
    assert is_activation(name)


@pytest.mark.parametrize("name", [*HARMFUL, None, 1, ["torch.nn.Sigmoid"]])
def test_nothing_else_may(name: object) -> None:
    assert not is_activation(name)


@pytest.mark.parametrize(
    ("file", "keys", "value"),
    [
        ("modules.json", "type", "sentence_transformers.models.Pooling"),
        ("modules.json", "type", "sentence_transformers.nothing.Here"),
        ("modules.json", "type", "pylate.models.Dense.Dense"),
        ("modules.json", "name", "os.system"),
        ("router_config.json", "types a", "sentence_transformers.base.modules.Transformer"),
        ("config.json", "activation_function", "gelu_new"),
        ("config.json", "sentence_transformers activation_fn", "torch.nn.modules.linear.Identity"),
        ("config.json", "sbert_ce_default_activation_function", None),
        ("config.json", "rope_scaling type", "linear"),
        ("config.json", "architectures", "BertModel"),
        ("config.json", "architectures", "HF_ColBERT"),
        (
            "wordembedding_config.json",
            "tokenizer_class",
            "sentence_transformers.sentence_transformer.modules.tokenizer.WhitespaceTokenizer",
        ),
        ("tokenizer_config.json", "tokenizer_class", "BertTokenizer"),
        ("tokenizer_config.json", "tokenizer_class", "PreTrainedTokenizerFast"),
        ("tokenizer_config.json", "tokenizer_class", "LlamaTokenizerFast"),
        ("tokenizer_config.json", "tokenizer_class", "MistralCommonBackend"),
        ("tokenizer_config.json", "tokenizer_class", "NoSuchTokenizer"),
        ("tokenizer_config.json", "tokenizer_class", None),
        ("preprocessor_config.json", "processor_class", "CLIPProcessor"),
        ("preprocessor_config.json", "image_processor_type", "CLIPImageProcessor"),
        ("preprocessor_config.json", "image_processor_type", "CLIPImageProcessorFast"),
        ("preprocessor_config.json", "feature_extractor_type", "ClapFeatureExtractor"),
        ("processor_config.json", "video_processor video_processor_type", "Qwen2VLVideoProcessor"),
        ("processor_config.json", "image_processor image_processor_type", "ViTImageProcessor"),
    ],
)
def test_names_of_published_models_are_allowed(file: str, keys: str, value: object) -> None:
    assert may_be_named(ConfigField(Path("model", file), tuple(keys.split()), value))


@pytest.mark.parametrize(
    ("file", "keys", "value"),
    [
        ("modules.json", "type", "os.system"),
        ("modules.json", "type", "custom.Module"),
        ("modules.json", "type", "torch.nn.Linear"),
        ("modules.json", "type", "sentence_transformers.util.http_get"),
        ("modules.json", "type", "sentence_transformers.base.model.torch"),
        ("modules.json", "type", "sentence_transformers.SentenceTransformerTrainer"),
        ("modules.json", "type", "sentence_transformers.base.modules.dense.fullname"),
        ("router_config.json", "types a", "os.system"),
        ("router_config.json", "types a", "sentence_transformers.base.model.Path"),
        ("config.json", "activation_fn", "torch._C._abort"),
        ("config.json", "activation_fn", "own.Activation"),
        ("config.json", "activation_fn", "sentence_transformers.util.fullname"),
        ("config.json", "activation_function", "torch.utils.collect_env.main"),
        ("config.json", "loss", "sentence_transformers.util.http_get"),
        ("config.json", "architectures", "Trainer"),
        ("config.json", "architectures", "pipeline"),
        ("wordembedding_config.json", "tokenizer_class", "own.Tokenizer"),
        ("tokenizer_config.json", "tokenizer_class", "AutoModel"),
        ("tokenizer_config.json", "tokenizer_class", "BertModel"),
        ("preprocessor_config.json", "processor_class", "AutoModelForCausalLM"),
        ("preprocessor_config.json", "image_processor_type", "Trainer"),
        ("preprocessor_config.json", "feature_extractor_type", "os.system"),
    ],
)
def test_other_names_are_not(file: str, keys: str, value: object) -> None:
    assert not may_be_named(ConfigField(Path("model", file), tuple(keys.split()), value))


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_classifier(tmp_path_factory.mktemp("reranker"), "bert")


def update(path: Path, **members: Any) -> None:
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | members))


def link(source: Path, folder: Path) -> Path:
    """Return a folder with the same files, to which others may be written."""
    folder.mkdir()
    for each in source.iterdir():
        (folder / each.name).write_bytes(each.read_bytes())
    return folder


def engine_of(folder: Path, engine: str = "torch", **options: Any) -> AsyncEmbeddingEngine:
    return AsyncEmbeddingEngine.from_args(
        EngineArgs(model_name_or_path=str(folder), engine=engine, device="cpu", model_warmup=False, **options)
    )


def recorder(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the calls of a function of torch that would end the process in a real attack."""
    calls: list[str] = []
    monkeypatch.setattr(torch._C, "_abort", lambda: calls.append("abort"))
    return calls


def write_current(folder: Path) -> None:
    update(folder / "config.json", sentence_transformers={"activation_fn": "torch._C._abort"})


def write_older(folder: Path) -> None:
    update(folder / "config.json", sbert_ce_default_activation_function="torch._C._abort")


def write_saved(folder: Path) -> None:
    model = CrossEncoder(str(folder), device="cpu")
    model.save_pretrained(str(folder))
    update(folder / "config_sentence_transformers.json", activation_fn="torch._C._abort")


def write_alias(folder: Path) -> None:
    """transformers lets a config say that one of its members is another one."""
    update(
        folder / "config.json",
        attribute_map={"alias": "sbert_ce_default_activation_function"},
        alias="torch._C._abort",
    )


@pytest.mark.parametrize("engine", ["torch", "onnx", "openvino", "ctranslate2"])
@pytest.mark.parametrize("write", [write_current, write_older, write_saved, write_alias])
def test_an_activation_is_not_called_by_any_engine(
    engine: str, write: Any, reranker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torch._C._abort` ended the whole server, with all other models."""
    pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
    folder = link(reranker, tmp_path / "model")
    write(folder)
    calls = recorder(monkeypatch)
    with pytest.raises(StartupError, match="comes with its own Python code; --trust-remote-code"):
        engine_of(folder, engine)
    assert not calls


def test_an_activation_is_called_where_code_is_trusted(
    reranker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = link(reranker, tmp_path / "model")
    write_current(folder)
    calls = recorder(monkeypatch)
    engine_of(folder, trust_remote_code=True)
    assert calls == ["abort"]


def test_an_activation_of_torch_is_kept(reranker: Path, tmp_path: Path) -> None:
    folder = link(reranker, tmp_path / "model")
    update(
        folder / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"}
    )
    assert engine_of(folder).info.activation == "tanh"


@pytest.mark.parametrize("name", ["torch.utils.collect_env.main", "torch.distributed.run.main"])
def test_a_dense_module_imports_nothing(name: str, tmp_path: Path) -> None:
    model = SentenceTransformer(str(save_small_model(tmp_path / "plain", "bert")), device="cpu")
    width = model.get_embedding_dimension()
    assert width is not None
    model.append(Dense(width, 4))
    model.save_pretrained(str(tmp_path / "dense"))
    [config] = [
        each / "config.json" for each in (tmp_path / "dense").iterdir() if each.name.endswith("Dense")
    ]
    assert engine_of(tmp_path / "dense").info.embedding_dimension == 4
    sys.modules.pop("torch.utils.collect_env", None)

    update(config, activation_function=name)

    with pytest.raises(StartupError, match="comes with its own Python code"):
        engine_of(tmp_path / "dense")
    assert "torch.utils.collect_env" not in sys.modules


@pytest.mark.parametrize(
    "name", ["sentence_transformers.base.model.torch", "sentence_transformers.util.http_get"]
)
def test_a_module_is_a_class_of_sentence_transformers(name: str, reranker: Path, tmp_path: Path) -> None:
    folder = link(reranker, tmp_path / "model")
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": name}]))
    with pytest.raises(StartupError, match="comes with its own Python code"):
        engine_of(folder)
