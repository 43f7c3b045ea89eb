"""Load a model whose network onnxruntime computes: from the repository's ONNX file, or exported from torch.

What is around the network is the torch engine's: tokenizing, padded groups of similar length, and the modules
that pool, project and normalise. Knows nothing of queues or HTTP.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.graph_files import ONNX
from infinity_emb.backends.graph_loading import GraphLoader
from infinity_emb.backends.network_loading import load_with_stand_in
from infinity_emb.backends.network_probe import Probe
from infinity_emb.backends.network_stand_in import NUMBER_FORMATS
from infinity_emb.backends.onnx_export import engine_folder
from infinity_emb.backends.onnx_network import OnnxNetwork
from infinity_emb.backends.onnx_session import Provider, choose_provider, open_session, provider_options
from infinity_emb.backends.torch_loading import load_within_memory
from infinity_emb.config import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.model_files import ModelFiles
from infinity_emb.primitives import Dtype


def load_model(args: EngineArgs, files: ModelFiles) -> LoadedModel:
    """Load, compare and warm up. Raises StartupError for whatever cannot be served, and ModelTooLarge."""
    provider = choose_provider(args)
    devices = _devices(args, provider)
    loader = _graph_loader(args, files, provider, devices[0])

    def load() -> LoadedModel:
        loaded = load_with_stand_in(args, files, devices, loader.choose_network, needs_weights=False)
        device = loaded.info.device if provider.name == "cpu" else provider.name
        return replace(loaded, info=replace(loaded.info, device=device))

    return load_within_memory(args, files, devices[0], load)


def _graph_loader(
    args: EngineArgs, files: ModelFiles, provider: Provider, device: torch.device
) -> GraphLoader:
    dtype = _choose_dtype(args, provider)
    return GraphLoader(
        args=args,
        files=files,
        kinds=(ONNX,),
        dtype=dtype,
        halves_float32=provider.name == "tensorrt" and dtype is Dtype.float16,
        computed_by=provider.onnx_name,
        open_graph=lambda path, probe, dtype: _open_network(path, probe, dtype, args, provider, device),
    )


def _choose_dtype(args: EngineArgs, provider: Provider) -> Dtype:
    """The number format that is computed in; TensorRT is asked for half precision, which it is made for."""
    if args.dtype is Dtype.auto:
        return Dtype.float16 if provider.name == "tensorrt" else Dtype.float32
    if args.dtype not in (Dtype.float32, Dtype.float16, Dtype.int8):
        raise StartupError(
            f"--dtype {args.dtype} is not for --engine {args.engine}; use float32, float16 or int8, or"
            " --engine torch"
        )
    return args.dtype


def _devices(args: EngineArgs, provider: Provider) -> list[torch.device]:
    """Where the modules around the network compute, one per replica: replicas on a CPU share a session."""
    if provider.name == "cpu":
        return [torch.device("cpu")] * max(1, len(args.device_id))
    if len(args.device_id) > 1:
        raise StartupError(
            f"--device-id has {len(args.device_id)} devices, and --engine {args.engine} serves a model on one"
            " of them; start a server for each, or use --engine torch"
        )
    if provider.memory == "cuda" and torch.cuda.is_available():
        return [torch.device("cuda", args.device_id[0] if args.device_id else 0)]
    return [torch.device("cpu")]


def _open_network(
    path: Path, probe: Probe, dtype: Dtype, args: EngineArgs, provider: Provider, device: torch.device
) -> OnnxNetwork:
    """Raises StartupError for a graph that onnxruntime cannot load, or that the module has no inputs for."""
    options = provider_options(provider, args, dtype, engine_folder(path))
    session = open_session(path, provider, options, args)
    return OnnxNetwork(session, probe.transformer, device, NUMBER_FORMATS[dtype])
