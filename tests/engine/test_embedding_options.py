"""The options of a request are resolved by what the model supports now."""

from __future__ import annotations

from dataclasses import replace

from infinity_emb.engine.embedding_options import OptionResolver
from infinity_emb.engine.results import DEFAULT_OPTIONS, EmbedOptions
from infinity_emb.types import EmbeddingDtype
from tests.support.fake_engines import fake_parts


def test_defaults_are_resolved_once_for_each_time_that_a_model_is_loaded() -> None:
    slot = fake_parts().slot
    resolver = OptionResolver(slot, default_dtype=EmbeddingDtype.float32, has_token_vectors=False)
    first = resolver.resolve(DEFAULT_OPTIONS)
    assert resolver.resolve(DEFAULT_OPTIONS) is first
    assert first.prompt == ""
    slot.info = replace(slot.info, prompts={"query": "q: "}, default_prompt_name="query")
    assert resolver.resolve(DEFAULT_OPTIONS).prompt == "q: "
    assert resolver.resolve(EmbedOptions(prompt="p: ")).prompt == "p: "
