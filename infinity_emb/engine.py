"""One served model: checks a request, lets it in or not, and brings it through the device.

Hops 3 to 7 of a request (docs/architecture.md). Knows nothing of HTTP or of any compute library; the model
is whatever `backends.registry` loaded. Over 300 lines: the Python API with its docstrings is half of it.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from infinity_emb.backends.base import Rows, TokenIds
from infinity_emb.backends.registry import load_model
from infinity_emb.completion import open_future, open_request
from infinity_emb.config import EngineArgs
from infinity_emb.errors import BadInput, EngineNotReady, ModelNotDeployedError, Overloaded, StartupError
from infinity_emb.postprocess import check_dimensions, quantize_rows, shorten_rows
from infinity_emb.primitives import (
    Capability,
    ClassifyReturnType,
    EmbeddingDtype,
    ModelInfo,
    OverloadStatus,
    RerankReturnType,
)
from infinity_emb.progress import open_progress_bar
from infinity_emb.worker import Item, PendingRequest, WorkerPool, WorkerStats

logger = logging.getLogger("infinity_emb")

# A request is tokenized in chunks of this many texts, so that the device starts on the first chunk while
# the next is tokenized.
TEXTS_PER_CHUNK = 64
# Up to this many characters are tokenized on the event loop: a fraction of a millisecond, less than what
# handing over to a thread and back costs.
INLINE_CHARS = 1024
DRAIN_TIMEOUT_S = 30.0
# What a batch that a device is computing at that deadline gets on top.
BATCH_GRACE_S = 1.5


class AsyncEmbeddingEngine:
    """Embeds with one model, from any number of coroutines of one event loop.

        async with AsyncEmbeddingEngine.from_args(EngineArgs()) as engine:
            vectors, num_tokens = await engine.embed(["Hello"])

    The model is loaded and warmed up by the constructor, which blocks. Raises StartupError when it cannot
    be served.
    """

    def __init__(
        self, model_name_or_path: str | None = None, _show_deprecation_warning: bool = True, **kwargs: Any
    ) -> None:
        if _show_deprecation_warning:
            warnings.warn(
                "use AsyncEmbeddingEngine.from_args(EngineArgs(...))", DeprecationWarning, stacklevel=2
            )
        if model_name_or_path is not None:
            kwargs["model_name_or_path"] = model_name_or_path
        self.engine_args = EngineArgs(**kwargs)
        if self.engine_args.embedding_dtype in (EmbeddingDtype.int8, EmbeddingDtype.uint8):
            raise StartupError(
                f"--embedding-dtype {self.engine_args.embedding_dtype} is not available in this version;"
                " use float32, binary or ubinary"
            )
        self._model = load_model(self.engine_args)
        self._pool = WorkerPool(
            self._model.replicas,
            max_batch_tokens=self._model.max_batch_tokens,
            max_batch_items=self.engine_args.batch_size,
        )
        self._num_accepted_items = 0
        self._num_accepted_requests = 0
        self._is_started = False
        self._on_idle: Callable[[], None] | None = None  # called when the last accepted request has ended
        self._tokenizer_pool: ThreadPoolExecutor | None = None

    @classmethod
    def from_args(cls, engine_args: EngineArgs) -> AsyncEmbeddingEngine:
        """Load the model that `engine_args` describes; blocks until it is warm."""
        return cls(**engine_args.to_dict(), _show_deprecation_warning=False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.engine_args.served_model_name!r}, running={self.is_running})"

    async def __aenter__(self) -> AsyncEmbeddingEngine:
        await self.astart()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.astop()

    async def astart(self) -> None:
        """Start the device threads. Raises EngineNotReady when they run already, or still."""
        self._pool.start()
        self._tokenizer_pool = ThreadPoolExecutor(
            self._model.num_tokenizer_threads, thread_name_prefix="infinity-tokenizer"
        )
        self._on_idle = None
        self._is_started = True

    async def astop(self, drain_timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Finish what was accepted within the deadline, fail the rest, end the threads.

        The queue closes behind the last accepted request: some of its texts may still be tokenized. At the
        deadline, what a device is computing gets a moment more.
        """
        if not self._is_started:
            return
        self._is_started = False
        num_failed = 0
        ended, set_ended = open_future()
        self._on_idle = lambda: self._pool.close(set_ended)
        if not self._num_accepted_requests:
            self._on_idle()
        try:
            await asyncio.wait([ended], timeout=drain_timeout_s)
            num_failed = self._pool.fail_waiting()
            self._on_idle()
            await asyncio.wait([ended], timeout=BATCH_GRACE_S)
        finally:
            num_failed += self._pool.fail_rest()
            if self._tokenizer_pool is not None:
                self._tokenizer_pool.shutdown(wait=False)
        if num_failed:
            logger.warning("%d texts were not finished within %g s and failed", num_failed, drain_timeout_s)

    @property
    def is_running(self) -> bool:
        """Whether a request that comes now will be computed."""
        return self._is_started and self._pool.is_alive

    @property
    def is_dead(self) -> bool:
        """Whether a device thread ended by itself: nothing is computed until the process is restarted."""
        return self._is_started and not self._pool.is_alive

    @property
    def info(self) -> ModelInfo:
        """What was detected about the model."""
        return self._model.info

    @property
    def stats(self) -> WorkerStats:
        """Counters since start."""
        return self._pool.stats

    @property
    def max_batch_tokens(self) -> int:
        """Tokens in one forward pass, as given or as measured."""
        return self._model.max_batch_tokens

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens in the queue."""
        return self._pool.num_waiting_tokens

    @property
    def capabilities(self) -> set[Capability]:
        """What the model can do."""
        return set(self.info.capabilities)

    def is_overloaded(self) -> bool:
        """Whether the next request would be refused."""
        return (
            self._num_accepted_items >= self.engine_args.max_queue_items
            or self._pool.num_waiting_tokens >= self.engine_args.max_queue_tokens
        )

    def overload_status(self) -> OverloadStatus:
        """How full the queue is."""
        num_waiting = self._pool.num_waiting
        return OverloadStatus(
            queue_fraction=num_waiting / self.engine_args.max_queue_items,
            queue_absolute=num_waiting,
            results_absolute=self._num_accepted_requests,
        )

    async def embed(
        self, sentences: list[str], matryoshka_dim: int | None = None, *, truncate: bool = True
    ) -> tuple[list[npt.NDArray[Any]], int]:
        """One vector per text, equal to `SentenceTransformer.encode`.

        matryoshka_dim: keep that many values of each vector, and scale it back to length 1.
        truncate: cut a text that is too long; otherwise it is refused.
        Returns one (D,) float32 array per text (uint8 or int8 where the model is served with a binary
        embedding dtype), in order, and the number of tokens that were embedded.
        Raises BadInput, InputTooLong, MatryoshkaDimError, Overloaded, BackendFailed, EngineNotReady.
        """
        self._check_can("embed")
        check_dimensions(matryoshka_dim, self.info.embedding_dimension)
        check_texts(sentences)
        distinct = list(dict.fromkeys(sentences))
        try:
            rows, num_tokens = await self._compute(distinct, num_items=len(sentences), truncate=truncate)
        except BadInput as exc:
            if exc.position is None:
                raise
            raise exc.moved_to(sentences.index(distinct[exc.position])) from exc
        vectors = quantize_rows(shorten_rows(rows, matryoshka_dim), self.engine_args.embedding_dtype)
        if len(distinct) == len(sentences):
            return list(vectors), int(num_tokens.sum())
        position_of = {text: position for position, text in enumerate(distinct)}
        positions = [position_of[text] for text in sentences]
        return list(vectors[positions]), int(num_tokens[positions].sum())

    async def rerank(
        self, *, query: str, docs: list[str], raw_scores: bool = False, top_n: int | None = None
    ) -> tuple[list[RerankReturnType], int]:
        """Raises ModelNotDeployedError: this version serves no reranker."""
        raise self._cannot("rerank")

    async def classify(
        self, *, sentences: list[str], raw_scores: bool = False
    ) -> tuple[list[list[ClassifyReturnType]], int]:
        """Raises ModelNotDeployedError: this version serves no classifier."""
        raise self._cannot("classify")

    async def image_embed(
        self, *, images: list[Any], matryoshka_dim: int | None = None
    ) -> tuple[list[npt.NDArray[Any]], int]:
        """Raises ModelNotDeployedError: this version serves no image model."""
        raise self._cannot("image_embed")

    async def audio_embed(
        self, *, audios: list[Any], matryoshka_dim: int | None = None
    ) -> tuple[list[npt.NDArray[Any]], int]:
        """Raises ModelNotDeployedError: this version serves no audio model."""
        raise self._cannot("audio_embed")

    def _check_can(self, capability: Capability) -> None:
        if capability not in self.info.capabilities:
            raise self._cannot(capability)

    def _cannot(self, capability: Capability) -> ModelNotDeployedError:
        able = ", ".join(self.info.capabilities)
        return ModelNotDeployedError(
            f"model {self.engine_args.served_model_name!r} does not support {capability!r};"
            f" it supports {able}"
        )

    def _admit(self, num_items: int) -> None:
        """Take room for a whole request, or refuse it whole."""
        if not self.is_running:
            raise EngineNotReady(
                f"model {self.engine_args.served_model_name!r} is not started, is shutting down or its"
                " worker died"
            )
        limit = self.engine_args.max_queue_items
        if num_items > limit:
            raise BadInput(f"the request has {num_items} inputs, more than the {limit} that may ever wait")
        if self.is_overloaded() or self._num_accepted_items + num_items > limit:
            raise Overloaded(
                f"model {self.engine_args.served_model_name} is currently overloaded:"
                f" {self._num_accepted_items} of {limit} inputs wait already; try again later"
            )
        self._num_accepted_items += num_items
        self._num_accepted_requests += 1

    def _release(self, num_items: int) -> None:
        """Give back the room of a request that has ended."""
        self._num_accepted_items -= num_items
        self._num_accepted_requests -= 1
        if self._on_idle is not None and not self._num_accepted_requests:
            self._on_idle()

    async def _compute(
        self, texts: list[str], *, num_items: int, truncate: bool
    ) -> tuple[Rows, npt.NDArray[np.int64]]:
        """Texts → rows (N, D) and token counts (N,), once there is room for `num_items`."""
        self._admit(num_items)
        try:
            return await self._compute_admitted(texts, truncate=truncate)
        finally:
            self._release(num_items)

    async def _compute_admitted(
        self, texts: list[str], *, truncate: bool
    ) -> tuple[Rows, npt.NDArray[np.int64]]:
        bar = open_progress_bar(len(texts), "Embedding")
        pending, done = open_request(len(texts), bar)
        try:
            chunks = range(0, len(texts), TEXTS_PER_CHUNK)
            counts = await asyncio.gather(
                *(self._submit_chunk(texts, start, pending, truncate=truncate) for start in chunks)
            )
            await done
        except BaseException:
            pending.cancel()
            raise
        finally:
            bar.close()
        if pending.error is not None:
            # One error may end many requests: each raises it with a traceback of its own.
            raise pending.error.with_traceback(None)
        assert pending.rows is not None
        return pending.rows, np.concatenate(counts)

    async def _submit_chunk(
        self, texts: list[str], start: int, pending: PendingRequest, *, truncate: bool
    ) -> npt.NDArray[np.int64]:
        """Tokenize one chunk and queue it; returns its token counts."""
        chunk = texts[start : start + TEXTS_PER_CHUNK]
        try:
            token_ids = await self._tokenize(chunk, truncate=truncate)
        except BadInput as exc:
            if exc.position is None:
                raise
            raise exc.moved_to(start + exc.position) from exc
        if not pending.is_cancelled:
            self._pool.submit(
                [Item(ids, pending, start + position) for position, ids in enumerate(token_ids)]
            )
        return np.array([len(ids) for ids in token_ids], dtype=np.int64)

    async def _tokenize(self, texts: list[str], *, truncate: bool) -> list[TokenIds]:
        if sum(map(len, texts)) <= INLINE_CHARS:
            return self._model.tokenize(texts, truncate=truncate)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._tokenizer_pool, lambda: self._model.tokenize(texts, truncate=truncate)
        )


def check_texts(texts: Sequence[str]) -> None:
    """Raises BadInput unless `texts` is a list of one or more strings."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise BadInput(f"sentences must be a list of texts, not {type(texts).__name__}")
    if not texts:
        raise BadInput("sentences is empty; give at least one text")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadInput(f"sentences[{position}] is {type(text).__name__}, not a text")
