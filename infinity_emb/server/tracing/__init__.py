"""Traces with OpenTelemetry, which only the modules of this folder import, and only with `--otel`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from infinity_emb.errors import StartupError

if TYPE_CHECKING:
    from infinity_emb.server.tracing.middleware import Tracing


def make_tracing() -> Tracing:
    """Prepare the traces of one app. Raises StartupError for a missing package or an unknown exporter."""
    try:
        from infinity_emb.server.tracing.middleware import Tracing
        from infinity_emb.server.tracing.provider import make_exporters

        make_exporters(os.environ)  # or else a wrong variable would be found after the models are loaded
    except ImportError as exc:
        raise StartupError(
            f"--otel needs a package that is not installed ({exc});"
            " install it with: pip install 'infinity-emb[otel]'"
        ) from exc
    return Tracing()
