"""Load a model and put the parts of its engine together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.registry import load_model
from infinity_emb.cache.memory_tier import MemoryTier
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.calibration import Calibrator
from infinity_emb.engine.embedding import EmbeddingService
from infinity_emb.engine.embedding_options import OptionResolver, check_default_dtype
from infinity_emb.engine.gate import RequestGate
from infinity_emb.engine.host import BATCH_GRACE_S, ModelHost
from infinity_emb.engine.scoring import Scorer
from infinity_emb.engine.slot import ModelSlot
from infinity_emb.engine.status import EngineStatus, take_status
from infinity_emb.engine.token_ids import TokenIdService
from infinity_emb.engine.tokens import TokenizerService
from infinity_emb.preprocessing.media.reader import MediaReader
from infinity_emb.preprocessing.token_ids import TokenIdReader
from infinity_emb.scheduling.media_workers import HostResolver
from infinity_emb.types import ModelInfo, Normalization

logger = logging.getLogger("infinity_emb")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParts:
    """The parts of one engine, lowest first."""

    max_batch_tokens: int  # as given, or as measured
    host: ModelHost
    slot: ModelSlot
    gate: RequestGate
    embedder: EmbeddingService
    scorer: Scorer
    tokenizer: TokenizerService

    def take_status(self) -> EngineStatus:
        """Take a snapshot of the engine's state and counters."""
        return take_status(self.slot, self.gate, max_batch_tokens=self.max_batch_tokens)


def load_parts(args: EngineArgs) -> EngineParts:
    """Load the model; blocks until it is warm. Raises StartupError when it cannot be served."""
    if args.vector_memory_cache_mb:
        MemoryTier(0)  # raises before the model is loaded where the library is missing
    model = load_model(args.load)
    _log_vector_length(model.info, args)
    # When the model is loaded again, its batch size is not measured again.
    reload_options = replace(args.load, max_batch_tokens=model.max_batch_tokens)
    return assemble_parts(model, args, lambda: load_model(reload_options))


def _log_vector_length(info: ModelInfo, args: EngineArgs) -> None:
    """Log that vectors are not normalized, which users of other servers expect."""
    if info.is_normalized is False and args.normalize is Normalization.auto:
        logger.info(
            "vectors of model %r do not have length 1, as in sentence-transformers; compare them by cosine,"
            " or start with --normalize always",
            args.served_model_name,
        )


def assemble_parts(
    model: LoadedModel,
    args: EngineArgs,
    load: Callable[[], LoadedModel],
    *,
    batch_grace_s: float = BATCH_GRACE_S,
) -> EngineParts:
    """Put an engine together around a loaded model.

    load: loads the model again. batch_grace_s: see `ModelHost`.
    Raises StartupError for options that the model cannot be served with.
    """
    host = ModelHost(
        args.load, args.cache, max_batch_tokens=model.max_batch_tokens, batch_grace_s=batch_grace_s
    )
    slot = ModelSlot(args.served_model_name, model, load, host, idle_unload_s=args.idle_unload_s)
    gate = RequestGate(slot, args.queue)
    token_ids = TokenIdService(TokenIdReader(args.token_ids, model.vocabulary))
    default_dtype = check_default_dtype(args.embedding_dtype, model.info, args.model_name_or_path)
    embedder = EmbeddingService(
        slot,
        gate,
        resolver=OptionResolver(
            slot,
            default_dtype=default_dtype,
            has_token_vectors=model.has_token_vectors,
            normalizes=args.normalize is Normalization.always,
        ),
        media=MediaReader(model.sampling_rate, args.media, resolve=HostResolver()),
        token_ids=token_ids,
        calibrator=Calibrator(args.load),
    )
    return EngineParts(
        max_batch_tokens=model.max_batch_tokens,
        host=host,
        slot=slot,
        gate=gate,
        embedder=embedder,
        scorer=Scorer(slot, gate, token_ids),
        tokenizer=TokenizerService(slot, gate),
    )
