"""Where infinity_emb kept `EngineArgs`; it stands in `config.py`."""

from infinity_emb.config import EngineArgs

__all__ = ["EngineArgs"]
