"""What tells the answers of one version of a model from those of another. Knows nothing of who keeps them."""

from __future__ import annotations

from infinity_emb import __version__
from infinity_emb.config import EngineArgs
from infinity_emb.primitives import ModelInfo


def model_version(args: EngineArgs, info: ModelInfo) -> str:
    """Different wherever an answer to the same input may be more than a rounding error apart.

    So the number format is part of it; the device, and whether batches are packed or padded, are not. This
    package's version is: what it mends may change answers.
    """
    return repr(
        (
            __version__,
            args.model_name_or_path,
            info.files_version,
            info.engine,
            info.graph,
            args.trust_remote_code,
            str(info.kind),
            info.dtype,
            info.pooling,
            info.max_tokens,
            info.truncation_side,
            info.embedding_dimension,
            info.labels,
        )
    )
