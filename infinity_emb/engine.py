"""One served model: `AsyncEmbeddingEngine`, its life and what is known of it.

What it does stands in `embedding_tasks.py`, `scoring_tasks.py` and `token_tasks.py`, and how that is computed
in `running_model.py`. Knows nothing of HTTP or of any compute library; the model is whatever
`backends.registry` loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.registry import load_model
from infinity_emb.cache.stats import CacheStats
from infinity_emb.calibrator import Calibrator
from infinity_emb.config import EngineArgs
from infinity_emb.embedding_tasks import NEEDS_RANGES, EmbeddingTasks
from infinity_emb.errors import StartupError
from infinity_emb.media_hosts import parse_hosts
from infinity_emb.media_inputs import MediaReader
from infinity_emb.primitives import Capability, EmbeddingDtype, ModelInfo, OverloadStatus
from infinity_emb.running_model import DRAIN_TIMEOUT_S, RunningModel
from infinity_emb.scoring_tasks import ScoringTasks
from infinity_emb.token_ids import TokenIdReader
from infinity_emb.token_tasks import TokenTasks
from infinity_emb.worker import WorkerStats


class AsyncEmbeddingEngine(EmbeddingTasks, ScoringTasks, TokenTasks):
    """One model, from any number of coroutines of one event loop.

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
        model = load_model(self.engine_args)
        # What was measured at first is not measured again.
        again = replace(self.engine_args, max_batch_tokens=model.max_batch_tokens)
        self.max_batch_tokens = model.max_batch_tokens  # in one forward pass, as given or as measured
        self._running = RunningModel(model, self.engine_args, lambda: load_model(again))
        self._running.on_open = self._prepare_tasks
        self._embedding_dtype = _check_embedding_dtype(self.engine_args, model.info)
        self._token_ids = TokenIdReader(self.engine_args.token_ids, model.vocabulary)

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
        self._running.start()
        if self._embedding_dtype in NEEDS_RANGES and "dense" in self.info.outputs:
            async with self._running.admitted(0):
                await self._calibrator.ranges(None)

    async def astop(self, drain_timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Finish what was accepted within the deadline, fail the rest, end the threads."""
        await self._running.stop(drain_timeout_s)

    async def aunload(self, drain_timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Stop, and give the model's memory back. Where it is started again, the first request loads it."""
        await self._running.give_up(drain_timeout_s)

    async def areload(self, drain_timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Load the model anew; requests wait meanwhile.

        Raises StartupError, where the next request tries again, and EngineNotReady.
        """
        await self._running.reload(drain_timeout_s)

    def _prepare_tasks(self) -> None:
        """What belongs to an event loop, and to the model's files as they are now."""
        args = self.engine_args
        self._media = MediaReader(
            self._model.sampling_rate,
            max_pixels=args.max_queue_pixels,
            max_seconds=args.max_queue_audio_s,
            is_allowed=parse_hosts(args.media_hosts),
        )
        self._calibrator = Calibrator(args, self.info, self._embed_for_calibration)

    @property
    def _model(self) -> LoadedModel:
        return self._running.model

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory; the next request loads one that is not."""
        return self._running.is_loaded

    @property
    def is_running(self) -> bool:
        """Whether a request that comes now will be computed."""
        return self._running.is_running

    # What LangChain's InfinityEmbeddingsLocal asks, 0.0.77 had both.
    running = is_running

    @property
    def is_ready(self) -> bool:
        """Whether a device computes now; false while its thread comes back from a death."""
        return self._running.is_ready

    @property
    def is_dead(self) -> bool:
        """Whether the device is lost for good: nothing is computed until the process is restarted."""
        return self._running.is_dead

    def call_on_death(self, callback: Callable[[], None]) -> None:
        """Have it called once, on any thread, when the device is lost for good."""
        self._running.on_death = callback

    @property
    def stats(self) -> WorkerStats:
        """Counters since start."""
        return self._running.stats

    @property
    def num_refused_requests(self) -> int:
        """Since start, as there was no room."""
        return self._running.num_refused_requests

    @property
    def cache_stats(self) -> CacheStats:
        """What was not computed again since start, and why."""
        return self._running.cache_stats

    @property
    def num_late_requests(self) -> int:
        """Since start, dropped as their time was over."""
        return self._running.num_late_requests

    @property
    def num_cancelled_requests(self) -> int:
        """Since start, by who asked, mostly by hanging up."""
        return self._running.num_cancelled_requests

    def describe_state(self) -> dict[str, object]:
        """Its queue and its device threads, for a person."""
        return self._running.describe_state()

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens in the queue."""
        return self._running.num_waiting_tokens

    @property
    def capabilities(self) -> set[Capability]:
        """What the model can do."""
        return set(self.info.capabilities)

    def is_overloaded(self) -> bool:
        """Whether the next request would be refused."""
        return self._running.is_overloaded()

    def check_room(self) -> None:
        """Raises Overloaded, and counts a request as refused, where the next one would be, whatever it is.

        For a server that is to find out before it reads what the request says.
        """
        self._running.check_room()

    def overload_status(self) -> OverloadStatus:
        """How full the queue is."""
        return self._running.overload_status()


def _check_embedding_dtype(args: EngineArgs, info: ModelInfo) -> EmbeddingDtype:
    """Where requests ask for no other. Raises StartupError for one in which a model answers nothing.

    Scores and sparse vectors have no such format: one option may stand for several models.
    """
    if args.embedding_dtype in NEEDS_RANGES and info.outputs == ("multivector",):
        raise StartupError(
            f"--embedding-dtype {args.embedding_dtype} is not for model {args.model_name_or_path!r}, which"
            " answers a vector for each token; use float32, float16, binary or ubinary"
        )
    return args.embedding_dtype
