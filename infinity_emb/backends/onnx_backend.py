"""Load a model whose network onnxruntime computes: from the repository's ONNX file, or exported from torch.

What is around the network is the torch engine's: tokenizing, padded groups of similar length, and the modules
that pool, project and normalise. A float32 graph is compared with torch at every start. Knows nothing of
queues or HTTP.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.network_loading import difference_to_torch, load_with_stand_in
from infinity_emb.backends.network_probe import Probe
from infinity_emb.backends.onnx_export import engine_folder, exported_graph
from infinity_emb.backends.onnx_files import OnnxFile, choose_file, cpu_features, parts_of
from infinity_emb.backends.onnx_network import OnnxNetwork
from infinity_emb.backends.onnx_session import Provider, choose_provider, open_session, provider_options
from infinity_emb.backends.torch_device import Choice
from infinity_emb.backends.torch_loading import load_within_memory
from infinity_emb.config import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.model_files import ModelFiles
from infinity_emb.primitives import Dtype
from infinity_emb.repository_files import fetch_file, list_files

logger = logging.getLogger("infinity_emb")

_NUMBER_FORMATS = {Dtype.float32: torch.float32, Dtype.float16: torch.float16, Dtype.int8: torch.int8}


def load_model(args: EngineArgs, files: ModelFiles) -> LoadedModel:
    """Load, compare and warm up. Raises StartupError for whatever cannot be served, and ModelTooLarge."""
    provider = choose_provider(args)
    loader = _Loader(args, files, provider, _choose_dtype(args, provider))
    devices = _devices(args, provider)
    return load_within_memory(args, files, devices[0], lambda: loader.load(devices))


def _choose_dtype(args: EngineArgs, provider: Provider) -> Dtype:
    """The number format that is computed in; TensorRT is asked for half precision, which it is made for."""
    if args.dtype is Dtype.auto:
        return Dtype.float16 if provider.name == "tensorrt" else Dtype.float32
    if args.dtype not in _NUMBER_FORMATS:
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


class _Loader:
    """What one model's loading knows from the start."""

    def __init__(self, args: EngineArgs, files: ModelFiles, provider: Provider, dtype: Dtype) -> None:
        self._args = args
        self._files = files
        self._provider = provider
        self._dtype = dtype

    def load(self, devices: list[torch.device]) -> LoadedModel:
        """With a replica on each of the devices."""
        args, files = self._args, self._files
        loaded = load_with_stand_in(
            args, files, devices, lambda probe: self._choose_network(probe, devices[0])
        )
        device = loaded.info.device if self._provider.name == "cpu" else self._provider.name
        return replace(loaded, info=replace(loaded.info, device=device))

    def _choose_network(self, probe: Probe, device: torch.device) -> tuple[OnnxNetwork, Choice]:
        """That of the repository's file, or of an exported graph; and its number format, and why."""
        names = list_files(self._args.model_name_or_path, self._files)
        file = self._choose_file(names)
        if file is not None:
            origin = f"{file.name} ({file.reason})"
            try:
                return self._open(self._fetch(file, names), origin, file.dtype, probe, device)
            except StartupError as exc:
                if file.dtype is not Dtype.float32 or self._args.onnx_file:
                    raise
                logger.warning("exporting the model from torch, as its own file is not served: %s", exc)
        graph = exported_graph(probe.transformer, self._args, self._files)
        return self._open(graph, "a graph exported from torch", Dtype.float32, probe, device)

    def _choose_file(self, names: list[str]) -> OnnxFile | None:
        args = self._args
        wanted = Dtype.float32 if self._provider.name == "tensorrt" else self._dtype
        file = choose_file(names, asked_for=args.onnx_file, dtype=wanted, features=cpu_features())
        if file is None and wanted is not Dtype.float32:
            raise StartupError(
                f"--dtype {wanted} needs an ONNX file of that format, and {args.model_name_or_path!r} has"
                " none; leave it out, or name a file by --onnx-file, or use --engine torch"
            )
        return file

    def _fetch(self, file: OnnxFile, names: list[str]) -> Path:
        graph, *_ = (
            fetch_file(self._args.model_name_or_path, self._files, name)
            for name in parts_of(names, file.name)
        )
        return graph

    def _open(
        self, path: Path, origin: str, dtype: Dtype, probe: Probe, device: torch.device
    ) -> tuple[OnnxNetwork, Choice]:
        """Raises StartupError for a graph that cannot compute, or that answers otherwise than torch."""
        args = self._args
        options = provider_options(self._provider, args, self._dtype, engine_folder(path))
        session = open_session(path, self._provider, options, args)
        if self._provider.name == "tensorrt":
            dtype = self._dtype  # it halves a float32 graph by itself
        network = OnnxNetwork(session, probe.transformer, device, _NUMBER_FORMATS[dtype])
        # Whoever names a file, or a coarser format, has said that its numbers are wanted.
        is_exact = dtype is Dtype.float32 and not args.onnx_file
        difference = difference_to_torch(network, probe, args, origin=origin, is_exact=is_exact)
        reason = f"{origin}, difference to torch {difference:.0e}"
        logger.info("%s computes %s", self._provider.onnx_name, reason)
        return network, Choice(str(dtype), reason)
