"""Load a model whose network onnxruntime computes: from the repository's ONNX file, or exported from torch.

Everything around the network is the torch engine's: tokenizing, padded groups of similar length, and the
modules that pool, project and normalize.
"""

from __future__ import annotations

import logging
from pathlib import Path

import onnxruntime
import torch
from sentence_transformers.base.modules import Transformer

from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.external.graph_files import ONNX
from infinity_emb.backends.external.graph_loader import GraphLoader
from infinity_emb.backends.external.load import load_with_external_network
from infinity_emb.backends.external.network import NUMBER_FORMATS
from infinity_emb.backends.external.onnx_export import engine_folder
from infinity_emb.backends.external.option_checks import get_only_device_id, refuse_option
from infinity_emb.backends.external.parity_check import Probe
from infinity_emb.backends.onnx.network import OnnxNetwork
from infinity_emb.backends.onnx.session import Provider, choose_provider, make_provider_options, open_session
from infinity_emb.backends.onnx.tensorrt_profiles import ShapeLimits, choose_shape_limits
from infinity_emb.backends.torch.load import load_within_memory
from infinity_emb.backends.torch.st_introspection import Expansion, get_task_limit
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import StartupError
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.types import Dtype

logger = logging.getLogger("infinity_emb")

# With fewer texts at once, a GPU is mostly idle if they are short.
_FEW_ITEMS = 16


def load_model(args: LoadOptions, files: ModelFiles) -> LoadedModel:
    """Load, compare and warm up a model. Raises StartupError if it cannot be served, and ModelTooLarge."""
    provider = choose_provider(args)
    devices = choose_devices(args, provider)
    loader = make_graph_loader(args, files, provider, devices[0])

    def load() -> LoadedModel:
        return load_with_external_network(
            args, files, devices, loader.choose_network, device_name=provider.name, needs_weights=False
        )

    return load_within_memory(args, files, devices[0], load)


def make_graph_loader(
    args: LoadOptions, files: ModelFiles, provider: Provider, device: torch.device
) -> GraphLoader:
    """Return the loader of graphs for this provider."""
    dtype = choose_dtype(args, provider)
    return GraphLoader(
        args=args,
        files=files,
        kinds=(ONNX,),
        dtype=dtype,
        halves_float32=provider.name == "tensorrt" and dtype is Dtype.float16,
        computed_by=provider.onnx_name,
        open_graph=lambda path, probe, dtype: open_network(path, probe, dtype, args, provider, device),
    )


def choose_dtype(args: LoadOptions, provider: Provider) -> Dtype:
    """Choose the dtype of the computation; TensorRT's default is half precision."""
    if args.dtype is Dtype.auto:
        return Dtype.float16 if provider.name == "tensorrt" else Dtype.float32
    if args.dtype not in (Dtype.float32, Dtype.float16, Dtype.int8):
        raise refuse_option("dtype", args.dtype, args, usable="float32, float16 or int8")
    return args.dtype


def choose_devices(args: LoadOptions, provider: Provider) -> list[torch.device]:
    """Return the device of the modules around the network for each replica; CPU replicas share a session."""
    if provider.name == "cpu":
        return [torch.device("cpu")] * max(1, len(args.device_id))
    number = get_only_device_id(args)
    if provider.memory == "cuda" and torch.cuda.is_available():
        return [torch.device("cuda", number)]
    return [torch.device("cpu")]


def open_network(
    path: Path, probe: Probe, dtype: Dtype, args: LoadOptions, provider: Provider, device: torch.device
) -> OnnxNetwork:
    """Open a graph. Raises StartupError if onnxruntime cannot load it or the module lacks inputs for it."""
    transformer = probe.transformer
    limits = choose_shapes(transformer, args) if provider.name == "tensorrt" else None

    def start(limits: ShapeLimits | None) -> onnxruntime.InferenceSession:
        return open_session(
            path, provider, make_provider_options(provider, args, dtype, folder, limits), args
        )

    folder = engine_folder(path)
    try:
        session = start(limits)
    except StartupError as exc:
        if limits is None:
            raise
        # If TensorRT computes only parts of a graph, the shapes of the tensors between them are unknown.
        limits, session = None, start(None)
        logger.warning(
            "TensorRT will rebuild its engine, which takes minutes, for batches of new shapes: %s", exc
        )
    if limits is not None and limits.max_items < _FEW_ITEMS:
        logger.warning(
            "TensorRT computes only %d texts of up to %d tokens at a time; --device cuda computes more",
            *limits,
        )
    max_items = None if limits is None else limits.max_items
    return OnnxNetwork(session, transformer, device, NUMBER_FORMATS[dtype], max_items=max_items)


def choose_shapes(transformer: Transformer, args: LoadOptions) -> ShapeLimits | None:
    """Return the shapes to build a TensorRT engine for; None if texts have no limit or a too high one."""
    whole = transformer.max_seq_length
    expansion = Expansion.resolve(transformer)
    longest = expansion.length if expansion else 0
    for task in (None, "query", "document"):
        limit = get_task_limit(transformer, task, whole)
        if limit is None:
            return None
        longest = max(longest, limit)
    is_sparse = transformer.transformer_task == "fill-mask"
    return choose_shape_limits(
        longest, args, num_scores=int(transformer.config.vocab_size) if is_sparse else 1
    )
