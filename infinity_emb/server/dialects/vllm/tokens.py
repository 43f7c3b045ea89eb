"""vLLM's `/tokenize` and `/detokenize`, and its `/version`.

Source: `vllm/entrypoints/serve/tokenize` of vLLM 0.33.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, Field
from starlette.responses import Response

from infinity_emb._version import __version__
from infinity_emb.server.requests.call import Call
from infinity_emb.server.responses.error_docs import NOT_READY, Errors
from infinity_emb.server.responses.json_vectors import json_response
from infinity_emb.server.responses.sliced import JsonList
from infinity_emb.server.routing import Endpoint, Form
from infinity_emb.server.schemas.common import TaskRequest


class VllmTokenizeRequest(TaskRequest):
    """A text to tokenize."""

    input_field: ClassVar[str] = "prompt"

    prompt: str = Field(description="The text.")
    add_special_tokens: bool | None = Field(
        None, description="Add the model's special tokens; true by default."
    )
    return_token_strs: bool | None = Field(None, description="Also return the text of each token.")


class VllmDetokenizeRequest(TaskRequest):
    """Token ids to decode."""

    input_field: ClassVar[str] = "tokens"

    tokens: list[int] = Field(description="Ids of the model's vocabulary.")


class VllmTokens(BaseModel):
    """The tokens of a text."""

    count: int = Field(description="Number of tokens.")
    max_model_len: int | None = Field(description="Maximum number of tokens per text.")
    tokens: list[int] = Field(description="Ids of the tokens.")
    token_strs: list[str] | None = Field(description="Texts of the tokens, with `return_token_strs`.")


class VllmText(BaseModel):
    """The text of token ids."""

    prompt: str = Field(description="The text.")


class VllmVersion(BaseModel):
    """The version of this server."""

    version: str = Field(description="The version.")


TOKENIZE_EXAMPLES: dict[str, Any] = {
    "vllm": {"summary": "vLLM: the ids of one text", "value": {"prompt": "Munich is in Germany."}}
}
DETOKENIZE_EXAMPLES: dict[str, Any] = {"ids": {"summary": "A text", "value": {"tokens": [97, 98]}}}


async def vllm_tokenize(body: VllmTokenizeRequest, call: Call) -> Response:
    """Tokenize a text without truncation."""
    engine, _ = call.resolve(body, "embed", [body.prompt])
    [tokenized] = await engine.tokenizer.tokenize(
        [body.prompt], add_special_tokens=body.add_special_tokens is not False
    )
    tokens = tokenized.tokens
    return json_response(
        {
            "count": len(tokens),
            "max_model_len": engine.info.max_tokens,
            "tokens": JsonList(lambda index: tokens[index].id, len(tokens), len(tokens)),
            "token_strs": (
                JsonList(lambda index: tokens[index].text, len(tokens), len(tokens))
                if body.return_token_strs
                else None
            ),
        }
    )


async def vllm_detokenize(body: VllmDetokenizeRequest, call: Call) -> Response:
    """Decode token ids."""
    engine, _ = call.resolve(body, "embed", [body.tokens])
    [text] = await engine.tokenizer.decode([body.tokens], skip_special_tokens=False)
    return json_response({"prompt": text})


async def vllm_version(call: Call) -> Response:
    """Return the version of this server."""
    return json_response({"version": __version__})


ENDPOINTS = [
    Endpoint(
        "/detokenize",
        [Form(vllm_detokenize, VllmDetokenizeRequest, VllmText, DETOKENIZE_EXAMPLES)],
        is_at_v1=False,
    ),
    Endpoint(
        "/version",
        [Form(vllm_version, None, VllmVersion, errors=Errors({503: NOT_READY}))],
        method="GET",
        is_at_v1=False,
    ),
]
# Path of an endpoint → more forms of it.
FORMS = {
    "/tokenize": [
        Form(
            vllm_tokenize,
            VllmTokenizeRequest,
            VllmTokens,
            TOKENIZE_EXAMPLES,
            discriminators=frozenset({"prompt", "messages"}),
        )
    ]
}
