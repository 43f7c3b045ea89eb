"""Ask transformers which package reads a model's quantized weights."""

from __future__ import annotations

from typing import Any

from transformers.quantizers.auto import AutoHfQuantizer

from infinity_emb.errors import one_line


def find_missing_package(quantization: dict[str, Any]) -> str:
    """Name the missing package, or return ""; loading reports any other problem.

    quantization: the `quantization_config` of the model's configuration.
    """
    quantizer: Any = AutoHfQuantizer  # untyped
    try:
        quantizer.from_config(quantization, pre_quantized=True).validate_environment(device_map=None)
    except ImportError as exc:
        method = quantization.get("quant_method") or "bitsandbytes"  # whose configurations need not name it
        return f"has weights of {method!r}: {one_line(exc, 400)}"
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError):
        pass  # there is no such device, or the configuration is wrong
    return ""
