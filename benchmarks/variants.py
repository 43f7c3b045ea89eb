"""List the engines that compute the default model, each with the dtypes that are compared."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple


class Variant(NamedTuple):
    """Combine an engine with a `--dtype`; `library` must be installed."""

    engine: str
    dtype: str
    library: str

    @property
    def name(self) -> str:
        return self.engine if self.dtype == "float32" else f"{self.engine}-{self.dtype}"

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.library) is not None


VARIANTS = [
    Variant("torch", "float32", "torch"),
    Variant("torch", "bfloat16", "torch"),
    Variant("torch", "int8", "torch"),
    Variant("optimum", "float32", "onnxruntime"),
    Variant("optimum", "int8", "onnxruntime"),
    Variant("ctranslate2", "float32", "ctranslate2"),
    Variant("ctranslate2", "int16", "ctranslate2"),
    Variant("ctranslate2", "int8", "ctranslate2"),
    Variant("openvino", "float32", "openvino"),
    Variant("openvino", "int8", "openvino"),
]
# Measured on GPUs only; CPUs compute them slowly or not at all.
GPU_VARIANTS = [
    Variant("torch", "float16", "torch"),
    Variant("torch", "fp8", "torchao"),
    Variant("optimum", "float16", "onnxruntime"),
    Variant("ctranslate2", "float16", "ctranslate2"),
    Variant("openvino", "float16", "openvino"),
]


def select_variants(names: str, device: str) -> list[Variant]:
    """Return the variants that are installed.

    names: separated by commas; "" for all of the device. Raises SystemExit if a name is unknown.
    """
    variants = VARIANTS if device == "cpu" else VARIANTS + GPU_VARIANTS
    known = [variant.name for variant in variants]
    wanted = names.split(",") if names else known
    if unknown := sorted(set(wanted) - set(known)):
        raise SystemExit(f"no such engines: {', '.join(unknown)}; there are {', '.join(known)}")
    return [variant for variant in variants if variant.name in wanted and variant.is_installed]
