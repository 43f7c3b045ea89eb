"""`/health` and `/ready`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Health(BaseModel):
    """The server's clock, in seconds."""

    unix: float


class Readiness(BaseModel):
    """Every model answers."""

    ready: Literal[True]
