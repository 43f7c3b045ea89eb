"""Which files hold the weights of an ONNX graph: those that lie beside it, by the names that it says itself.

Knows nothing of repositories, nor of who computes the graph.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path, PurePosixPath

# A protobuf message of two texts, key and value, each behind a tag and its length: `location` and a path.
# Source: StringStringEntryProto in https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x80-\xff]*[\x00-\x7f])")


def weight_files(graph: Path) -> list[str]:
    """Paths of the files with weights of the graph, seen from its folder; those outside of it are left out.

    Found without reading the graph as one: it may have gigabytes of weights in itself, or be damaged, which
    whoever computes it will say.
    """
    if not graph.is_file() or not graph.stat().st_size:  # of nothing there is no map
        return []
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = (_text_at(content, match.end(), match.group(1)) for match in _LOCATION.finditer(content))
        names = dict.fromkeys(str(PurePosixPath(name)) for name in found)
    return [name for name in names if _leads_inside(name)]


def _text_at(content: mmap.mmap, start: int, length: bytes) -> str:
    """length: 7 bits in each byte, the lowest ones first."""
    num_bytes = sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(length))
    return content[start : start + num_bytes].decode("utf-8", errors="replace")


def _leads_inside(name: str) -> bool:
    path = PurePosixPath(name)
    # What follows the name of a tensor that is called `location` is no text.
    return name.isprintable() and bool(path.parts) and not path.is_absolute() and ".." not in path.parts
