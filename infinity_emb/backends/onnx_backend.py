"""Load a model whose network onnxruntime computes: from the repository's ONNX file, or exported from torch.

What is around the network is the torch engine's: tokenizing, padded groups of similar length, and the modules
that pool, project and normalise. Knows nothing of queues or HTTP.
"""

from __future__ import annotations

import logging
from pathlib import Path

import onnxruntime
import torch
from sentence_transformers.base.modules import Transformer

from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.graph_files import ONNX
from infinity_emb.backends.graph_loading import GraphLoader
from infinity_emb.backends.network_loading import load_with_stand_in
from infinity_emb.backends.network_probe import Probe
from infinity_emb.backends.network_stand_in import NUMBER_FORMATS
from infinity_emb.backends.onnx_export import engine_folder
from infinity_emb.backends.onnx_network import OnnxNetwork
from infinity_emb.backends.onnx_profiles import Box, choose_box
from infinity_emb.backends.onnx_session import Provider, choose_provider, open_session, provider_options
from infinity_emb.backends.torch_loading import load_within_memory
from infinity_emb.backends.torch_models import Expansion, limit_of
from infinity_emb.config import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.model_files import ModelFiles
from infinity_emb.primitives import Dtype

logger = logging.getLogger("infinity_emb")

# Of texts at once, below which a GPU is idle where they are short.
_FEW_ITEMS = 16


def load_model(args: EngineArgs, files: ModelFiles) -> LoadedModel:
    """Load, compare and warm up. Raises StartupError for whatever cannot be served, and ModelTooLarge."""
    provider = choose_provider(args)
    devices = _devices(args, provider)
    loader = _graph_loader(args, files, provider, devices[0])

    def load() -> LoadedModel:
        return load_with_stand_in(
            args, files, devices, loader.choose_network, device_name=provider.name, needs_weights=False
        )

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
            f"--dtype {args.dtype} is not for --engine {args.engine}; use float32, float16 or int8"
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
    transformer = probe.transformer
    box = _box_of(transformer, args) if provider.name == "tensorrt" else None

    def start(box: Box | None) -> onnxruntime.InferenceSession:
        return open_session(path, provider, provider_options(provider, args, dtype, folder, box), args)

    folder = engine_folder(path)
    try:
        session = start(box)
    except StartupError as exc:
        if box is None:
            raise
        # Where TensorRT computes parts of a graph, what passes between them has shapes that nobody can tell.
        box, session = None, start(None)
        logger.warning("TensorRT will build an engine anew for batches of new shapes, for minutes: %s", exc)
    if box is not None and box.max_items < _FEW_ITEMS:
        logger.warning("TensorRT computes %d texts of up to %d tokens at a time; --device cuda more", *box)
    max_items = None if box is None else box.max_items
    return OnnxNetwork(session, transformer, device, NUMBER_FORMATS[dtype], max_items=max_items)


def _box_of(transformer: Transformer, args: EngineArgs) -> Box | None:
    """None for a model whose texts have no limit, or one that is too high for a box."""
    whole = transformer.max_seq_length
    expansion = Expansion.of(transformer)
    longest = expansion.length if expansion else 0
    for task in (None, "query", "document"):
        limit = limit_of(transformer, task, whole)
        if limit is None:
            return None
        longest = max(longest, limit)
    is_sparse = transformer.transformer_task == "fill-mask"
    return choose_box(longest, args, num_scores=int(transformer.config.vocab_size) if is_sparse else 1)
