"""Export a model's network to an ONNX graph in the cache, once for each revision."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers.base.modules import Transformer
from torch import Tensor

from infinity_emb.backends.external.network import read_output_name
from infinity_emb.backends.external.onnx_weights import find_weight_files
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import StartupError
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.storage.artifacts import CachedArtifact, artifact_dir, get_file_stats
from infinity_emb.storage.keyed_file import make_keyed_name

# Raised when the output changes, so that older graphs are exported again.
_EXPORT_VERSION = 1
_GRAPH_NAME = "model.onnx"
_EXAMPLE_SHAPE = (2, 9)  # neither is 1, which the exporter would take for a constant size


def engine_folder(graph: Path) -> Path:
    """Return the folder of TensorRT's engines for one version of a graph.

    TensorRT compares only the structure of a graph, and would use the engine of another revision's weights.
    """
    key = repr(get_file_stats([graph, *(graph.parent / name for name in find_weight_files(graph))]))
    return artifact_dir("onnx") / "tensorrt" / hashlib.sha256(key.encode()).hexdigest()[:32]


def get_exported_graph(transformer: Transformer, args: LoadOptions, files: ModelFiles) -> CachedArtifact:
    """Return the graph of a network, which is exported when it is first opened.

    transformer: its network must be on the CPU, in float32.
    """
    return CachedArtifact(
        action=f"exporting {args.model_name_or_path} to ONNX",
        folder=artifact_dir("onnx") / name_export_folder(transformer, args, files),
        main_file=_GRAPH_NAME,
        make=lambda folder: export_graph(transformer, folder / _GRAPH_NAME),
    )


def name_export_folder(transformer: Transformer, args: LoadOptions, files: ModelFiles) -> str:
    """Return a name that changes with whatever may change the exported graph."""
    return make_keyed_name(
        args.model_name_or_path,
        files.version,
        # A model with its own code may differ from transformers' network of the same type.
        args.trust_remote_code,
        _EXPORT_VERSION,
        type(transformer.model).__name__,
        transformer.transformer_task,
        read_output_name(transformer),
        torch.__version__,
        transformers.__version__,
    )


class _OneOutput(torch.nn.Module):
    """A network that takes tensors in a fixed order and returns one."""

    def __init__(self, network: torch.nn.Module, input_names: list[str], output_name: str) -> None:
        super().__init__()
        self.network = network
        self.input_names = input_names
        self.output_name = output_name

    def forward(self, *tensors: Tensor) -> Tensor:
        features = dict(zip(self.input_names, tensors, strict=True))
        answer: Tensor = self.network(**features, return_dict=True)[self.output_name]
        return answer


def export_graph(transformer: Transformer, path: Path) -> None:
    """Write the graph of the network. Raises StartupError if onnxscript is not installed."""
    if importlib.util.find_spec("onnxscript") is None:  # a cached graph does not need it
        raise StartupError(
            "a graph is exported by onnxscript, which is not installed;"
            " install it with: pip install 'infinity-emb[onnx]'"
        )
    network: Any = transformer.model
    names = ["input_ids", "attention_mask"]
    if "token_type_ids" in getattr(transformer.tokenizer, "model_input_names", ()):
        names.append("token_type_ids")
    vocab_size = int(network.get_input_embeddings().weight.shape[0])
    ids = torch.randint(vocab_size, _EXAMPLE_SHAPE, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    output_name = read_output_name(transformer)
    with _plain_attention(network), _quietly():
        torch.onnx.export(
            _OneOutput(network, names, output_name).eval(),
            (ids, mask, torch.zeros_like(ids))[: len(names)],
            path,
            input_names=names,
            output_names=[output_name],
            dynamic_shapes=((sizes,) * len(names),),
            dynamo=True,
            external_data=True,  # required for graphs over 2 GB
            verbose=False,
        )


@contextlib.contextmanager
def _plain_attention(network: Any) -> Iterator[None]:
    """Use eager attention inside the block: onnxruntime fuses its products and softmax into one operator."""
    original = network.config._attn_implementation
    with contextlib.suppress(ValueError):  # raised by a network that has only one implementation
        network.set_attn_implementation("eager")
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            network.set_attn_implementation(original)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppress the exporter's warnings about model code and optional packages inside the block."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [each.level for each in noisy]
    for each in noisy:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(noisy, levels, strict=True):
            each.setLevel(level)
