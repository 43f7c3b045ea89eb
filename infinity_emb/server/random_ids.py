"""Make ids of requests and responses: random, and without a system call for each."""

from __future__ import annotations

import os
import random

# Its own state, which code of models cannot seed.
_random = random.Random()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def make_random_id() -> str:
    """Return 32 hexadecimal digits. They can be predicted from earlier ones: never use them as secrets."""
    return f"{_random.getrandbits(128):032x}"
