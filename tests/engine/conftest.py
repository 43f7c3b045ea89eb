"""Share fixtures of the engine's tests."""

from __future__ import annotations

import pytest

from tests.support.recording_models import RecordingModels


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> RecordingModels:
    return RecordingModels(monkeypatch)
