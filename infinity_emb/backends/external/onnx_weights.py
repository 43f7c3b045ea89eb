"""Find the files with the weights of an ONNX graph: those in its folder that the graph names."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from infinity_emb.storage.artifacts import get_file_stats


def find_weight_files(graph: Path) -> tuple[str, ...]:
    """Return the paths of the files, relative to the folder of the graph; files outside it are left out.

    A damaged graph has none: the library that computes it reports the damage.
    """
    return _read_names(graph, *get_file_stats([graph]))


@functools.lru_cache(maxsize=8)
def _read_names(graph: Path, *stats: object) -> tuple[str, ...]:
    if not stats:
        return ()
    try:
        model = onnx.load(graph, load_external_data=False)
    except DecodeError:
        return ()
    nodes = [node for function in model.functions for node in function.node]
    tensors = filter(
        uses_external_data, (*model.graph.initializer, *_find_tensors([*nodes, *model.graph.node]))
    )
    names = dict.fromkeys(str(PurePosixPath(ExternalDataInfo(tensor).location)) for tensor in tensors)
    return tuple(name for name in names if _is_inside(name))


def _find_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Yield the weights in the attributes of nodes, subgraphs included."""
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield attribute.t
        yield from attribute.tensors
        for graph in (attribute.g, *attribute.graphs):
            yield from graph.initializer
            yield from _find_tensors(graph.node)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts
