"""Identify the version of a model's outputs."""

from __future__ import annotations

from infinity_emb._version import __version__
from infinity_emb.config.model_options import ModelOptions
from infinity_emb.types import ModelInfo


def model_version(options: ModelOptions, info: ModelInfo) -> str:
    """Return a key that differs if outputs may differ by more than rounding.

    It includes the dtype and the version of this package, but not the device or the layout of batches.
    """
    return repr(
        (
            __version__,
            options.model_name_or_path,
            info.files_version,
            info.engine,
            info.graph,
            options.trust_remote_code,
            str(info.kind),
            info.dtype,
            info.pooling,
            info.max_tokens,
            info.truncation_side,
            info.embedding_dimension,
            info.labels,
        )
    )
