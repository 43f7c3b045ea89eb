"""Load a model whose network OpenVINO computes: from the repository's OpenVINO or ONNX file, or exported.

Everything around the network is the torch engine's: tokenizing, padded groups of similar length, and the
modules that pool, project and normalize.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.external.graph_files import ONNX, OPENVINO
from infinity_emb.backends.external.graph_loader import GraphLoader
from infinity_emb.backends.external.load import load_with_external_network
from infinity_emb.backends.external.network import NUMBER_FORMATS
from infinity_emb.backends.external.parity_check import Probe
from infinity_emb.backends.openvino.compile import compile_graph
from infinity_emb.backends.openvino.device import CPU, choose_device, choose_dtype, make_properties
from infinity_emb.backends.openvino.network import OpenVinoNetwork
from infinity_emb.backends.openvino.runtime import core
from infinity_emb.backends.torch.device import MAX_CPU_REPLICAS
from infinity_emb.backends.torch.load import load_within_memory
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.hardware import num_usable_cpus
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.types import Dtype

_CORES_PER_STREAM = 2


def load_model(args: LoadOptions, files: ModelFiles) -> LoadedModel:
    """Load, compare and warm up a model. Raises StartupError if it cannot be served, and ModelTooLarge."""
    device = choose_device(args, core().available_devices)
    dtype = choose_dtype(args, device, core().get_property(device, "OPTIMIZATION_CAPABILITIES"))
    num_replicas = _num_replicas(args, device)
    devices = [torch.device("cpu")] * num_replicas  # of the modules around the network

    def open_graph(path: Path, probe: Probe, dtype: Dtype) -> OpenVinoNetwork:
        options = make_properties(args, device, dtype, num_replicas=num_replicas)
        compile_this = functools.partial(compile_graph, path, device, options)
        return OpenVinoNetwork(compile_this, probe.transformer, NUMBER_FORMATS[dtype])

    loader = GraphLoader(
        args=args,
        files=files,
        # OpenVINO also reads quantized ONNX graphs, but computes them slower than float32.
        kinds=(OPENVINO,) if dtype is Dtype.int8 and not args.graph_file else (OPENVINO, ONNX),
        dtype=dtype,
        halves_float32=dtype in (Dtype.float16, Dtype.bfloat16),
        computed_by=f"OpenVINO on {device}",
        open_graph=open_graph,
    )

    def load() -> LoadedModel:
        return load_with_external_network(
            args,
            files,
            devices,
            loader.choose_network,
            device_name=_format_device_name(device),
            needs_weights=False,
        )

    return load_within_memory(args, files, devices[0], load)


def _num_replicas(args: LoadOptions, device: str) -> int:
    """Return the number of replicas; they share one compiled graph and have a stream each.

    A stream cannot use the cores of an idle one. With one core per stream, two concurrent batches are slower
    than one after the other on both cores.
    """
    if device != CPU:
        return 1
    num_streams = (args.threads or num_usable_cpus()) // _CORES_PER_STREAM
    return len(args.device_id) or max(1, min(num_streams, MAX_CPU_REPLICAS))


def _format_device_name(device: str) -> str:
    """Return the name that options use: `cpu`, `xpu:1`."""
    kind, _, number = device.partition(".")
    return "cpu" if kind == CPU else f"xpu:{number or 0}"
