"""The routes of Text Embeddings Inference about tokens: `/tokenize`, `/decode` and `/embed_all`.

Knows nothing of tokenizers, nor of how an engine computes or how bytes are made.
Source: https://huggingface.github.io/text-embeddings-inference/
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import numpy as np
from fastapi import Body
from starlette.requests import Request
from starlette.responses import Response

from infinity_emb.embedding import EmbedOptions
from infinity_emb.server.api_route import ApiRoute, Task
from infinity_emb.server.dialects.tei import tei_route, truncation_of
from infinity_emb.server.dialects.tei_timing import Stopwatch
from infinity_emb.server.disconnect import cancel_on_disconnect
from infinity_emb.server.encode import encode_list, json_response
from infinity_emb.server.inputs import check_ids_allowed
from infinity_emb.server.members import check_num_members
from infinity_emb.server.schemas.tei_tokens import (
    TEI_DECODE_EXAMPLES,
    TEI_EMBED_ALL_EXAMPLES,
    TEI_TOKENIZE_EXAMPLES,
    TeiDecodeRequest,
    TeiEmbedAllRequest,
    TeiTokenizeRequest,
    TeiTokens,
    TeiTokenVectors,
)
from infinity_emb.token_tasks import Tokenized

# An answer of `/embed_all` is as many times larger than one of `/embed` as a text has tokens.
MAX_EMBED_ALL = 128


class TeiTokenRoutes(Task):
    """The handlers, over one app's engines."""

    def routes(self) -> list[ApiRoute]:
        """Where the handlers are reached."""
        return [
            tei_route("/embed_all", self.tei_embed_all, TeiTokenVectors),
            tei_route("/tokenize", self.tei_tokenize, TeiTokens),
            tei_route("/decode", self.tei_decode, list[str]),
        ]

    async def tei_embed_all(
        self,
        body: Annotated[TeiEmbedAllRequest, Body(openapi_examples=TEI_EMBED_ALL_EXAMPLES)],
        request: Request,
    ) -> Response:
        """For each text the network's last hidden state of each token, special ones included.

        They are neither pooled nor projected nor scaled.
        """
        watch = Stopwatch()
        self.check_num_inputs(body.inputs, "inputs")
        check_num_members(body.inputs, limit=MAX_EMBED_ALL, name="inputs")
        engine, input_type = self.served.choose(body.model_name, "embed")
        check_ids_allowed(body.inputs, engine.engine_args.token_ids, name="inputs")
        options = EmbedOptions(
            prompt_name=body.prompt_name,
            input_type=input_type,
            truncation=truncation_of(body),
            outputs=("tokens",),
        )
        answer = await watch.time(cancel_on_disconnect(request, engine.encode(body.inputs, options)))
        rows = answer.tokens
        assert rows is not None, "an engine answers what it was asked for"
        num_values = sum(each.size for each in rows)
        content = await encode_list(lambda index: np.ascontiguousarray(rows[index]), len(rows), num_values)
        return watch.stamp(json_response(content), engine, body.inputs, num_tokens=answer.num_tokens)

    async def tei_tokenize(
        self,
        body: Annotated[TeiTokenizeRequest, Body(openapi_examples=TEI_TOKENIZE_EXAMPLES)],
        request: Request,
    ) -> Response:
        """The tokens of each text, none cut off, and the bytes where they stand."""
        self.check_num_inputs(body.inputs, "inputs")
        engine, _ = self.served.choose(body.model_name, "embed")
        tokenizing = engine.tokenize(
            body.inputs, add_special_tokens=body.add_special_tokens is not False, prompt_name=body.prompt_name
        )
        tokenized = await cancel_on_disconnect(request, tokenizing)
        # On a thread: a long text has many tokens.
        members = await asyncio.to_thread(lambda: [_describe(each) for each in tokenized])
        return json_response(await encode_list(members.__getitem__, len(members), sum(map(len, members))))

    async def tei_decode(
        self, body: Annotated[TeiDecodeRequest, Body(openapi_examples=TEI_DECODE_EXAMPLES)], request: Request
    ) -> Response:
        """The text of each list of ids."""
        self.check_num_inputs(body.ids, "ids")
        engine, _ = self.served.choose(body.model_name, "embed")
        decoding = engine.decode(body.ids, skip_special_tokens=body.skip_special_tokens is not False)
        return json_response(await cancel_on_disconnect(request, decoding))


def _describe(tokenized: Tokenized) -> list[dict[str, object]]:
    """Places in bytes of UTF-8, as the dialect counts them."""
    code_points = np.frombuffer(tokenized.text.encode("utf-32-le"), dtype=np.uint32)  # (n,)
    sizes = 1 + (code_points >= 0x80) + (code_points >= 0x800) + (code_points >= 0x10000)
    starts = [0, *np.cumsum(sizes).tolist()]  # of each character, and the end of the last
    return [
        {
            "id": each.id,
            "text": each.text,
            "special": each.is_special,
            "start": None if each.span is None else starts[each.span[0]],
            "stop": None if each.span is None else starts[each.span[1]],
        }
        for each in tokenized.tokens
    ]
