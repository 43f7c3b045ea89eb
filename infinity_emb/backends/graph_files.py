"""Which graph of a model's repository is computed: by the number format, and by what the CPU can.

Float32 unless another format is asked for: a quantised file is quicker and answers other numbers. Knows
nothing of the libraries that compute, nor of what the files hold.
"""

from __future__ import annotations

import contextlib
import importlib
import platform
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from infinity_emb.errors import StartupError
from infinity_emb.primitives import Dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKind:
    """How repositories name the graphs of one kind.

    folders: where they keep them.
    names: by number format, first the one to prefer.
    int8_names_by_feature: quantised files by the CPU's instructions that they are for; first the quickest.
    """

    suffix: str
    folders: tuple[str, ...]
    names: Mapping[Dtype, tuple[str, ...]]
    int8_names_by_feature: Mapping[str, str] = field(default_factory=dict)


# sentence-transformers and optimum keep graphs in a folder of their own, some repositories at the top.
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
# How a file's name tells its format; 4 bits and mixtures of formats are quantised too.
_FORMATS = (
    (re.compile(r"u?int[48]|quantized|q4|bnb4"), Dtype.int8),
    (re.compile(r"fp16|float16|_o4"), Dtype.float16),
)
# What Linux calls a feature → what numpy does.
_NUMPY_NAMES = {"avx512_vnni": "AVX512VNNI", "avx512f": "AVX512F", "avx2": "AVX2"}


class GraphFile(NamedTuple):
    """One file of a repository, its number format, and why it was chosen."""

    name: str
    dtype: Dtype
    reason: str


def choose_file(
    names: Iterable[str],
    kinds: Sequence[FileKind],
    *,
    asked_for: str,
    dtype: Dtype,
    features: frozenset[str],
) -> GraphFile | None:
    """The file to compute, or None where the repository has none of that format.

    names: all files of the repository.
    kinds: which of them are graphs; those of the first kind are preferred.
    asked_for: the file that the user names, by its path or its last part; "" leaves the choice here.
    features: what `cpu_features` tells.
    Raises StartupError for a name that no file has, or several.
    """
    present = [name for name in names if name.endswith(tuple(kind.suffix for kind in kinds))]
    if asked_for:
        name = _find_named(present, asked_for)
        return GraphFile(name, format_of(name), "asked for")
    for kind in kinds:
        for base_name in _names_of(kind, dtype, features):
            for folder in kind.folders:
                name = posixpath.join(folder, base_name)
                if name in present:
                    return GraphFile(name, dtype, f"the repository's {dtype} file")
    return None


def _find_named(present: Sequence[str], asked_for: str) -> str:
    found = [name for name in present if asked_for in (name, posixpath.basename(name))]
    if asked_for in found:
        return asked_for
    if len(found) != 1:
        problem = "fits several files" if found else "is not in the repository"
        listed = ", ".join(found or present) or "none"
        raise StartupError(f"--graph-file {asked_for!r} {problem}; there are: {listed}")
    return found[0]


def _names_of(kind: FileKind, dtype: Dtype, features: frozenset[str]) -> list[str]:
    by_feature = [name for feature, name in kind.int8_names_by_feature.items() if feature in features]
    return [*(by_feature if dtype is Dtype.int8 else ()), *kind.names.get(dtype, ())]


def format_of(name: str) -> Dtype:
    """float32, float16 or int8, as a file's name tells; all that is quantised counts as int8."""
    base_name = posixpath.basename(name).lower()
    return next((dtype for pattern, dtype in _FORMATS if pattern.search(base_name)), Dtype.float32)


def parts_of(names: Iterable[str], chosen: str) -> list[str]:
    """The file and those that hold its weights, by their names: OpenVINO's always lie beside it, ONNX's where
    they are over 2 GB. An ONNX graph may name others, which `onnx_weights.py` reads."""
    if chosen.endswith(OPENVINO.suffix):
        beside = re.compile(re.escape(chosen.removesuffix(OPENVINO.suffix)) + r"\.bin")
    else:
        beside = re.compile(re.escape(chosen) + r"[_.]data(_\d+)?")
    return [chosen, *(name for name in names if beside.fullmatch(name))]


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the kernel says the CPU can, in Linux' words; elsewhere those of them that numpy knows of."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _features_without_linux()
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return frozenset(found.group(1).split() if found else ())


def _features_without_linux() -> frozenset[str]:
    if platform.machine().lower() in ("arm64", "aarch64"):
        return frozenset({"asimd"})  # all of them have it
    found = _numpy_features()
    return frozenset(name for name, theirs in _NUMPY_NAMES.items() if found.get(theirs))


def _numpy_features() -> Mapping[str, bool]:
    """numpy tells them in no public way; nothing where a later one keeps them elsewhere."""
    for module_name in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):  # of numpy 2, of 1
        with contextlib.suppress(ImportError):
            found: Mapping[str, bool] = getattr(importlib.import_module(module_name), "__cpu_features__", {})
            return found
    return {}
