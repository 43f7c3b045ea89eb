"""Import openvino without its telemetry, and share one `Core`."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator

__all__ = ["core", "openvino"]

_TELEMETRY = "openvino_telemetry"


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """Disable the telemetry of `import openvino`, which reports to Google Analytics, inside the block.

    There is no option for it; if openvino is already imported, this has no effect.
    Source: openvino/tools/ovc/telemetry_utils.py, which then uses its own empty `telemetry_stub`.
    """
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == _TELEMETRY}
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # documented: importing it raises ImportError
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
        sys.modules.update(before)


with _without_telemetry():
    import openvino


@functools.cache
def core() -> openvino.Core:
    """Return the OpenVINO core, which all models share."""
    return openvino.Core()
