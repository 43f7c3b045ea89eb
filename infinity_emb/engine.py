"""One served model: `AsyncEmbeddingEngine`, its life and what is known of it.

What it does stands in `embedding_tasks.py` and `scoring_tasks.py`, and how that is computed in
`running_model.py`. Knows nothing of HTTP or of any compute library; the model is whatever `backends.registry`
loaded.
"""

from __future__ import annotations

import warnings
from typing import Any

from infinity_emb.backends.registry import load_model
from infinity_emb.calibrator import Calibrator
from infinity_emb.config import EngineArgs
from infinity_emb.embedding_tasks import NEEDS_RANGES, EmbeddingTasks
from infinity_emb.media_inputs import MediaReader
from infinity_emb.primitives import Capability, OverloadStatus
from infinity_emb.running_model import DRAIN_TIMEOUT_S, RunningModel
from infinity_emb.scoring_tasks import ScoringTasks
from infinity_emb.worker import WorkerStats


class AsyncEmbeddingEngine(EmbeddingTasks, ScoringTasks):
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
        self._model = load_model(self.engine_args)
        self._running = RunningModel(self._model, self.engine_args)
        self._embedding_dtype = self.engine_args.embedding_dtype

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
        self._media = MediaReader(self._model.sampling_rate)
        self._calibrator = Calibrator(self.engine_args, self.info, self._embed_for_calibration)
        if self._embedding_dtype in NEEDS_RANGES:
            async with self._running.admitted(0):
                await self._calibrator.ranges(None)

    async def astop(self, drain_timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Finish what was accepted within the deadline, fail the rest, end the threads."""
        await self._running.stop(drain_timeout_s)

    @property
    def is_running(self) -> bool:
        """Whether a request that comes now will be computed."""
        return self._running.is_running

    @property
    def is_dead(self) -> bool:
        """Whether a device thread ended by itself: nothing is computed until the process is restarted."""
        return self._running.is_dead

    @property
    def stats(self) -> WorkerStats:
        """Counters since start."""
        return self._running.stats

    @property
    def max_batch_tokens(self) -> int:
        """Tokens in one forward pass, as given or as measured."""
        return self._model.max_batch_tokens

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

    def overload_status(self) -> OverloadStatus:
        """How full the queue is."""
        return self._running.overload_status()
