"""Import names of infinity_emb 0.0.77; `cli/log_setup.py` configures logging."""

import logging

from infinity_emb.cli.log_setup import TRACE
from infinity_emb.config import server_config as config

__all__ = ["LOG_LEVELS", "logger"]

LOG_LEVELS = {name: int(getattr(logging, name.upper(), TRACE)) for name in config.LOG_LEVELS}

logger = logging.getLogger("infinity_emb")
