"""Load a model whose network OpenVINO computes: from the repository's OpenVINO or ONNX file, or exported.

What is around the network is the torch engine's: tokenizing, padded groups of similar length, and the modules
that pool, project and normalise. Knows nothing of queues or HTTP.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.graph_files import ONNX, OPENVINO
from infinity_emb.backends.graph_loading import GraphLoader
from infinity_emb.backends.network_loading import load_with_stand_in
from infinity_emb.backends.network_probe import Probe
from infinity_emb.backends.network_stand_in import NUMBER_FORMATS
from infinity_emb.backends.openvino_compiling import compile_graph
from infinity_emb.backends.openvino_device import CPU, choose_device, choose_dtype, properties
from infinity_emb.backends.openvino_library import core
from infinity_emb.backends.openvino_network import OpenVinoNetwork
from infinity_emb.backends.torch_device import MAX_CPU_REPLICAS
from infinity_emb.backends.torch_loading import load_within_memory
from infinity_emb.config import EngineArgs
from infinity_emb.hardware import num_usable_cpus
from infinity_emb.model_files import ModelFiles
from infinity_emb.primitives import Dtype

_CORES_PER_STREAM = 2


def load_model(args: EngineArgs, files: ModelFiles) -> LoadedModel:
    """Load, compare and warm up. Raises StartupError for whatever cannot be served, and ModelTooLarge."""
    device = choose_device(args, core().available_devices)
    dtype = choose_dtype(args, device, core().get_property(device, "OPTIMIZATION_CAPABILITIES"))
    num_replicas = _num_replicas(args, device)
    devices = [torch.device("cpu")] * num_replicas  # of the modules around the network

    def open_graph(path: Path, probe: Probe, dtype: Dtype) -> OpenVinoNetwork:
        told = properties(args, device, dtype, num_replicas=num_replicas)
        compiling = functools.partial(compile_graph, path, device, told)
        return OpenVinoNetwork(compiling, probe.transformer, NUMBER_FORMATS[dtype])

    loader = GraphLoader(
        args=args,
        files=files,
        # OpenVINO reads ONNX's quantised graphs too, and computes them slower than float32.
        kinds=(OPENVINO,) if dtype is Dtype.int8 and not args.graph_file else (OPENVINO, ONNX),
        dtype=dtype,
        halves_float32=dtype in (Dtype.float16, Dtype.bfloat16),
        computed_by=f"OpenVINO on {device}",
        open_graph=open_graph,
    )

    def load() -> LoadedModel:
        return load_with_stand_in(
            args, files, devices, loader.choose_network, device_name=_name_of(device), needs_weights=False
        )

    return load_within_memory(args, files, devices[0], load)


def _num_replicas(args: EngineArgs, device: str) -> int:
    """They share one compiled graph, in which each batch has a stream of its own.

    A stream cannot take the cores of one that is idle. With a core each, two batches side by side are slower
    than one after the other on both.
    """
    if device != CPU:
        return 1
    num_streams = (args.threads or num_usable_cpus()) // _CORES_PER_STREAM
    return len(args.device_id) or max(1, min(num_streams, MAX_CPU_REPLICAS))


def _name_of(device: str) -> str:
    """As the options say it: `cpu`, `xpu:1`."""
    kind, _, number = device.partition(".")
    return "cpu" if kind == CPU else f"xpu:{number or 0}"
