"""Find and open the graph that computes a model's network: the repository's own file, or an export from
torch.

Either is compared with torch at every start.
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infinity_emb.backends.external.graph_files import (
    ONNX,
    FileKind,
    GraphFile,
    choose_file,
    list_cpu_features,
    list_parts,
)
from infinity_emb.backends.external.load import describe_difference
from infinity_emb.backends.external.network import ExternalNetwork
from infinity_emb.backends.external.onnx_export import get_exported_graph
from infinity_emb.backends.external.onnx_weights import find_weight_files
from infinity_emb.backends.external.parity_check import Probe
from infinity_emb.backends.torch.device import Choice
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import DeviceFailed, StartupError
from infinity_emb.hub.repository import fetch_file, list_files
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.types import Dtype

logger = logging.getLogger("infinity_emb")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphLoader:
    """Find and open the graph of one model.

    kinds: the formats that the library reads, its own first.
    dtype: of the computation.
    halves_float32: whether the library converts a float32 graph to half precision.
    computed_by: name of the device or provider, for the log.
    open_graph: open a graph file, given the probe of the module around it and the dtype. Raises StartupError
        for a graph that it cannot open.
    """

    args: LoadOptions
    files: ModelFiles
    kinds: tuple[FileKind, ...]
    dtype: Dtype
    halves_float32: bool
    computed_by: str
    open_graph: Callable[[Path, Probe, Dtype], ExternalNetwork]

    def choose_network(self, probe: Probe) -> tuple[ExternalNetwork, Choice]:
        """Return the network of the repository's file or of an exported graph, and its dtype."""
        names = list_files(self.files)
        file = self.choose_file(names)
        if file is None and probe.rows is None:
            raise StartupError(self._explain_missing_graph(names))
        if file is not None:
            origin = f"{file.name} ({file.reason})"
            try:
                network, dtype = self._open(self.fetch(file, names), origin, file.dtype, probe)
            except DeviceFailed:
                raise
            except StartupError as exc:
                if file.dtype is not Dtype.float32 or self.args.graph_file or probe.rows is None:
                    raise
                logger.warning("exporting the model from torch, since its own file cannot be served: %s", exc)
            else:
                network.graph = file.name
                return network, dtype
        exported = get_exported_graph(probe.transformer, self.args, self.files)
        return exported.open_or_rebuild(
            lambda path: self._open(path, "a graph exported from torch", Dtype.float32, probe)
        )

    def choose_file(self, names: list[str]) -> GraphFile | None:
        """Choose a file of the repository, None to export. Raises StartupError if the dtype has no file."""
        args = self.args
        wanted = Dtype.float32 if self.halves_float32 else self.dtype
        file = choose_file(
            names, self.kinds, requested=args.graph_file, dtype=wanted, features=list_cpu_features()
        )
        if file is None and wanted is not Dtype.float32:
            suffixes = " or ".join(kind.suffix for kind in self.kinds)
            raise StartupError(
                f"--dtype {wanted} needs a file {suffixes} of that format, and {args.model_name_or_path!r}"
                " has none; leave it out, or name a file with --graph-file, or use --engine torch"
            )
        if file is not None and args.dtype is not Dtype.auto and file.dtype not in (wanted, self.dtype):
            raise StartupError(
                f"--graph-file {file.name} is {file.dtype} by its name, but --dtype is {args.dtype};"
                " leave one of them out"
            )
        return file

    def _explain_missing_graph(self, names: list[str]) -> str:
        graphs = [name for name in names if name.endswith(tuple(kind.suffix for kind in self.kinds))]
        return (
            f"model {self.args.model_name_or_path!r} has no torch weights, and no {Dtype.float32} graph where"
            f" --engine {self.args.engine} looks for one; name one with --graph-file, of: "
            + (", ".join(graphs) or "none")
        )

    def fetch(self, file: GraphFile, names: list[str]) -> Path:
        """Download the graph and the files of its weights."""
        graph, *_ = [fetch_file(self.files, name) for name in list_parts(names, file.name)]
        if graph.suffix == ONNX.suffix:
            folder = posixpath.dirname(file.name)
            beside = {posixpath.join(folder, each) for each in find_weight_files(graph)}
            for name in sorted(beside.intersection(names)):
                fetch_file(self.files, name)
        return graph

    def _open(
        self, path: Path, origin: str, file_dtype: Dtype, probe: Probe
    ) -> tuple[ExternalNetwork, Choice]:
        """Open a graph. Raises StartupError if it cannot compute, or if its outputs differ from torch's."""
        dtype = self.dtype if self.halves_float32 and file_dtype is Dtype.float32 else file_dtype
        network = self.open_graph(path, probe, dtype)
        difference = describe_difference(
            network, probe, self.args, origin=origin, dtype=dtype, is_named=bool(self.args.graph_file)
        )
        reason = f"{origin}, {difference}"
        logger.info("%s computes %s", self.computed_by, reason)
        return network, Choice(str(dtype), reason)
