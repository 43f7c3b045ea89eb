"""`/health` and `/ready`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Health(BaseModel):
    """The server is healthy."""

    unix: float = Field(description="Unix time in seconds.")


class Readiness(BaseModel):
    """All models are ready."""

    ready: Literal[True] = Field(description="Always true.")
