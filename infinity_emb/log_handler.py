"""Where infinity_emb kept its logger and the numbers of its levels; `cli/logs.py` is what sets it up."""

import logging

from infinity_emb import config
from infinity_emb.cli.logs import TRACE

__all__ = ["LOG_LEVELS", "logger"]

LOG_LEVELS = {name: int(getattr(logging, name.upper(), TRACE)) for name in config.LOG_LEVELS}

logger = logging.getLogger("infinity_emb")
