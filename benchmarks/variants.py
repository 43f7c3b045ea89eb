"""Every engine that computes the default model here, in each number format that it is compared in.

Knows nothing of what is measured.
"""

from __future__ import annotations

import importlib.util
from typing import NamedTuple


class Variant(NamedTuple):
    """An engine and the `--dtype` that it is given; library: what has to be installed for it."""

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
# For GPUs alone; CPUs compute them slowly or not at all.
GPU_VARIANTS = [
    Variant("torch", "float16", "torch"),
    Variant("torch", "fp8", "torchao"),
    Variant("optimum", "float16", "onnxruntime"),
    Variant("ctranslate2", "float16", "ctranslate2"),
    Variant("openvino", "float16", "openvino"),
]


def installed(names: str, device: str) -> list[Variant]:
    """Those whose library is here.

    names: separated by commas; "" for all that are for the device. Raises SystemExit for one that is none.
    """
    variants = VARIANTS if device == "cpu" else VARIANTS + GPU_VARIANTS
    known = [each.name for each in variants]
    wanted = names.split(",") if names else known
    if unknown := sorted(set(wanted) - set(known)):
        raise SystemExit(f"no such engines: {', '.join(unknown)}; there are {', '.join(known)}")
    return [each for each in variants if each.name in wanted and each.is_installed]
