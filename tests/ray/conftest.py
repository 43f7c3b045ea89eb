"""A small Ray cluster for all tests of this folder, which need `infinity-emb[ray]`: `make test-ray`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

OBJECT_STORE_BYTES = 80 * 2**20
# Inherited by the processes of Ray, which find this package in the repository.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # 15 otherwise, and then other work on the machine starves the replicas
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # on a busy machine
    "PYTHONPATH": str(Path(__file__).parents[2]),
}

if importlib.util.find_spec("ray") is None:
    collect_ignore_glob = ["test_[!e]*.py"]  # all but test_environment.py
else:
    os.environ.update(SETTINGS)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Yield a cluster of one node; tests add others."""
    # Ray keeps the token by which its processes know each other in the home folder.
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        serve.shutdown()
        ray.shutdown()
    finally:
        cluster.shutdown()
