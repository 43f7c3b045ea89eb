"""The package openvino, imported without what reports its use, and its one `Core`."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator

__all__ = ["core", "openvino"]

_REPORTER = "openvino_telemetry"


@contextlib.contextmanager
def _without_reports() -> Iterator[None]:
    """Disable telemetry of `import openvino`, which reports to Google Analytics, inside the block.

    There is no option for it; if openvino is already imported, this has no effect.
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
    """Return the OpenVINO core, which all models share."""
    return openvino.Core()
