"""Ray is in an environment of its own."""

from __future__ import annotations

import pytest


def test_ray_is_installed() -> None:
    """Stands for the other tests of this folder, which are not collected without Ray."""
    pytest.importorskip(
        "ray", reason="ray is not installed here: `make test-ray` runs the tests of tests/ray"
    )
