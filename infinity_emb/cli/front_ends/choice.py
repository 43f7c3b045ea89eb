"""Choose the number of front ends. docs/decisions/016-default-front-ends.md has the reasons."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from infinity_emb.config.server_config import ServerConfig
from infinity_emb.hardware import free_memory_bytes, num_usable_cpus
from infinity_emb.types import InferenceEngine

if TYPE_CHECKING:
    from infinity_emb.engine.engine import AsyncEmbeddingEngine

logger = logging.getLogger("infinity_emb")

MAX_FRONT_ENDS = 4  # with more, the one thread of the engine process becomes the bottleneck
FRONT_END_BYTES = 2**29
# Memory of the largest request, as a multiple of its body: JSON, texts, vectors and response.
BODIES_PER_REQUEST = 6
MIN_CONNECTIONS = 256


def choose_front_ends(config: ServerConfig, engines: Iterable[AsyncEmbeddingEngine]) -> int:
    """Return 1 unless several front ends are faster, and can do all that the options ask for."""
    if (
        config.admin_key
        or config.batch_dir
        or config.otel
        or not all(map(_is_faster_with_front_ends, engines))
    ):
        return 1
    num_cpus = num_usable_cpus()
    number = count_front_ends(config, num_cpus=num_cpus, free_bytes=free_memory_bytes() or 0)
    if number > 1:
        logger.info("%d front ends for static models, on %d cores (--api-servers auto)", number, num_cpus)
    return number


def count_front_ends(config: ServerConfig, *, num_cpus: int, free_bytes: int) -> int:
    """Return the number for static models, 1 at least."""
    num_shares = config.max_total_body_bytes // (BODIES_PER_REQUEST * config.max_body_bytes)
    limits = (num_cpus // 2, free_bytes // FRONT_END_BYTES, config.max_connections // MIN_CONNECTIONS)
    return max(1, min(MAX_FRONT_ENDS, num_shares - 1, *limits)) if sys.platform == "linux" else 1


def _is_faster_with_front_ends(engine: AsyncEmbeddingEngine) -> bool:
    """Return true for a static model, a table of vectors, whose requests need not share a process."""
    args, info = engine.engine_args, engine.info
    shares = args.vector_memory_cache_mb or args.vector_disk_cache or args.idle_unload_s
    is_table = info.attention == "none" and info.device == "cpu"
    return is_table and info.engine != InferenceEngine.debugengine and not shares
