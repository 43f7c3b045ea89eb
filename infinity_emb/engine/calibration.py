"""Find the ranges for int8 and uint8 vectors of one engine, by embedding calibration texts once."""

from __future__ import annotations

import asyncio
import os
import weakref
from contextvars import Context
from pathlib import Path

from infinity_emb.backends.sample_texts import load_sample_texts
from infinity_emb.cache.cached_runner import Runner
from infinity_emb.concurrency import ExclusiveTask
from infinity_emb.config.model_options import ModelOptions
from infinity_emb.engine.calibration_file import CalibrationFile, CalibrationKey
from infinity_emb.engine.calibration_texts import read_texts
from infinity_emb.engine.gate import RequestGate
from infinity_emb.engine.host import OpenModel
from infinity_emb.engine.slot import ModelSlot
from infinity_emb.hub.version import model_version
from infinity_emb.items import Float32Array, InputOptions, number_inputs
from infinity_emb.postprocessing import QuantizationRanges
from infinity_emb.preprocessing.prompts import choose_prompt
from infinity_emb.storage.files import cache_dir
from infinity_emb.types import ModelInfo


class Calibrator:
    """Hold the calibration vectors of one served model: loaded from a file, or computed when first needed."""

    def __init__(self, options: ModelOptions) -> None:
        self._options = options
        self._info: ModelInfo | None = None  # of the model that `_file` belongs to
        self._file: CalibrationFile | None = None
        self._tasks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, ExclusiveTask[None]]
        self._tasks = weakref.WeakKeyDictionary()

    def is_ready(self, info: ModelInfo) -> bool:
        """Return true after `prepare` for this model; a reloaded one may be another version."""
        return self._info is info

    def ranges(self, dimensions: int | None, *, is_normalized: bool = False) -> QuantizationRanges:
        """Return the ranges of vectors cut to `dimensions`, normalized if requested; call `prepare` first."""
        assert self._file is not None
        return self._file.ranges(dimensions, is_normalized=is_normalized)

    async def prepare(self, slot: ModelSlot, gate: RequestGate, open_model: OpenModel | None = None) -> None:
        """Load or compute the calibration vectors, unless that has been done.

        open_model: which the request uses. A request that is cancelled or late does not end the computation.
        Raises what `runner.run` raises, and StartupError for an unusable file of texts.
        """
        calibration = self._tasks.setdefault(asyncio.get_running_loop(), ExclusiveTask())
        while not self.is_ready(slot.info):
            is_own = calibration.task is None
            # Without the context of the request: its client, deadline, memory and admission.
            running = calibration.task or Context().run(calibration.begin, self._calibrate(gate, open_model))
            await asyncio.wait([running])
            if running.cancelled():
                raise slot.not_ready()
            failure = running.exception()
            if is_own and failure is not None:  # others try again
                raise failure

    async def _calibrate(self, gate: RequestGate, used: OpenModel | None) -> None:
        async with gate.assist(used) as open_model:
            info = open_model.model.info
            file, missing = await asyncio.to_thread(self._load_file, info)
            if missing:
                vectors = await _embed(missing, info, open_model.runner)
                await asyncio.to_thread(file.save, vectors)
            self._file, self._info = file, info

    def _load_file(self, info: ModelInfo) -> tuple[CalibrationFile, list[str]]:
        """Return the file, and the texts that have to be embedded for it."""
        path = self._options.calibration_file
        texts = read_texts(Path(path)) if path else load_sample_texts()
        key = CalibrationKey(
            model=self._options.model_name_or_path,
            version=model_version(self._options, info),
            default_prompt=info.prompts.get(info.default_prompt_name or "", ""),
            embedding_dimension=info.embedding_dimension,
            texts=tuple(texts),
        )
        file = CalibrationFile(cache_dir(os.environ) / "calibration", key)
        return file, texts if file.load() is None else []


async def _embed(texts: list[str], info: ModelInfo, runner: Runner) -> Float32Array:
    """Return (N, D) float32."""
    task = "document" if "document" in info.tasks else None  # a router may have no default
    options = InputOptions(prompt=choose_prompt(info).text, task=task)
    outputs = await runner.run(number_inputs(texts), options)
    vectors: Float32Array = outputs.by_name["dense"]
    return vectors
