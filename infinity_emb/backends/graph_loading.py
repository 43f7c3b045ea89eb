"""From a model to the graph that computes its network: the repository's own file, or an export from torch.

Each is compared with torch at every start. Knows nothing of the libraries that compute graphs:
each engine hands in how one is opened.
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infinity_emb.backends.graph_files import ONNX, FileKind, GraphFile, choose_file, cpu_features, parts_of
from infinity_emb.backends.network_loading import difference_to_torch
from infinity_emb.backends.network_probe import Probe
from infinity_emb.backends.network_stand_in import StandIn
from infinity_emb.backends.onnx_export import exported_graph
from infinity_emb.backends.onnx_weights import weight_files
from infinity_emb.backends.torch_device import Choice
from infinity_emb.config import EngineArgs
from infinity_emb.errors import DeviceFailed, StartupError
from infinity_emb.model_files import ModelFiles
from infinity_emb.primitives import Dtype
from infinity_emb.repository_files import fetch_file, list_files

logger = logging.getLogger("infinity_emb")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphLoader:
    """How one model's graph is found and opened.

    kinds: the graphs that the library reads, first its own.
    dtype: number format that is computed in.
    halves_float32: whether that is half precision, and the library makes it of a float32 graph by itself.
    computed_by: who computes, for the log.
    open_graph: a graph's file, what the module around it asks for, and the format → what computes it. Raises
    StartupError for a graph that it cannot open.
    """

    args: EngineArgs
    files: ModelFiles
    kinds: tuple[FileKind, ...]
    dtype: Dtype
    halves_float32: bool
    computed_by: str
    open_graph: Callable[[Path, Probe, Dtype], StandIn]

    def choose_network(self, probe: Probe) -> tuple[StandIn, Choice]:
        """That of the repository's file, or of an exported graph; and its number format, and why."""
        names = list_files(self.files)
        file = self.choose_file(names)
        if file is None and probe.rows is None:
            raise StartupError(self._nothing_to_compute(names))
        if file is not None:
            origin = f"{file.name} ({file.reason})"
            try:
                network, dtype = self._open(self._fetch(file, names), origin, file.dtype, probe)
            except DeviceFailed:
                raise
            except StartupError as exc:
                if file.dtype is not Dtype.float32 or self.args.graph_file or probe.rows is None:
                    raise
                logger.warning("exporting the model from torch, as its own file is not served: %s", exc)
            else:
                network.graph = file.name
                return network, dtype
        exported = exported_graph(probe.transformer, self.args, self.files)
        return exported.opened(
            lambda path: self._open(path, "a graph exported from torch", Dtype.float32, probe)
        )

    def choose_file(self, names: list[str]) -> GraphFile | None:
        """Of the repository's files, or None to export. Raises StartupError for a format that has no file."""
        args = self.args
        wanted = Dtype.float32 if self.halves_float32 else self.dtype
        file = choose_file(
            names, self.kinds, asked_for=args.graph_file, dtype=wanted, features=cpu_features()
        )
        if file is None and wanted is not Dtype.float32:
            suffixes = " or ".join(kind.suffix for kind in self.kinds)
            raise StartupError(
                f"--dtype {wanted} needs a file {suffixes} of that format, and {args.model_name_or_path!r}"
                " has none; leave it out, or name a file by --graph-file, or use --engine torch"
            )
        if file is not None and args.dtype is not Dtype.auto and file.dtype not in (wanted, self.dtype):
            raise StartupError(
                f"--graph-file {file.name} is {file.dtype} by its name, and --dtype is {args.dtype};"
                " leave one of them out"
            )
        return file

    def _nothing_to_compute(self, names: list[str]) -> str:
        graphs = [name for name in names if name.endswith(tuple(kind.suffix for kind in self.kinds))]
        return (
            f"model {self.args.model_name_or_path!r} has no torch weights, and no {Dtype.float32} graph where"
            f" --engine {self.args.engine} looks for one; name one by --graph-file, of: "
            + (", ".join(graphs) or "none")
        )

    def _fetch(self, file: GraphFile, names: list[str]) -> Path:
        """The graph, with the files of its weights beside it."""
        graph, *_ = [fetch_file(self.files, name) for name in parts_of(names, file.name)]
        if graph.suffix == ONNX.suffix:
            folder = posixpath.dirname(file.name)
            beside = {posixpath.join(folder, each) for each in weight_files(graph)}
            for name in sorted(beside.intersection(names)):
                fetch_file(self.files, name)
        return graph

    def _open(self, path: Path, origin: str, file_dtype: Dtype, probe: Probe) -> tuple[StandIn, Choice]:
        """Raises StartupError for a graph that cannot compute, or that answers otherwise than torch."""
        dtype = self.dtype if self.halves_float32 and file_dtype is Dtype.float32 else file_dtype
        network = self.open_graph(path, probe, dtype)
        difference = difference_to_torch(
            network, probe, self.args, origin=origin, dtype=dtype, is_named=bool(self.args.graph_file)
        )
        reason = f"{origin}, {difference}"
        logger.info("%s computes %s", self.computed_by, reason)
        return network, Choice(str(dtype), reason)
