"""The package openvino, imported without what reports its use, and its one `Core`.

Knows nothing of models or options.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator

__all__ = ["core", "openvino"]

_REPORTER = "openvino_telemetry"


@contextlib.contextmanager
def _without_reports() -> Iterator[None]:
    """`import openvino` tells Google Analytics of itself, unless the package that does so is missing.

    It has no option for that; where openvino is imported already, nothing can be done any more.
    Source: openvino/tools/ovc/telemetry_utils.py, which then takes its own empty `telemetry_stub`.
    """
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == _REPORTER}
    sys.modules[_REPORTER] = None  # type: ignore[assignment]  # documented: importing it raises ImportError
    try:
        yield
    finally:
        del sys.modules[_REPORTER]
        sys.modules.update(before)


with _without_reports():
    import openvino


@functools.cache
def core() -> openvino.Core:
    """What knows the devices and compiles for them; all models share it."""
    return openvino.Core()
