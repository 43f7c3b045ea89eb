"""Options that limit what one served model computes, queues, caches and fetches.

None of them changes which engine is the fastest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from infinity_emb.config.options import option

_HOST = re.compile(r"(\*\.)?[A-Za-z0-9:._-]+|\[[0-9a-fA-F:.]+\]")


def _check_hosts(value: str) -> str | None:
    is_fine = all(_HOST.fullmatch(host.strip()) for host in value.split(",") if host.strip())
    return None if is_fine else "must be comma-separated host names, without scheme, port or path"


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """The size and the duration of one forward pass."""

    batch_size: int = option(1024, "Maximum inputs per batch, on top of the token budget.", minimum=1)
    max_batch_tokens: int = option(
        0, "Maximum tokens per batch; 0 measures the best size at start.", minimum=0
    )
    model_warmup: bool = option(True, "Measure the best batch size before serving.")
    batch_timeout_s: int = option(
        300,
        "Maximum duration of a batch before its worker counts as hung.",
        "Its requests fail and the process exits. 0 disables the check.",
        minimum=0,
    )


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """Limits of admission, waiting and idle time."""

    max_queue_items: int = option(
        32_000,
        "Maximum queued inputs.",
        "Per model, and for interactive and bulk requests each; further requests get 429. Clients that hold"
        " less than others may use an eighth more, at least 64 inputs.",
        env="QUEUE_SIZE",
        minimum=1,
    )
    max_queue_tokens: int = option(
        8_000_000,
        "Maximum queued tokens.",
        "Per model, and for interactive and bulk requests each; further requests get 429, except those of"
        " clients that hold less than their share.",
        minimum=1,
    )
    max_queue_wait_s: int = option(
        120,
        "Maximum estimated wait of a request.",
        "Estimated from the measured speed and the client's share; further requests get 429. 0 disables the"
        " check.",
        minimum=0,
    )
    max_request_chars: int = option(
        2**25,
        "Maximum characters to tokenize per request.",
        "A prompt counts once per input, a reranker's query once per document. Larger requests get 400.",
        minimum=1,
    )
    max_request_tokens: int = option(
        0,
        "Maximum tokens per request; 0 means no limit.",
        "Larger requests get 400. OpenAI's limit is 300000.",
        minimum=0,
    )
    request_timeout_s: int = option(
        0,
        "Maximum time to compute a request; 0 means no limit.",
        "Slower requests get 504. A request may set its own `timeout`.",
        minimum=0,
    )
    idle_unload_s: int = option(
        0,
        "Unload the model after this time without requests; 0 never.",
        "The next request waits until it is loaded again.",
        minimum=0,
    )


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """The caches of results and their sizes."""

    vector_disk_cache: bool = option(
        False,
        "Cache results on disk, shared by all models and restarts.",
        "The file is in the directory of `INFINITY_HOME`.",
    )
    vector_disk_cache_mb: int = option(
        4096, "Size limit of the disk cache in MB; the oldest entries are evicted.", minimum=1
    )
    vector_memory_cache_mb: int = option(
        0,
        "Size limit of the memory cache in MB, per model; 0 turns it off.",
        "Needs `infinity-emb[cache]`. With either cache, concurrent requests of one client compute equal"
        " texts once.",
        minimum=0,
    )


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """The hosts of images and audio, and the amount that may be queued."""

    media_hosts: str = option(
        "",
        "Hosts to fetch images and audio from, comma-separated.",
        "For example `cdn.example.com,*.example.org`. Default: every public host; `none` allows no host."
        " Private addresses are never fetched.",
        check=_check_hosts,
    )
    max_queue_pixels: int = option(
        1_024_000_000,
        "Maximum queued image pixels, at 3 bytes each.",
        "Per model, after decoding; further requests get 429. Clients that hold less than others may use an"
        " eighth more.",
        minimum=1,
    )
    max_queue_audio_s: int = option(
        4 * 3600,
        "Maximum queued audio.",
        "Per model, after decoding; further requests get 429. Clients that hold less than others may use an"
        " eighth more.",
        minimum=1,
    )
