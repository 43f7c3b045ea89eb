"""Folders with one thing wrong each, as users have them, and whole ones beside them that look alike."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from tests.support.small_models.architectures import HIDDEN_SIZE, save_network
from tests.support.small_models.changes import (
    change_weights,
    drop_padding_token,
    drop_weights,
    prefix_weights,
    rewrite_json,
)
from tests.support.small_models.embedders import (
    save_pipeline,
    save_small_m3,
    save_small_model,
    save_small_router,
)
from tests.support.small_models.retrievers import save_small_late_interaction, save_small_splade
from tests.support.small_models.scorers import save_small_classifier
from tests.support.small_tokenizers import load_reference

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 90868376\n"


class Trap(NamedTuple):
    """A change to a folder.

    base: name of the folder that is changed.
    refused: pattern of the error; "" for a folder that is served.
    warned: pattern of the warning; "" for none.
    has_reference: whether sentence-transformers serves the changed folder with the same outputs.
    """

    base: str
    change: Callable[[Path], object]
    refused: str = ""
    warned: str = ""
    has_reference: bool = True


def _save_projected(folder: Path) -> Path:
    """Two Dense modules, of which one has no bias and no activation, and a late Normalize."""
    backbone = save_network(folder / "backbone", "bert")
    torch.manual_seed(3)
    return save_pipeline(
        folder / "model",
        [
            Transformer(str(backbone), max_seq_length=64),
            Pooling(HIDDEN_SIZE),
            Dense(HIDDEN_SIZE, 24),
            Dense(24, 16, bias=False, activation_function=torch.nn.Identity()),
            Normalize(),
        ],
    )


def _save_with_pieces(folder: Path) -> Path:
    """A BERT network whose tokenizer is of the Unigram kind."""
    tokenizer = load_reference("unigram")
    path = save_network(folder / "model", "bert", vocab_size=len(tokenizer))
    (path / "tokenizer_config.json").unlink()
    tokenizer.save_pretrained(path)
    return path


def _save_with_bytes(folder: Path) -> Path:
    """A RoBERTa network with a byte-level BPE tokenizer."""
    tokenizer = load_reference("byte-level bpe")
    path = save_network(folder / "model", "roberta", vocab_size=len(tokenizer))
    (path / "tokenizer_config.json").unlink()
    tokenizer.save_pretrained(path)
    rewrite_json(path / "tokenizer_config.json", model_max_length=256)
    return path


BASES: dict[str, Callable[[Path], Path]] = {
    "bert": lambda folder: save_small_model(folder, "bert"),
    "roberta": lambda folder: save_small_model(folder, "roberta"),
    "llama": lambda folder: save_small_model(folder, "llama"),
    "bare bert": lambda folder: save_network(folder / "model", "bert"),
    "projected": _save_projected,
    "pieces": _save_with_pieces,
    "bytes": _save_with_bytes,
    "reranker": lambda folder: save_small_classifier(folder, "bert"),
    "classifier": lambda folder: save_small_classifier(folder, "bert", num_labels=3),
    "splade": lambda folder: save_small_splade(folder, "bert"),
    "m3": save_small_m3,
    "router": save_small_router,
    "colbert": lambda folder: save_small_late_interaction(folder, "bert", skiplist_words=["word7"]),
}


def _write(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def _remove(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def _edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def _set(name: str, **values: object) -> Callable[[Path], None]:
    return lambda folder: rewrite_json(folder / name, **values)


def _scale_weights(factor: float) -> Callable[[Path], None]:
    return lambda folder: change_weights(
        folder, lambda tensors: {name: tensor * factor for name, tensor in tensors.items()}
    )


def _save_in_float64(folder: Path) -> None:
    change_weights(folder, lambda tensors: {name: tensor.double() for name, tensor in tensors.items()})


def _save_without_metadata(folder: Path) -> None:
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")


def _save_for_tensorflow(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "tf_model.h5")


def _save_two_towers(folder: Path) -> None:
    change_weights(
        folder,
        lambda tensors: {
            f"{tower}.{name}": tensor.clone()
            for tower in ("query", "passage")
            for name, tensor in tensors.items()
        },
    )


def _save_unequal_towers(folder: Path) -> None:
    _save_two_towers(folder)
    drop_weights(folder, r"^passage\.pooler")


def _fill(pattern: str, value: float) -> Callable[[Path], None]:
    return lambda folder: change_weights(
        folder,
        lambda tensors: {
            name: torch.full_like(tensor, value) if re.search(pattern, name) else tensor
            for name, tensor in tensors.items()
        },
    )


def _set_zero(pattern: str) -> Callable[[Path], None]:
    return lambda folder: change_weights(
        folder,
        lambda tensors: {
            name: tensor * (re.search(pattern, name) is None) for name, tensor in tensors.items()
        },
    )


def _scale_head(name: str, factor: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = torch.load(folder / name)
        torch.save({key: tensor * factor for key, tensor in weights.items()}, folder / name)

    return change


def _in(subfolder: str, change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: change(folder / subfolder)


def _set_path(module: int, path: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        modules[module]["path"] = path
        (folder / "modules.json").write_text(json.dumps(modules))

    return change


def _cut_vocabulary(folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    words = values["model"]["vocab"]
    values["model"]["vocab"] = {word: words[word] for word in list(words)[:200]}
    (folder / "tokenizer.json").write_text(json.dumps(values))


def _lose_merges(folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(values))


def _lose_end_token(folder: Path) -> None:
    """Ask for an end token in the config alone, as e5-mistral does."""
    values = json.loads((folder / "tokenizer.json").read_text())
    processor = values["post_processor"]
    processor["single"] = [part for part in processor["single"] if "[SEP]" not in json.dumps(part)]
    (folder / "tokenizer.json").write_text(json.dumps(values))
    rewrite_json(folder / "tokenizer_config.json", add_eos_token=True, eos_token="[SEP]")


def _shard(folder: Path) -> None:
    network: Any = SentenceTransformer(str(folder), device="cpu")[0].model
    network.save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()


def _shard_and_lose_one(folder: Path) -> None:
    _shard(folder)
    sorted(folder.glob("model-*-of-*.safetensors"))[1].unlink()


def _nothing(folder: Path) -> None:
    """Leave the folder whole."""


TRAPS: dict[str, Trap] = {
    # Weights.
    "a whole embedder": Trap("bert", _nothing),
    "a layer is missing": Trap(
        "bert", lambda path: drop_weights(path, r"layer\.1\."), r"encoder\.layer\.1\."
    ),
    "the words are missing": Trap("bert", lambda path: drop_weights(path, "word_emb"), "word_embeddings"),
    "an unused pooler is missing": Trap("bert", lambda path: drop_weights(path, r"^pooler\.")),
    "names begin with module.": Trap(
        "bert", lambda path: prefix_weights(path, "module."), warned=r"'module\.'", has_reference=False
    ),
    "names begin with model.": Trap(
        "roberta", lambda path: prefix_weights(path, "model."), warned=r"'model\.'", has_reference=False
    ),
    "names begin with encoder.": Trap(
        "bert", lambda path: prefix_weights(path, "encoder."), warned=r"'encoder\.'", has_reference=False
    ),
    "two towers in one file": Trap("bert", _save_two_towers, "weights are not in the file"),
    "two towers, one without its pooler": Trap("bert", _save_unequal_towers, "weights are not in the file"),
    "more layers in the config": Trap("bert", _set("config.json", num_hidden_layers=5), r"layer\.[34]\."),
    "fewer layers in the config": Trap(
        "bert", _set("config.json", num_hidden_layers=2), warned="fewer layers than the file"
    ),
    "another shape in the config": Trap("bert", _set("config.json", vocab_size=600), "has the shape"),
    "weights in float64": Trap("bert", _save_in_float64),
    "weights without metadata": Trap("bert", _save_without_metadata),
    "weights for TensorFlow": Trap(
        "bert", _save_for_tensorflow, "(?i)no file named model.safetensors|weights"
    ),
    "NaN in all weights": Trap("bert", _scale_weights(float("nan")), "is NaN in the file"),
    "NaN in one matrix of attention": Trap(
        "bert", _fill(r"layer\.1\.attention\.self\.query\.weight", float("nan")), "query.weight' is NaN in"
    ),
    "an infinite bias": Trap(
        "bert", _fill(r"layer\.1\.output\.dense\.bias", float("inf")), "every output is NaN or infinite"
    ),
    "zero in all weights": Trap("bert", _scale_weights(0.0), "every output is zero"),
    "zero in the table of words": Trap("bert", _set_zero("word_emb"), "different texts have the same output"),
    "zero in one route's table": Trap(
        "router", _in("query_0_StaticEmbedding", _scale_weights(0.0)), "every output is zero"
    ),
    "NaN in a head": Trap("m3", _scale_head("colbert_linear.pt", float("nan")), "is NaN in the file"),
    "zero in a head": Trap("m3", _scale_head("sparse_linear.pt", 0.0), "every sparse output is zero"),
    "a reranker without its head": Trap(
        "reranker", lambda path: drop_weights(path, r"^classifier\."), r"classifier\.(weight|bias)"
    ),
    "a reranker without its pooler": Trap("reranker", lambda path: drop_weights(path, "pooler"), "pooler"),
    "a whole reranker": Trap("reranker", _nothing),
    "a reranker with a prefix": Trap(
        "reranker", lambda path: prefix_weights(path, "module."), warned=r"'module\.'", has_reference=False
    ),
    "a sparse model without its head": Trap(
        "splade", lambda path: drop_weights(path, r"^cls\."), r"cls\.predictions"
    ),
    "a sharded file": Trap("bert", _shard),
    "a shard is missing": Trap("bert", _shard_and_lose_one, r"model-00002-of-\d+\.safetensors is missing"),
    "weights are cut off": Trap("bert", _edit("model.safetensors", lambda data: data[:-100]), "is cut off"),
    "weights are empty": Trap("bert", _write("model.safetensors", b""), "is empty"),
    "weights are a pointer": Trap("bert", _write("model.safetensors", LFS_POINTER), "git lfs pull"),
    # Tokenizers.
    "the tokenizer is a pointer": Trap("bert", _write("tokenizer.json", LFS_POINTER), "git lfs pull"),
    "no vocabulary, BERT": Trap("bert", _remove("tokenizer.json"), "special tokens only"),
    "no tokenizer, BERT": Trap(
        "bare bert", _remove("tokenizer.json", "tokenizer_config.json"), "special tokens only"
    ),
    "no tokenizer, RoBERTa": Trap("roberta", _remove("tokenizer.json"), "has no tokenizer"),
    "no tokenizer in one route": Trap(
        "router",
        _remove("query_0_StaticEmbedding/tokenizer.json"),
        r"query_0_StaticEmbedding/tokenizer\.json is missing",
    ),
    "the tokenizer is cut off": Trap(
        "bert",
        _edit("tokenizer.json", lambda data: data[:-500]),
        r"tokenizer\.json is not a file of the tokenizers",
    ),
    "the tokenizer is a web page": Trap(
        "bert",
        _write("tokenizer.json", "<!DOCTYPE html>"),
        r"tokenizer\.json is not a file of the tokenizers",
    ),
    "a tokenizer class that cannot read its file": Trap(
        "bert",
        _set("tokenizer_config.json", tokenizer_class="T5Tokenizer"),
        'set "tokenizer_class" to "PreTrainedTokenizerFast"',
    ),
    "no vocabulary, reranker": Trap("reranker", _remove("tokenizer.json"), "special tokens only"),
    "half a vocabulary": Trap("bert", _cut_vocabulary, warned="may be cut off"),
    "a tokenizer of another class": Trap(
        "pieces", _set("tokenizer_config.json", tokenizer_class="BertTokenizer"), "a BertTokenizer, is not"
    ),
    "a tokenizer of no class": Trap(
        "pieces", _set("tokenizer_config.json", tokenizer_class=None), "a BertTokenizer, is not"
    ),
    "pieces by their file": Trap("pieces", _nothing),
    "pieces of bytes": Trap("bytes", _nothing),
    "no merges": Trap("bytes", _lose_merges, "does not find its own words"),
    "a tokenizer of another model": Trap(
        "bare bert",
        lambda path: load_reference("wordpiece").save_pretrained(path),
        "cannot compute",
    ),
    "the end token is lost": Trap("llama", _lose_end_token, warned="says add_eos_token"),
    "no padding token": Trap("llama", drop_padding_token, has_reference=False),
    "no token for unknown words": Trap(
        "roberta",
        _edit("tokenizer.json", lambda data: re.sub(rb',\s*"unk_token": ?"\[UNK\]"', b"", data)),
        r"tokenizer\.json is not a file of the tokenizers library \(missing field",
    ),
    "an unknown side of padding": Trap(
        "bert", _set("tokenizer_config.json", padding_side="middle"), r"tokenizer_config\.json: Padding side"
    ),
    # Modules and settings.
    "a route of a missing module": Trap(
        "router",
        _set("router_config.json", structure={"query": ["query_9"], "document": ["document_0_Transformer"]}),
        r"router_config\.json: the route 'query' names 'query_9'",
    ),
    "a route of no modules": Trap(
        "router",
        _set("router_config.json", structure={"query": [], "document": ["document_0_Transformer"]}),
        r"router_config\.json: the route 'query' has no modules",
    ),
    "a default route that is none": Trap(
        "router",
        _set("router_config.json", parameters={"default_route": "other"}),
        r"router_config\.json: the default route 'other' is not one of its routes query, document",
    ),
    "routes without a structure": Trap(
        "router",
        _set("router_config.json", structure=None),
        r"router_config\.json needs the objects 'structure'",
    ),
    "more dimensions in the pooling than in the network": Trap(
        "bert",
        _set("1_Pooling/config.json", embedding_dimension=64),
        warned="vectors have 64 dimensions, but they have 32",
    ),
    "an activation of no name": Trap(
        "bert", _set("config.json", hidden_act="foo"), r"config\.json has the unknown hidden_act 'foo'"
    ),
    "a dtype of no name": Trap(
        "bert", _set("config.json", dtype="float12"), r"config\.json has the unknown dtype 'float12'"
    ),
    "no dimensions at all": Trap(
        "bert", _set("config_sentence_transformers.json", truncate_dim=0), "has truncate_dim=0"
    ),
    "quantized by nothing": Trap(
        "bert", _set("config.json", quantization_config={"bits": 4}), "it must be an object with quant_method"
    ),
    "quantized by a list": Trap("bert", _set("config.json", quantization_config=[4]), "with quant_method"),
    "an adapter that does not name its base": Trap(
        "bert", _write("adapter_config.json", '{"base_model_name_or_path": null}'), "is an adapter"
    ),
    "a whole pipeline": Trap("projected", _nothing),
    "the pooling folder is missing": Trap("bert", _remove("1_Pooling"), r"1_Pooling/config\.json is missing"),
    "a Dense folder is missing": Trap("projected", _remove("3_Dense"), r"3_Dense/config\.json is missing"),
    "the weights of a Dense module are missing": Trap(
        "projected", _remove("2_Dense/model.safetensors"), r"2_Dense/model\.safetensors is missing"
    ),
    "sizes of a Dense module are missing": Trap(
        "projected", _write("2_Dense/config.json", "{}"), "2_Dense lacks 'in_features' and 'out_features'"
    ),
    "modules.json is missing": Trap("bert", _remove("modules.json"), r"modules\.json is missing"),
    "an empty normalize folder": Trap("bert", _remove("2_Normalize")),
    "a whole late-interaction model": Trap("colbert", _nothing),
    "the token mask is missing": Trap("colbert", _remove("2_MultiVectorMask"), "MultiVectorMask"),
    "token normalization is missing": Trap("colbert", _remove("3_Normalize"), "Normalize"),
    "the limit of texts is missing": Trap(
        "bert", _remove("sentence_bert_config.json"), warned="cut at the limit of the tokenizer"
    ),
    "no limit of texts, by hand": Trap(
        "bert", _remove("sentence_bert_config.json", "config_sentence_transformers.json")
    ),
    "the task of a sparse model is missing": Trap(
        "splade", _remove("sentence_bert_config.json"), "a sparse model needs it"
    ),
    "query expansion is missing": Trap(
        "colbert", _remove("sentence_bert_config.json"), "a multivector model needs it"
    ),
    "the sparse head is missing": Trap("m3", _remove("sparse_linear.pt"), r"sparse_linear\.pt is missing"),
    "the head of token vectors is missing": Trap(
        "m3", _remove("colbert_linear.pt"), r"colbert_linear\.pt is missing"
    ),
    "a head is empty": Trap("m3", _write("colbert_linear.pt", b""), r"colbert_linear\.pt does not hold"),
    "a head is cut off": Trap(
        "m3", _edit("sparse_linear.pt", lambda data: data[:-50]), r"sparse_linear\.pt does not hold"
    ),
    "no head but the dense one": Trap("m3", _remove("sparse_linear.pt", "colbert_linear.pt")),
    "labels count from 1": Trap(
        "classifier", _set("config.json", id2label={"1": "a", "2": "b", "3": "c"}), "id2label"
    ),
    "a Windows separator before the name": Trap("bert", _set_path(1, ".\\1_Pooling"), "write it with '/'"),
    "a Windows separator behind the name": Trap("bert", _set_path(1, "1_Pooling\\"), "write it with '/'"),
    "a Windows separator in a router": Trap(
        "router",
        _edit("router_config.json", lambda data: data.replace(b"query_0_", b"query\\\\0_")),
        "write it with '/'",
    ),
    "two modules of one name": Trap(
        "bert",
        _edit("modules.json", lambda data: data.replace(b'"name": "1"', b'"name": "0"')),
        "two modules",
    ),
    "a slash behind the name": Trap("bert", _set_path(1, "./1_Pooling/")),
    "a byte order mark": Trap(
        "bert", _edit("modules.json", lambda data: b"\xef\xbb\xbf" + data), "byte order"
    ),
    "no prompts": Trap(
        "bert", _edit("config_sentence_transformers.json", lambda _: b'{"prompts": null}'), "prompts"
    ),
    "attention that is not installed": Trap(
        "bert", _set("config.json", _attn_implementation="flash_attention_2"), "(?i)flash"
    ),
    "a limit in quotes": Trap(
        "bert", _set("sentence_bert_config.json", max_seq_length="128"), "max_seq_length"
    ),
    "a limit beyond the positions": Trap(
        "roberta", _set("sentence_bert_config.json", max_seq_length=320), has_reference=False
    ),
}
