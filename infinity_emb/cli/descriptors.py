"""Keep the number of connections below the number of files that the process may open.

At that limit nothing can be accepted, not even a health check.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import NamedTuple

if sys.platform != "win32":  # which has no such limit
    import resource

logger = logging.getLogger("infinity_emb")

# As many as may arrive while the event loop is busy, so that a probe among them is read before it makes room.
MAX_EXTRA = 512
# For model files, media, databases, listening sockets and the sockets of clients, which are opened later.
NUM_RESERVED = 384


class FittingConnections(NamedTuple):
    """The numbers of connections that are served, and of extra ones that may only request a probe."""

    max_connections: int
    max_extra: int


def fit_connections(max_connections: int) -> FittingConnections:
    """Raise the limit of open files as far as needed, and lower the number of connections to fit below it."""
    num_open = _count_open_files()
    num_wanted = max_connections + MAX_EXTRA + NUM_RESERVED
    num_free = _raise_limit(num_open + num_wanted) - num_open
    if num_free >= num_wanted:
        return FittingConnections(max_connections, MAX_EXTRA)
    num_spare = min(MAX_EXTRA + NUM_RESERVED, num_free // 2)
    fitting = FittingConnections(max(1, num_free - num_spare), max(1, min(MAX_EXTRA, num_spare // 3)))
    logger.warning(
        "--max-connections %d needs %d open files, and the limit is %d: %d connections are served;"
        " raise the limit (`ulimit -n`, or LimitNOFILE of systemd)",
        *(max_connections, num_open + num_wanted, num_open + num_free, fitting.max_connections),
    )
    return fitting


def _raise_limit(num_wanted: int) -> int:
    """Raise the soft limit to `num_wanted` if the hard one allows it; return the limit."""
    if sys.platform == "win32":
        return num_wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= num_wanted:
        return num_wanted
    limit = num_wanted if hard == resource.RLIM_INFINITY else min(num_wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (OSError, ValueError):  # macOS allows fewer than its hard limit says
        return soft
    return limit


def _count_open_files() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return 64
