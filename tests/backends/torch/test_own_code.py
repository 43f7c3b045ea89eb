"""A model whose files name code of its own, or files elsewhere, is not served without --trust-remote-code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from infinity_emb.backends.torch.own_code import OwnCodeError, check_own_code
from infinity_emb.errors import StartupError
from tests.support.small_models.embedders import save_small_model

OWN_NETWORK = {"AutoModel": "modeling_own.OwnModel"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "bert"}')
    (path / "model.safetensors").touch()
    return path


def write(path: Path, **members: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | members))


@pytest.mark.parametrize(
    ("model_type", "auto_map"),
    [
        ("bert", OWN_NETWORK),
        ("bert", {"AutoConfig": "configuration_own.OwnConfig"}),
        ("bert", {"AutoModel": "other/repository--modeling_bert.JinaBertModel"}),
        ("bert", {"AutoModel": "modeling_bert.BertModel"}),
        ("qwen2", {"AutoModel": "modeling_qwen.Qwen2Model"}),
        (
            "xlm-roberta",
            {"AutoModelForSequenceClassification": "modeling.XLMRobertaForSequenceClassification"},
        ),
        ("nomic_bert", OWN_NETWORK),
        ("unheard-of", OWN_NETWORK),
    ],
)
def test_a_network_of_its_own_is_refused_where_transformers_has_one_of_that_type(
    model_type: str, auto_map: object, folder: Path
) -> None:
    """BERT was computed in place of JinaBERT: other vectors, partly of random weights."""
    write(folder / "config.json", model_type=model_type, auto_map=auto_map)
    with pytest.raises(OwnCodeError, match=r"auto_map in config\.json"):
        check_own_code(folder)


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
        {"AutoTokenizer": [None, "other/repository--tokenization_own.OwnTokenizerFast"]},
        ["tokenization_own.OwnTokenizer", None],
    ],
)
@pytest.mark.parametrize("subfolder", ["", "0_Transformer"])
def test_a_tokenizer_of_its_own_is_refused(auto_map: object, subfolder: str, folder: Path) -> None:
    """It adds an end token that the pooling reads."""
    write(folder / subfolder / "tokenizer_config.json", auto_map=auto_map)
    with pytest.raises(OwnCodeError, match=r"auto_map in tokenizer_config\.json"):
        check_own_code(folder)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json", "video_config.json"])
def test_so_is_a_processor_of_its_own(name: str, folder: Path) -> None:
    write(folder / name, auto_map={"AutoProcessor": "own.Processor"})
    with pytest.raises(OwnCodeError, match="auto_map"):
        check_own_code(folder)


@pytest.mark.parametrize(
    ("model_type", "class_name"),
    [
        ("nomic_bert", "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"),
        ("nomic_bert", "modeling_hf_nomic_bert.NomicBertModel"),
        ("gte", "modeling_hf_alibaba_nlp_gte.GteModel"),
        ("eurobert", "modeling_eurobert.EuroBertModel"),
        ("jina_embeddings_v3", "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA"),
    ],
)
def test_the_origin_of_a_network_that_transformers_has_added_since_is_no_code(
    model_type: str, class_name: str, folder: Path
) -> None:
    write(folder / "config.json", model_type=model_type, auto_map={"AutoModel": class_name})
    check_own_code(folder)


def test_a_graph_needs_no_code_for_its_network(folder: Path) -> None:
    """The graph was exported from the author's network."""
    write(folder / "config.json", auto_map=OWN_NETWORK | {"AutoConfig": "own.Config"})
    (folder / "model.safetensors").unlink()
    check_own_code(folder)
    write(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    with pytest.raises(OwnCodeError, match="Tokenizer"):
        check_own_code(folder)


@pytest.mark.parametrize("auto_map", [{}, None, [], {"AutoTokenizer": [None, None]}])
def test_an_empty_map_is_no_code(auto_map: object, folder: Path) -> None:
    write(folder / "tokenizer_config.json", auto_map=auto_map)
    check_own_code(folder)


@pytest.mark.parametrize(
    ("file", "members"),
    [
        ("sentence_bert_config.json", {"model_args": {"weights_only": False}}),
        ("sentence_bert_config.json", {"model_kwargs": {"allow_all_kernels": True}}),
        ("sentence_bert_config.json", {"model_args": {"adapter_kwargs": {"trust_remote_code": True}}}),
        ("sentence_bert_config.json", {"model_args": {"attn_implementation": "someone/kernel"}}),
        ("sentence_bert_config.json", {"tokenizer_args": {"vocab_file": "/etc/passwd"}}),
        ("tokenizer_config.json", {"vocab": "/etc/passwd"}),
        ("sentence_bert_config.json", {"tokenizer_args": {"vocab": "/etc/passwd"}}),
        ("sentence_bert_config.json", {"processor_kwargs": {"merges": "/etc/passwd"}}),
        ("special_tokens_map.json", {"vocab": "/etc/passwd"}),
        ("tokenizer_config.json", {"merges": "/etc/passwd"}),
        ("tokenizer_config.json", {"init_inputs": ["/etc/passwd"]}),
        ("tokenizer_config.json", {"sp_model_kwargs": {"model_file": "/etc/passwd"}}),
        ("config.json", {"_attn_implementation": "someone/kernel"}),
        ("config.json", {"text_config": {"_experts_implementation": "someone/kernel"}}),
        ("adapter_config.json", {"megatron_core": "antigravity"}),
    ],
)
def test_options_that_run_code_or_read_files_elsewhere_are_refused(
    file: str, members: dict[str, Any], folder: Path
) -> None:
    write(folder / file, **members)
    with pytest.raises(OwnCodeError, match=file):
        check_own_code(folder)


def test_options_of_published_models_are_fine(folder: Path) -> None:
    options = {"attn_implementation": "sdpa", "add_pooling_layer": False, "torch_dtype": "float16"}
    write(folder / "sentence_bert_config.json", model_args=options, tokenizer_args={"use_fast": True})
    write(folder / "tokenizer_config.json", vocab=[["<s>", 0.0], ["a", -1.5]], merges=["a b"])
    write(
        folder / "special_tokens_map.json", unk_token={"content": "<unk>"}, additional_special_tokens=["<s>"]
    )
    write(folder / "adapter_config.json", megatron_core="megatron.core", base_model_name_or_path=None)
    check_own_code(folder)


@pytest.mark.parametrize("key", ["base_model_name_or_path", "tokenizer_name_or_path"])
def test_a_folder_that_is_referred_to_is_checked_too(key: str, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write(other / "config.json", model_type="bert")
    write(folder / "adapter_config.json", **{key: str(other)})
    check_own_code(folder)
    write(other / "config.json", auto_map=OWN_NETWORK)
    with pytest.raises(OwnCodeError, match="auto_map"):
        check_own_code(folder)
    (other / "config.json").unlink()
    os.mkfifo(other / "weights")
    with pytest.raises(StartupError, match="neither a file"):
        check_own_code(folder)


def test_folders_that_refer_to_each_other_are_checked_once(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "other" / "adapter_config.json", base_model_name_or_path=str(folder))
    write(folder / "adapter_config.json", base_model_name_or_path=str(tmp_path / "other"))
    check_own_code(folder)


@pytest.fixture(scope="module")
def small_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("bert"), "bert")


def load(folder: Path, engine: str = "torch") -> AsyncEmbeddingEngine:
    return AsyncEmbeddingEngine.from_args(
        EngineArgs(model_name_or_path=str(folder), engine=engine, device="cpu", model_warmup=False)
    )


@pytest.mark.parametrize("engine", ["torch", "onnx", "openvino", "ctranslate2"])
def test_no_engine_serves_a_network_of_its_own(engine: str, small_bert: Path, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
    shutil.copytree(small_bert, tmp_path / "model")
    [config] = [
        path for path in (tmp_path / "model").rglob("config.json") if "model_type" in path.read_text()
    ]
    write(config, auto_map=OWN_NETWORK)
    with pytest.raises(StartupError, match=r"--trust-remote-code runs it.*modeling_own\.OwnModel"):
        load(tmp_path / "model", engine)


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_not_run_because_a_config_asks_for_it(small_bert: Path, tmp_path: Path) -> None:
    """transformers takes `weights_only` from these options, and some of its loaders follow it."""
    folder = shutil.copytree(small_bert, tmp_path / "model")
    [weights] = folder.rglob("model.safetensors")
    weights.unlink()
    torch.save(
        {"x": Touch(tmp_path / "was_run")}, weights.with_name("pytorch_model.bin"), pickle_module=pickle
    )
    [options] = folder.rglob("sentence_bert_config.json")
    write(options, model_args={"weights_only": False})
    with pytest.raises(StartupError, match="its own Python code"):
        load(folder)
    assert not (tmp_path / "was_run").exists()
