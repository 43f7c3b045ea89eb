"""The server that most pages and examples talk to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.server_process import serving


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-examples", action="store_true", help="also run the examples of many packages")


@pytest.fixture(scope="session")
def plain_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a server of the bundled model, with the admin key of docs/operating.md."""
    batches = str(tmp_path_factory.mktemp("batches"))
    with serving("--no-model-warmup", "--admin-key", "my-admin-key", "--batch-dir", batches) as url:
        yield url
