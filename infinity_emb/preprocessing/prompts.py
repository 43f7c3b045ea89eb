"""Choose the prompt and the task of a request, by sentence-transformers' rules.

Source of the rules: `encode`, `encode_query` and `encode_document` of sentence-transformers 6. Source of the
values of `input_type`: the APIs of Cohere, Jina, Voyage, NVIDIA and Google.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from infinity_emb.errors import BadInput
from infinity_emb.types import ModelInfo

# Vendors' names for the two sides of a search, in lower case with `_` for every separator.
_QUERY_WORDS = frozenset(
    {"query", "search_query", "retrieval_query", "question_answering", "code_retrieval_query"}
    | {"code_query", "nl2code_query"}
)
_DOCUMENT_WORDS = frozenset(
    {"document", "passage", "corpus", "search_document", "retrieval_document", "retrieval_passage"}
    | {"code_passage", "nl2code_document"}
)
# Vendors' names for neither side; a model without a prompt of that name uses its default.
_OTHER_WORDS = frozenset(
    {"classification", "clustering", "separation", "text_matching", "semantic_similarity"}
    | {"fact_verification", "image", "text", "none"}
)
_PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}

# Limit of a prompt in a request; it is tokenized again with each input.
MAX_PROMPT_CHARS = 100_000


class Prompt(NamedTuple):
    """Text to put before the input, and the task that selects a router's route."""

    text: str
    task: str | None


def choose_prompt(
    info: ModelInfo,
    *,
    prompt: str | None = None,
    prompt_name: str | None = None,
    input_type: str | None = None,
) -> Prompt:
    """Choose the prompt of a request.

    prompt: the text itself; takes precedence, and "" means no prompt.
    prompt_name: one of the model's prompts. If neither is given, the model's first prompt for the task is
        used, else its default prompt.
    input_type: query or document, in any vendor's terms, or one of the model's tasks or prompts.
    Raises BadInput for an unknown name.
    """
    task, names = _read_input_type(info, input_type)
    if prompt is not None:
        return Prompt(prompt, task)
    if prompt_name is not None:
        if prompt_name not in info.prompts:
            raise BadInput(
                f"prompt_name={prompt_name!r} is not one of this model's prompts:"
                f" {_format_names(info.prompts)}; send the text itself as `prompt`"
            )
        return Prompt(info.prompts[prompt_name], task)
    name = next((name for name in names if name in info.prompts), info.default_prompt_name)
    return Prompt(info.prompts.get(name or "", ""), task)


def _read_input_type(info: ModelInfo, input_type: str | None) -> tuple[str | None, tuple[str, ...]]:
    """Return the task, and the names of its prompts."""
    if input_type is None:
        return None, ()
    if input_type in info.tasks and input_type not in _PROMPT_NAMES:
        return input_type, (input_type,)
    word = input_type.lower().replace(".", "_").replace("-", "_").replace(" ", "_")
    if word in _QUERY_WORDS or word in _DOCUMENT_WORDS:
        task = "query" if word in _QUERY_WORDS else "document"
        return task, (input_type, *_PROMPT_NAMES[task])
    if input_type in info.prompts or word in _OTHER_WORDS:
        return None, (input_type,)
    raise BadInput(
        f"input_type={input_type!r} is not known; give query or document, or one of this model's tasks"
        f" {_format_names(info.tasks)} and prompts {_format_names(info.prompts)}"
    )


def _format_names(names: Iterable[str]) -> str:
    return str(sorted(names) or "(it has none)")


def check_prompt(prompt: str | None) -> None:
    """Raise BadInput unless the prompt of a request is None or a text within the limit."""
    if prompt is not None and not isinstance(prompt, str):
        raise BadInput(f"prompt is {type(prompt).__name__}, not a text")
    if prompt is not None and len(prompt) > MAX_PROMPT_CHARS:
        raise BadInput(
            f"prompt has {len(prompt)} characters, the limit is {MAX_PROMPT_CHARS}; send a shorter one, or"
            " put what is long into the texts"
        )
