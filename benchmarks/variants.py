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
    Variant("ctranslate2", "int8", "ctranslate2"),
    Variant("openvino", "float32", "openvino"),
    Variant("openvino", "int8", "openvino"),
]
NAMES = [each.name for each in VARIANTS]


def installed(names: list[str]) -> list[Variant]:
    """Those of the named ones whose library is here. Raises SystemExit for a name that there is none of."""
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise SystemExit(f"no such engines: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return [each for each in VARIANTS if each.name in names and each.is_installed]
