"""Prompts by sentence-transformers' own rules, and by the words of the vendors' APIs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from infinity_emb.backends import fake
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import BadInput
from infinity_emb.preprocessing.prompts import Prompt, choose_prompt
from infinity_emb.types import ModelInfo

FAKE = fake.load_model(EngineArgs(model_name_or_path="debug", engine="debugengine")).info


def info_of(
    prompts: dict[str, str] | None = None, *, default: str | None = None, tasks: tuple[str, ...] = ()
) -> ModelInfo:
    return replace(FAKE, prompts=prompts or {}, default_prompt_name=default, tasks=tasks)


E5 = {"query": "query: ", "document": "", "passage": "passage: "}
ONE_PROMPT = {"usual": "as usual: "}


@pytest.mark.model
@pytest.mark.parametrize(
    "prompts",
    [
        {},
        {"query": "q: ", "document": "d: "},
        {"query": "q: ", "passage": "p: "},
        {"passage": "p: ", "corpus": "c: "},
        {"corpus": "c: "},
        {"usual": "u: "},
    ],
)
@pytest.mark.parametrize("default", [None, "usual"])
@pytest.mark.parametrize("given", [{}, {"prompt": "mine: "}, {"prompt": ""}, {"prompt_name": "named"}])
def test_the_prompt_is_the_one_that_sentence_transformers_takes(
    prompts: dict[str, str], default: str | None, given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer
    from torch.nn import Identity

    prompts = {**prompts, "named": "n: "} | ({} if default is None else {default: "default: "})
    model: Any = SentenceTransformer(
        modules=[Identity()], prompts=prompts, default_prompt_name=default, device="cpu"
    )

    def resolve(
        inputs: Any, *, prompt: str | None, prompt_name: str | None, task: str | None = None, **_: Any
    ) -> Prompt:
        return Prompt(model._resolve_prompt(prompt, prompt_name) or "", task)

    info = info_of(dict(model.prompts), default=default)
    monkeypatch.setattr(model, "encode", resolve)
    assert choose_prompt(info, **given) == resolve("", **{"prompt": None, "prompt_name": None, **given})
    assert choose_prompt(info, input_type="query", **given) == model.encode_query("", **given)
    assert choose_prompt(info, input_type="document", **given) == model.encode_document("", **given)


@pytest.mark.parametrize(
    ("words", "task"),
    [
        # Cohere, Jina, Voyage, Google, NVIDIA, in that order; and what sentence-transformers calls them.
        (["search_query", "retrieval.query", "query", "RETRIEVAL_QUERY", "query"], "query"),
        (["search_document", "retrieval.passage", "document", "RETRIEVAL_DOCUMENT", "passage"], "document"),
        (["nl2code.query", "code.query", "CODE_RETRIEVAL_QUERY", "QUESTION_ANSWERING"], "query"),
        (["nl2code_document", "code.passage", "corpus", "Search-Document", "retrieval document"], "document"),
    ],
)
def test_vendors_words_mean_one_of_the_two_sides(words: list[str], task: str) -> None:
    info = info_of({"query": "q: ", "document": "d: "})
    for word in words:
        assert choose_prompt(info, input_type=word) == Prompt(f"{task[0]}: ", task)


@pytest.mark.parametrize(
    "word",
    [
        "classification",
        "clustering",
        "CLUSTERING",
        "SEMANTIC_SIMILARITY",
        "FACT_VERIFICATION",
        "text-matching",
        "separation",
        "image",
        "none",
    ],
)
def test_words_for_neither_side_take_a_prompt_of_that_name_and_else_the_default_one(word: str) -> None:
    assert choose_prompt(info_of(), input_type=word) == Prompt("", None)
    assert choose_prompt(info_of(ONE_PROMPT, default="usual"), input_type=word) == Prompt("as usual: ", None)
    own = {word: "own: ", **ONE_PROMPT}
    assert choose_prompt(info_of(own, default="usual"), input_type=word) == Prompt("own: ", None)


def test_a_prompt_of_exactly_that_name_comes_first() -> None:
    """E5 has an empty prompt called `document`, which sentence-transformers gives to every model."""
    assert choose_prompt(info_of(E5), input_type="passage") == Prompt("passage: ", "document")
    assert choose_prompt(info_of(E5), input_type="document") == Prompt("", "document")
    own = {"query": "q: ", "search_query": "s: ", "retrieval.query": "r: "}
    assert choose_prompt(info_of(own), input_type="search_query") == Prompt("s: ", "query")
    assert choose_prompt(info_of(own), input_type="retrieval.query") == Prompt("r: ", "query")
    assert choose_prompt(info_of(own), input_type="retrieval_query") == Prompt("q: ", "query")


def test_a_task_of_the_model_is_taken_by_its_own_name() -> None:
    info = info_of({"retrieval.query": "r: "}, tasks=("retrieval.query", "text-matching", "query"))
    assert choose_prompt(info, input_type="retrieval.query") == Prompt("r: ", "retrieval.query")
    assert choose_prompt(info, input_type="text-matching") == Prompt("", "text-matching")
    assert choose_prompt(info, input_type="query") == Prompt("", "query")


def test_a_prompt_of_the_model_is_taken_by_its_own_name() -> None:
    info = info_of({"STS": "s: ", **ONE_PROMPT}, default="usual")
    assert choose_prompt(info, input_type="STS") == Prompt("s: ", None)


def test_a_side_without_a_prompt_takes_the_default_one() -> None:
    assert choose_prompt(info_of(ONE_PROMPT, default="usual"), input_type="query") == Prompt(
        "as usual: ", "query"
    )


def test_the_text_of_a_prompt_beats_its_name_and_keeps_the_task() -> None:
    info = info_of(E5, default="passage")
    assert choose_prompt(info, prompt="mine: ", prompt_name="query") == Prompt("mine: ", None)
    assert choose_prompt(info, prompt="", input_type="query") == Prompt("", "query")
    assert choose_prompt(info, prompt_name="passage", input_type="query") == Prompt("passage: ", "query")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"prompt_name": "poem"},
            r"prompt_name='poem' is not one of .*\['passage', 'query'\]; send the text",
        ),
        ({"input_type": "poem"}, r"input_type='poem' is not known; .*\['adapter'\] .*\['passage', 'query'\]"),
        ({"input_type": ""}, "input_type='' is not known"),
        ({"prompt_name": ""}, "prompt_name='' is not one"),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_there_are(given: dict[str, str], words: str) -> None:
    info = info_of({"query": "q: ", "passage": "p: "}, tasks=("adapter",))
    with pytest.raises(BadInput, match=words):
        choose_prompt(info, **given)
    with pytest.raises(BadInput, match="it has none"):
        choose_prompt(info_of(), **given)
