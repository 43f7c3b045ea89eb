"""Make fake engines that record what is encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from infinity_emb.backends import fake
from infinity_emb.backends.base import LoadedModel
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine import parts
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.items import Encoded, Input, InputOptions, RequestInput
from tests.support.fake_engines import fake_engine


class RecordingModels:
    """Engines of the fake model; `encoded` holds the inputs and options of each call of the encoder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encoded: list[tuple[list[Input], InputOptions]] = []
        self._monkeypatch = monkeypatch

    def engine(
        self, faults: str = "", info: dict[str, Any] | None = None, **changes: Any
    ) -> AsyncEmbeddingEngine:
        """Make an engine; `changes` are fields of the loaded model, and `info` those of its description."""

        def load(args: EngineArgs) -> LoadedModel:
            model = fake.load_model(args)
            changed: dict[str, Any] = {"encode": self._encode, **changes}
            return replace(model, info=replace(model.info, **(info or {})), **changed)

        with self._monkeypatch.context() as patch:
            patch.setattr(parts, "load_model", load)
            return fake_engine(faults)

    def _encode(self, inputs: Sequence[RequestInput], options: InputOptions) -> list[Encoded]:
        self.encoded.append(([each.value for each in inputs], options))
        return fake.encode(inputs, options)
