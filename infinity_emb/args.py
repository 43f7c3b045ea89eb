"""Import names of infinity_emb 0.0.77; `EngineArgs` now lives in `config/engine_args.py`."""

from infinity_emb.config.engine_args import EngineArgs

__all__ = ["EngineArgs"]
