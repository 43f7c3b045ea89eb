"""Choose the graph file of a model's repository, by dtype and by the features of the CPU.

The default is float32: a quantized file is faster, but changes the outputs.
"""

from __future__ import annotations

import platform
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from infinity_emb.errors import StartupError
from infinity_emb.types import Dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKind:
    """File names of one kind of graph in repositories.

    folders: where the graphs are.
    names: file names by dtype, preferred one first.
    int8_names_by_feature: quantized files by the CPU feature that they need, fastest one first.
    """

    suffix: str
    folders: tuple[str, ...]
    names: Mapping[Dtype, tuple[str, ...]]
    int8_names_by_feature: Mapping[str, str] = field(default_factory=dict)


# sentence-transformers and optimum keep graphs in a subfolder, some repositories at the top.
ONNX = FileKind(
    suffix=".onnx",
    folders=("onnx", ""),
    names={
        Dtype.float32: ("model.onnx",),
        # O4 is what sentence-transformers calls float16 for GPUs.
        Dtype.float16: ("model_O4.onnx", "model_fp16.onnx"),
        Dtype.int8: ("model_quantized.onnx", "model_int8.onnx", "model_uint8.onnx"),
    },
    int8_names_by_feature={
        "avx512_vnni": "model_qint8_avx512_vnni.onnx",
        "avx512f": "model_qint8_avx512.onnx",
        "avx2": "model_quint8_avx2.onnx",
        "asimd": "model_qint8_arm64.onnx",
    },
)
OPENVINO = FileKind(
    suffix=".xml",
    folders=("openvino", ""),
    names={
        Dtype.float32: ("openvino_model.xml",),
        Dtype.int8: ("openvino_model_qint8_quantized.xml",),
    },
)
# Parts of a file name that stand for a dtype; files of 4 bits and of mixed dtypes count as quantized.
_DTYPE_PATTERNS = (
    (re.compile(r"u?int[48]|quantized|q4|bnb4"), Dtype.int8),
    (re.compile(r"fp16|float16|_o4"), Dtype.float16),
)
# torch's name of an instruction set → the CPU features that it implies.
_FEATURES_BY_CAPABILITY = {"AVX512": ("avx512f", "avx2"), "AVX2": ("avx2",)}


class GraphFile(NamedTuple):
    """One file of a repository, its dtype, and why it was chosen."""

    name: str
    dtype: Dtype
    reason: str


def choose_file(
    names: Iterable[str],
    kinds: Sequence[FileKind],
    *,
    requested: str,
    dtype: Dtype,
    features: frozenset[str],
) -> GraphFile | None:
    """Return the file to compute, or None if the repository has none of that dtype.

    names: all files of the repository.
    kinds: the graphs that can be read; those of the first kind are preferred.
    requested: a path or file name that the user gave, or "".
    features: as `list_cpu_features` returns them.
    Raises StartupError if no file or several have the requested name.
    """
    present = [name for name in names if name.endswith(tuple(kind.suffix for kind in kinds))]
    if requested:
        name = _find_requested(present, requested)
        return GraphFile(name, guess_dtype(name), "requested")
    for kind in kinds:
        for base_name in _list_names(kind, dtype, features):
            for folder in kind.folders:
                name = posixpath.join(folder, base_name)
                if name in present:
                    return GraphFile(name, dtype, f"the repository's {dtype} file")
    return None


def _find_requested(present: Sequence[str], requested: str) -> str:
    found = [name for name in present if requested in (name, posixpath.basename(name))]
    if requested in found:
        return requested
    if len(found) != 1:
        problem = "matches several files" if found else "is not in the repository"
        listed = ", ".join(found or present) or "none"
        raise StartupError(f"--graph-file {requested!r} {problem}; available: {listed}")
    return found[0]


def _list_names(kind: FileKind, dtype: Dtype, features: frozenset[str]) -> list[str]:
    by_feature = [name for feature, name in kind.int8_names_by_feature.items() if feature in features]
    return [*(by_feature if dtype is Dtype.int8 else ()), *kind.names.get(dtype, ())]


def guess_dtype(name: str) -> Dtype:
    """Return float32, float16 or int8 by the name of a file; every quantized file counts as int8."""
    base_name = posixpath.basename(name).lower()
    return next((dtype for pattern, dtype in _DTYPE_PATTERNS if pattern.search(base_name)), Dtype.float32)


def list_parts(names: Iterable[str], chosen: str) -> list[str]:
    """Return the file and the files of its weights, recognized by their names.

    OpenVINO's weights are always in another file, ONNX's if they are over 2 GB. An ONNX graph may name
    further files, which `onnx_weights.py` reads.
    """
    if chosen.endswith(OPENVINO.suffix):
        beside = re.compile(re.escape(chosen.removesuffix(OPENVINO.suffix)) + r"\.bin")
    else:
        beside = re.compile(re.escape(chosen) + r"[_.]data(_\d+)?")
    return [chosen, *(name for name in names if beside.fullmatch(name))]


def list_cpu_features() -> frozenset[str]:
    """Return this CPU's instruction sets that quantized files may need, as detected by torch."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return frozenset({"asimd"})  # every such CPU has it
    features = set(_FEATURES_BY_CAPABILITY.get(torch.backends.cpu.get_cpu_capability(), ()))
    has_vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)  # torch has no public name for it
    if "avx512f" in features and has_vnni():
        features.add("avx512_vnni")
    return frozenset(features)
