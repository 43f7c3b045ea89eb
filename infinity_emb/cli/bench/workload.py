"""Describe a workload, and build its requests from real text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from infinity_emb.cli.bench.connections import build_request
from infinity_emb.cli.bench.dialects import DIALECTS
from infinity_emb.cli.remote_server import RemoteServer
from infinity_emb.errors import StartupError

# Distinct requests; a longer load sends them again.
MAX_DISTINCT_REQUESTS = 2_000
_NUM_BYTES_KEPT = 2**28


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The content of the requests.

    min_chars, max_chars: length of each text, uniformly distributed; None keeps the texts unchanged.
    num_items: texts per request, or documents per query.
    texts_file: one text per line; "" means the sample texts of the package.
    """

    task: Literal["embed", "rerank"] = "embed"
    num_items: int = 1
    min_chars: int | None = None
    max_chars: int | None = None
    texts_file: str = ""
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the values of a JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        what = ("document" if self.task == "rerank" else "text") + "s" * (self.num_items > 1)
        per = " per query" if self.task == "rerank" else " per request"
        if self.min_chars is None:
            length = "of any length"
        elif self.min_chars == self.max_chars:
            length = f"of {self.min_chars} characters"
        else:
            length = f"of {self.min_chars} to {self.max_chars} characters"
        source = self.texts_file or "the sample texts"
        return f"{self.task}: {self.num_items} {what} {length}{per}, from {source}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server under load: its address, its API and the requested model."""

    server: RemoteServer
    dialect: str
    model: str


def build_requests(workload: Workload, endpoint: Endpoint, num_requests: int | None = None) -> list[bytes]:
    """Build the requests, the same for every server; `num_requests` is how many will be sent, if known."""
    number = min(num_requests or MAX_DISTINCT_REQUESTS, MAX_DISTINCT_REQUESTS)
    is_ranking, dialect = workload.task == "rerank", DIALECTS[endpoint.dialect]
    path, make_body = (
        (dialect.rerank_path, dialect.rerank) if is_ranking else (dialect.embed_path, dialect.embed)
    )
    if endpoint.server.url.endswith("/v1"):
        path = path.removeprefix("/v1")
    requests: list[bytes] = []
    num_bytes = 0
    stream = _TextStream(_read_texts(workload.texts_file), workload)
    while len(requests) < number and num_bytes < _NUM_BYTES_KEPT:
        texts = [stream.next() for _ in range(workload.num_items + is_ranking)]
        requests.append(build_request(endpoint.server, path, make_body(endpoint.model, texts)))
        num_bytes += len(requests[-1])
    return requests


class _TextStream:
    """Cut texts of the workload's lengths out of all texts joined, or return them one by one."""

    def __init__(self, texts: Sequence[str], workload: Workload) -> None:
        self._texts = texts
        self._joined = " ".join(texts)
        self._low, self._high = workload.min_chars, workload.max_chars
        self._random = random.Random(workload.seed)
        self._number = 0

    def next(self) -> str:
        """Return the next text."""
        if self._low is None or self._high is None:
            self._number += 1
            return self._texts[(self._number - 1) % len(self._texts)]
        length = self._random.randint(self._low, self._high)
        start = self._random.randrange(len(self._joined))
        text = self._joined[start : start + length]
        while len(text) < length:  # from the beginning again
            text += " " + self._joined[: length - len(text) - 1]
        return text


def _read_texts(path: str) -> list[str]:
    if not path:
        from infinity_emb.backends.sample_texts import load_sample_texts

        return load_sample_texts()
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise StartupError(
            f"--texts {path!r} cannot be read ({exc}); give a UTF-8 file with a text per line"
        ) from exc
    texts = [text for line in lines if (text := line.strip())]
    if not texts:
        raise StartupError(f"--texts {path!r} has no texts; give a file with a text per line")
    return texts
