"""Small random models of real architectures, saved as the folders that users have, made on the spot."""

from tests.support.small_models.architectures import (
    ARCHITECTURES,
    DECODERS,
    HIDDEN_SIZE,
    MAX_LENGTH,
    PACKED_ARCHITECTURES,
    PADDED_ARCHITECTURES,
    VOCABULARY_SIZE,
    make_tokenizer,
    save_network,
    spread_weights,
)
from tests.support.small_models.embedders import (
    save_pipeline,
    save_small_m3,
    save_small_model,
    save_small_router,
)
from tests.support.small_models.retrievers import (
    TOKEN_DIM,
    save_small_late_interaction,
    save_small_splade,
    save_sparse_encoder,
    splade_modules,
)
from tests.support.small_models.scorers import save_small_classifier, save_small_yes_no_reranker
from tests.support.small_models.texts import WORDS, random_texts

__all__ = [
    "ARCHITECTURES",
    "DECODERS",
    "HIDDEN_SIZE",
    "MAX_LENGTH",
    "PACKED_ARCHITECTURES",
    "PADDED_ARCHITECTURES",
    "TOKEN_DIM",
    "VOCABULARY_SIZE",
    "WORDS",
    "make_tokenizer",
    "random_texts",
    "save_network",
    "save_pipeline",
    "save_small_classifier",
    "save_small_late_interaction",
    "save_small_m3",
    "save_small_model",
    "save_small_router",
    "save_small_splade",
    "save_small_yes_no_reranker",
    "save_sparse_encoder",
    "splade_modules",
    "spread_weights",
]
