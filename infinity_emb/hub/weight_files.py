"""Read the header of a weight file, to check that the file is complete and to count its parameters.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

_MAX_HEADER_BYTES = 100_000_000  # the library's own limit
# The first bytes of what `torch.save` writes: an archive, or a bare pickle before torch 1.6.
_ARCHIVE, _PICKLE = b"PK", b"\x80"


def explain_broken_weights(path: Path) -> str | None:
    """Describe what is wrong with a weight file, as a phrase to follow its name; None if it seems whole."""
    if not path.stat().st_size:
        return "is empty"
    if path.suffix == ".safetensors":
        return explain_broken_safetensors(path)
    with path.open("rb") as file:
        beginning = file.read(2)
    if beginning == _ARCHIVE:
        return None if zipfile.is_zipfile(path) else "is cut off or damaged"
    return None if beginning.startswith(_PICKLE) else "was not written by torch.save"


def explain_broken_safetensors(path: Path) -> str | None:
    """Describe what is wrong with a safetensors file, as a phrase to follow its name; None if complete."""
    if path.suffix != ".safetensors":
        return None
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if header_size > _MAX_HEADER_BYTES:
            return "is not a safetensors file"
        if 8 + header_size > num_bytes:
            return f"is cut off after {num_bytes} bytes, within its header"
        try:
            header = json.loads(file.read(header_size))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return "is not a safetensors file"
    expected = 8 + header_size + max(ends, default=0)
    if num_bytes > expected:
        return f"has {num_bytes - expected} bytes more than its header describes"
    return None if num_bytes == expected else f"is cut off: it has {num_bytes} of {expected} bytes"


def count_parameters(path: Path) -> int | None:
    """Count the parameters of a safetensors file; None for another file."""
    if path.suffix != ".safetensors" or explain_broken_safetensors(path) is not None:
        return None
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return sum(map(math.prod, shapes))
