"""Which prompt goes before a text, and which task it is for: sentence-transformers' rules, vendors' words.

Pure rules over what a model's files say. Source of the rules: `encode`, `encode_query` and `encode_document`
of sentence-transformers 6; of the words: the APIs of Cohere, Jina, Voyage, NVIDIA and Google.
"""

from __future__ import annotations

from typing import NamedTuple

from infinity_emb.errors import BadInput
from infinity_emb.primitives import ModelInfo

# What vendors call the two sides of a search, in lower case and with `_` for every separator.
_QUERY_WORDS = frozenset(
    {"query", "search_query", "retrieval_query", "question_answering", "code_retrieval_query"}
    | {"code_query", "nl2code_query"}
)
_DOCUMENT_WORDS = frozenset(
    {"document", "passage", "corpus", "search_document", "retrieval_document", "retrieval_passage"}
    | {"code_passage", "nl2code_document"}
)
# Vendors' words for what is neither; a model without a prompt of that name uses its default one.
_OTHER_WORDS = frozenset(
    {"classification", "clustering", "separation", "text_matching", "semantic_similarity"}
    | {"fact_verification", "image", "text", "none"}
)
_PROMPTS_OF_TASK = {"query": ("query",), "document": ("document", "passage", "corpus")}


# Of a prompt that a request brings, which is read again with each of its inputs.
MAX_PROMPT_CHARS = 100_000


class Prompt(NamedTuple):
    """What to put before the text, and the task that a router or a mask asks for."""

    text: str
    task: str | None


def choose_prompt(
    info: ModelInfo,
    *,
    prompt: str | None = None,
    prompt_name: str | None = None,
    input_type: str | None = None,
) -> Prompt:
    """The prompt for a request.

    prompt: the text itself; beats everything else, and "" is no prompt.
    prompt_name: one of the model's own. Without either, the first that the model has of those that go with
    the task, else its default one.
    input_type: query or document, in any vendor's words; or one of the model's own tasks or prompts.
    Raises BadInput for a name that nothing stands for.
    """
    task, names = _read_input_type(info, input_type)
    if prompt is not None:
        return Prompt(prompt, task)
    if prompt_name is not None:
        if prompt_name not in info.prompts:
            raise BadInput(
                f"prompt_name={prompt_name!r} is not one of this model's prompts: {_listed(info.prompts)};"
                " send the text itself as `prompt`"
            )
        return Prompt(info.prompts[prompt_name], task)
    name = next((each for each in names if each in info.prompts), info.default_prompt_name)
    return Prompt(info.prompts.get(name or "", ""), task)


def _read_input_type(info: ModelInfo, input_type: str | None) -> tuple[str | None, tuple[str, ...]]:
    """The task, and the names of prompts that go with it."""
    if input_type is None:
        return None, ()
    if input_type in info.tasks and input_type not in _PROMPTS_OF_TASK:
        return input_type, (input_type,)
    word = input_type.lower().replace(".", "_").replace("-", "_").replace(" ", "_")
    if word in _QUERY_WORDS or word in _DOCUMENT_WORDS:
        task = "query" if word in _QUERY_WORDS else "document"
        return task, (input_type, *_PROMPTS_OF_TASK[task])
    if input_type in info.prompts or word in _OTHER_WORDS:
        return None, (input_type,)
    raise BadInput(
        f"input_type={input_type!r} is not known; give query or document, or one of this model's tasks"
        f" {_listed(info.tasks)} and prompts {_listed(info.prompts)}"
    )


def _listed(names: object) -> str:
    return str(sorted(names)) if names else "(it has none)"  # type: ignore[call-overload]  # any iterable


def check_prompt(prompt: str | None) -> None:
    """Raises BadInput unless the prompt that a request brings is a text within the limit, or None."""
    if prompt is not None and not isinstance(prompt, str):
        raise BadInput(f"prompt is {type(prompt).__name__}, not a text")
    if prompt is not None and len(prompt) > MAX_PROMPT_CHARS:
        raise BadInput(
            f"prompt has {len(prompt)} characters, the limit is {MAX_PROMPT_CHARS}; send a shorter one, or"
            " put what is long into the texts"
        )
