"""Serve models with Ray Serve: the server's app on each replica, behind a router for several models."""

from __future__ import annotations

from infinity_emb.ray_serve.application import build

__all__ = ["build"]
