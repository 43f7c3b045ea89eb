"""Traces with OpenTelemetry, which only the modules of this folder import, and only with `--otel`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from infinity_emb.errors import require_extra

if TYPE_CHECKING:
    from infinity_emb.server.tracing.middleware import Tracing


def make_tracing() -> Tracing:
    """Prepare tracing for one app. Raises StartupError for a missing package or an unknown exporter."""
    with require_extra("--otel", "otel"):
        from infinity_emb.server.tracing.middleware import Tracing
        from infinity_emb.server.tracing.provider import make_exporters

        make_exporters(os.environ)  # reports a wrong variable before the models are loaded
    return Tracing()
