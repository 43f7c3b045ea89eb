"""A model's network → an ONNX graph in the cache, made once for each revision.

Knows nothing of sessions: what the graph answers is compared by whoever opens it.
"""

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

from infinity_emb.backends.made_once import MadeOnce, folder_name, folder_of_engine, stats_of
from infinity_emb.backends.network_stand_in import output_name_of
from infinity_emb.backends.onnx_weights import weight_files
from infinity_emb.config import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.model_files import ModelFiles

# Raised when what is exported changes, so that graphs of before are made anew.
_EXPORT_VERSION = 1
_GRAPH_NAME = "model.onnx"
_EXAMPLE_SHAPE = (2, 9)  # any but 1, which would be taken for a number that does not change


def engine_folder(graph: Path) -> Path:
    """Where TensorRT keeps what it builds of a graph; another one for each version of it.

    It looks at the graph's structure alone, and would take the weights of another revision; these may lie in
    files of their own.
    """
    key = repr(stats_of([graph, *(graph.parent / name for name in weight_files(graph))]))
    return folder_of_engine("onnx") / "tensorrt" / hashlib.sha256(key.encode()).hexdigest()[:32]


def exported_graph(transformer: Transformer, args: EngineArgs, files: ModelFiles) -> MadeOnce:
    """What opens the graph of a network, and makes it where it is not there.

    transformer: on the CPU, in float32.
    """
    return MadeOnce(
        model=args.model_name_or_path,
        deed="exported to ONNX",
        folder=folder_of_engine("onnx") / _folder_name(transformer, args, files),
        main_file=_GRAPH_NAME,
        make=lambda folder: _export(transformer, folder / _GRAPH_NAME),
    )


def _folder_name(transformer: Transformer, args: EngineArgs, files: ModelFiles) -> str:
    return folder_name(
        args,
        files,
        _EXPORT_VERSION,
        type(transformer.model).__name__,
        transformer.transformer_task,
        output_name_of(transformer),
        torch.__version__,
        transformers.__version__,
    )


class _OneOutput(torch.nn.Module):
    """A network that is called with tensors in a fixed order and answers one."""

    def __init__(self, network: torch.nn.Module, input_names: list[str], output_name: str) -> None:
        super().__init__()
        self.network = network
        self.input_names = input_names
        self.output_name = output_name

    def forward(self, *tensors: Tensor) -> Tensor:
        features = dict(zip(self.input_names, tensors, strict=True))
        answer: Tensor = self.network(**features, return_dict=True)[self.output_name]
        return answer


def _export(transformer: Transformer, path: Path) -> None:
    if importlib.util.find_spec("onnxscript") is None:  # a graph that is there already needs none
        raise StartupError(
            "a graph is exported by onnxscript, which is not installed;"
            " install it with: pip install 'infinity-emb[onnx]'"
        )
    network: Any = transformer.model
    names = ["input_ids", "attention_mask"]
    if "token_type_ids" in getattr(transformer.tokenizer, "model_input_names", ()):
        names.append("token_type_ids")
    num_words = int(network.get_input_embeddings().weight.shape[0])
    ids = torch.randint(num_words, _EXAMPLE_SHAPE, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    output_name = output_name_of(transformer)
    with _plain_attention(network), _quietly():
        torch.onnx.export(
            _OneOutput(network, names, output_name).eval(),
            (ids, mask, torch.zeros_like(ids))[: len(names)],
            path,
            input_names=names,
            output_names=[output_name],
            dynamic_shapes=((sizes,) * len(names),),
            dynamo=True,
            external_data=True,  # a graph over 2 GB has to
            verbose=False,
        )


@contextlib.contextmanager
def _plain_attention(network: Any) -> Iterator[None]:
    """Products and a softmax, which onnxruntime joins into one operator; the graph is the quicker for it."""
    original = network.config._attn_implementation
    with contextlib.suppress(ValueError):  # a network without the choice
        network.set_attn_implementation("eager")
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            network.set_attn_implementation(original)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The exporter warns of what it does with the model's own code, and logs what is not installed."""
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
