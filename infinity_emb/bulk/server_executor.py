"""Compute inputs with a running server, which may be busy, restarting or slow."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np

from infinity_emb.bulk.rows import RowInput
from infinity_emb.bulk.tasks import TaskOptions, group_by_query
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import BackendFailed, BadInput, ServingError, StartupError, one_line
from infinity_emb.items import SparseVector
from infinity_emb.types import EmbeddingDtype

CONCURRENCY = 8
INPUTS_PER_REQUEST = 64
_sleep = asyncio.sleep
_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 60.0
_MAX_ASKED_PAUSE_S = 3600.0
_TIMEOUT_S = 600.0
_MAX_REASON_CHARS = 500
_BUSY = frozenset((408, 425, 429, 502, 503, 504))
_BAD_INPUT = frozenset((400, 413, 422))
_NUMPY_DTYPES = {
    "float32": "<f4",
    "float16": "<f2",
    "int8": "i1",
    "uint8": "u1",
    "binary": "i1",
    "ubinary": "u1",
}


class _Busy(Exception):
    """Raised when the same request may succeed later."""

    def __init__(self, reason: str, pause_s: float | None) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """A server, and how often to retry.

    url: with the prefix of its routes.
    """

    url: str
    api_key: str
    max_retries: int


class ServerExecutor:
    """Compute in the bulk lane of a server."""

    def __init__(
        self,
        address: ServerAddress,
        args: EngineArgs,
        options: TaskOptions,
        *,
        concurrency: int = CONCURRENCY,
        inputs_per_request: int = INPUTS_PER_REQUEST,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.num_tokens = 0
        self.concurrency = concurrency
        self.inputs_per_request = inputs_per_request
        self._address = address
        self._args = args
        self._options = options
        headers = {"x-priority": "bulk"}
        if address.api_key:
            headers["authorization"] = f"Bearer {address.api_key}"
        self._client = httpx2.AsyncClient(
            headers=headers, timeout=_TIMEOUT_S, transport=transport, trust_env=transport is None
        )
        self._compute = {"embed": self._embed, "rerank": self._rerank, "classify": self._classify}[
            options.task
        ]

    def describe(self) -> Mapping[str, Any]:
        """Return the model, without the address: the server may move."""
        return {
            "model": self._args.model_name_or_path,
            "engine": "server",
            "embedding dtype": str(self._args.embedding_dtype),
        }

    async def compute(self, inputs: Sequence[RowInput]) -> Sequence[Any]:
        """Return one result per input.

        Raises BadInput and BackendFailed as the server reports them, and StartupError if it does not respond
        or refuses every request.
        """
        try:
            return await self._compute(inputs)
        except (KeyError, IndexError, TypeError, ValueError) as exc:
            if isinstance(exc, ServingError):
                raise
            raise StartupError(f"cannot read the response of {self._address.url}: {exc!r}") from exc

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _embed(self, inputs: Sequence[Any]) -> Sequence[Any]:
        dtype = self._args.embedding_dtype
        body: dict[str, Any] = {
            "input": list(inputs),
            "encoding_format": "float" if self._options.is_sparse else "base64",
            "dimensions": self._options.dimensions,
            "prompt": self._options.prompt,
            "prompt_name": self._options.prompt_name,
            "input_type": self._options.input_type,
            "outputs": ["sparse"] if self._options.is_sparse else None,
            "embedding_dtype": None if dtype is EmbeddingDtype.float32 else str(dtype),
            **self._truncation(),
        }
        answer = await self._post("/embeddings", body)
        data = sorted(_get_list(answer, "data"), key=lambda entry: entry["index"])
        return [self._read_embedding(entry) for entry in data]

    async def _rerank(self, inputs: Sequence[RowInput]) -> Sequence[Any]:
        scores = [0.0] * len(inputs)
        for query, indices in group_by_query(inputs).items():
            documents = [inputs[index][1] for index in indices]
            body = {"query": query, "documents": documents, "raw_scores": self._options.raw_scores or None}
            results = _get_list(await self._post("/rerank", body | self._truncation()), "results")
            if len(results) != len(indices):
                raise StartupError(f"the server returned {len(results)} scores for {len(indices)} documents")
            for entry in results:
                scores[indices[entry["index"]]] = float(entry["relevance_score"])
        return scores

    async def _classify(self, inputs: Sequence[Any]) -> Sequence[Any]:
        body = {"input": list(inputs), "raw_scores": self._options.raw_scores or None}
        return _get_list(await self._post("/classify", body | self._truncation()), "data")

    def _truncation(self) -> dict[str, Any]:
        return {} if self._options.truncates else {"truncate": False}

    def _read_embedding(self, entry: Mapping[str, Any]) -> Any:
        if self._options.is_sparse:
            sparse = entry["sparse_embedding"]
            return SparseVector(np.array(sparse["indices"], np.int32), np.array(sparse["values"], np.float32))
        dtype = _NUMPY_DTYPES[str(self._args.embedding_dtype)]
        vector = np.frombuffer(base64.b64decode(entry["embedding"]), dtype)
        return vector.reshape(entry["shape"]) if entry.get("shape") else vector

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON of the response, retrying while the server is busy."""
        given = {name: value for name, value in body.items() if value is not None}
        given["model"] = self._args.model_name_or_path
        for attempt in range(self._address.max_retries + 1):
            try:
                return await self._attempt(path, given)
            except _Busy as exc:
                reason = one_line(exc, _MAX_REASON_CHARS)
                pause_s = exc.pause_s
            if attempt < self._address.max_retries:
                await _sleep(choose_pause_s(attempt, pause_s))
        raise StartupError(
            f"{self._address.url} did not respond in {self._address.max_retries + 1} attempts: {reason}"
        )

    async def _attempt(self, path: str, body: Mapping[str, Any]) -> Any:
        url = self._address.url.rstrip("/") + path
        try:
            response = await self._client.post(url, json=body)
        except httpx2.InvalidURL as exc:
            raise StartupError(f"--url {self._address.url!r} is not a URL: {exc}") from exc
        except httpx2.TransportError as exc:
            raise _Busy(str(exc) or type(exc).__name__, None) from exc
        if response.status_code in _BUSY:
            raise _Busy(
                _describe(response), read_retry_after(response.headers.get("retry-after"), time.time())
            )
        if response.status_code in _BAD_INPUT:
            raise BadInput(_describe(response))
        if response.status_code >= 500:
            raise BackendFailed(_describe(response))
        if response.status_code != 200:
            raise StartupError(f"{url} refuses requests: {_describe(response)}")
        answer = _parse(response, url)
        self.num_tokens += (answer.get("usage") or {}).get("total_tokens") or 0
        return answer


def choose_pause_s(attempt: int, asked_s: float | None) -> float:
    """Return how long to wait before the next attempt: as asked, or with exponential backoff and jitter."""
    doubled_s: float = min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1)
    return max(doubled_s, min(asked_s or 0.0, _MAX_ASKED_PAUSE_S))


def read_retry_after(value: str | None, now_s: float) -> float | None:
    """Return the seconds of a `Retry-After` header, which may be a date. Source: RFC 9110 section 10.2.3."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now_s)
    except ValueError:
        return None


def _parse(response: httpx2.Response, url: str) -> dict[str, Any]:
    try:
        answer = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        answer = None
    if not isinstance(answer, dict):
        raise StartupError(f"the response of {url} is not a JSON object; see --url")
    return answer


def _get_list(answer: Mapping[str, Any], name: str) -> list[Any]:
    values = answer.get(name)
    if not isinstance(values, list):
        raise StartupError(f"the server's response has no list {name!r}; see --url")
    return values


def _describe(response: httpx2.Response) -> str:
    try:
        error = response.json()["error"]
        message = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        message = response.text
    return f"{one_line(message, _MAX_REASON_CHARS)} (status {response.status_code})"
