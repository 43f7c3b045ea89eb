"""Print a profile: a table for people, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Iterator

from infinity_emb.cli.profile.measure import Profile

_ADVICE = {
    "parse": "reading and validating JSON; send fewer, larger requests",
    "tokenize": "tokenizing on the host; raise --tokenizer-threads, or send token ids (--token-ids model)",
    "queue": "waiting for the worker thread; other work keeps its cores busy",
    "copy": "laying out the batch and copying it and its outputs; send larger batches",
    "forward": "the network; this engine cannot be timed inside, --engine torch can",
    "layers": "the network above the device's limit: attention, activations and other unfused operations",
    "pool": "pooling and heads",
    "wake": "the event loop, which continues with a request too late",
    "encode": "shaping and writing vectors; ask for encoding_format base64 or fewer dimensions",
    "rest": "admission, the event loop and sending; send fewer, larger requests",
}
_UNKNOWN_LIMIT = "the network; its matrix products cannot be timed separately with this engine or dtype"
_AT_THE_LIMIT = 0.85


def format_table(profile: Profile) -> Iterator[str]:
    """Yield the lines of the table and of its summary."""
    info = profile.info
    yield (
        f"{profile.model}: engine {info.engine}, device {info.device}, {info.dtype}, attention"
        f" {info.attention}; one replica, mean of {profile.num_requests} requests of"
        f" {profile.num_texts} texts, {profile.num_tokens} tokens"
    )
    yield ""
    yield f"{'stage':<12}{'ms':>10}{'us/token':>10}{'share':>8}"
    for stage, seconds in {**profile.stage_s, "rest": profile.rest_s, "request": profile.request_s}.items():
        per_token_us = 1e6 * seconds / profile.num_tokens
        share = seconds / profile.request_s
        yield f"{stage:<12}{1000 * seconds:>10.3f}{per_token_us:>10.3f}{share:>8.1%}"
    yield ""
    if profile.limit_share is not None:
        yield (
            f"layers: {profile.limit_share:.0%} of the device's limit, the time of their matrix products"
            " alone, measured now"
        )
    yield f"{profile.num_tokens / profile.request_s:.0f} tokens/s; {explain_bottleneck(profile)}"


def explain_bottleneck(profile: Profile) -> str:
    """Name the next bottleneck, and what can be done about it."""
    stage, share = profile.bottleneck, profile.limit_share
    advice = _UNKNOWN_LIMIT if stage == "layers" and share is None else _ADVICE.get(stage, "")
    text = f"next bottleneck: {stage}, {advice}"
    if share is not None and share >= _AT_THE_LIMIT:
        text += "; the layers are at the device's limit: use --dtype, another device or more replicas"
    return text


def format_json(profile: Profile) -> str:
    """Return one line of JSON; times are in seconds."""
    info = profile.info
    return json.dumps(
        {
            "model": profile.model,
            "engine": info.engine,
            "device": info.device,
            "dtype": info.dtype,
            "num_texts": profile.num_texts,
            "num_tokens": profile.num_tokens,
            "num_requests": profile.num_requests,
            "stage_s": {**profile.stage_s, "rest": profile.rest_s},
            "request_s": profile.request_s,
            "products_s": profile.products_s,
            "limit_share": profile.limit_share,
            "bottleneck": profile.bottleneck,
        }
    )
