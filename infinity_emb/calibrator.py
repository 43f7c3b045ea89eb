"""Ranges for int8 and uint8 vectors of one engine: read from the cache, or found once by embedding texts.

Knows nothing of how texts are embedded; the engine hands over a function that does.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from infinity_emb.backends.base import Rows
from infinity_emb.calibration import (
    CalibrationFile,
    CalibrationKey,
    calibration_texts,
    read_texts,
)
from infinity_emb.config import EngineArgs
from infinity_emb.home import home_folder
from infinity_emb.model_version import model_version
from infinity_emb.postprocess import Ranges
from infinity_emb.primitives import ModelInfo

Embed = Callable[[list[str]], Awaitable[Rows]]


class Calibrator:
    """The calibration rows of one served model, found when they are first asked for."""

    def __init__(self, args: EngineArgs, info: ModelInfo, embed: Embed) -> None:
        self._args = args
        self._info = info
        self._embed = embed
        self._file: CalibrationFile | None = None
        self._finding: asyncio.Lock | None = None  # made in the loop that uses it

    async def ranges(self, dimensions: int | None) -> Ranges:
        """Of vectors cut to `dimensions`. Raises what embedding raises, and StartupError for a bad file.

        To be called with room taken by `RunningModel.admitted`, as everything that embeds.
        """
        if self._file is None:
            self._finding = self._finding or asyncio.Lock()
            async with self._finding:
                if self._file is None:
                    self._file = await self._find()
        return self._file.ranges(dimensions)

    async def _find(self) -> CalibrationFile:
        file, missing = await asyncio.to_thread(self._read)
        if missing:
            rows = await self._embed(missing)
            await asyncio.to_thread(file.save, rows)
        return file

    def _read(self) -> tuple[CalibrationFile, list[str]]:
        """The file, and the texts whose rows it does not have."""
        path = self._args.calibration_file
        texts = read_texts(Path(path)) if path else calibration_texts()
        key = CalibrationKey(
            model=self._args.model_name_or_path,
            version=model_version(self._args, self._info),
            default_prompt=self._info.prompts.get(self._info.default_prompt_name or "", ""),
            embedding_dimension=self._info.embedding_dimension,
            texts=tuple(texts),
        )
        file = CalibrationFile(home_folder(os.environ) / "calibration", key)
        return file, texts if file.load() is None else []
