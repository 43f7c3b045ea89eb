"""TEI's routes about tokens: `/tokenize`, `/decode` and `/embed_all`.

Source: https://huggingface.github.io/text-embeddings-inference/
"""

from __future__ import annotations

import asyncio

import numpy as np
from starlette.responses import Response

from infinity_emb.engine.results import EmbedOptions
from infinity_emb.engine.tokens import Tokenized
from infinity_emb.server.dialects.tei.errors import ERRORS
from infinity_emb.server.dialects.tei.schemas import read_truncation
from infinity_emb.server.dialects.tei.timing_headers import Stopwatch
from infinity_emb.server.dialects.tei.token_schemas import (
    TEI_DECODE_EXAMPLES,
    TEI_EMBED_ALL_EXAMPLES,
    TEI_TOKENIZE_EXAMPLES,
    TeiDecodeRequest,
    TeiEmbedAllRequest,
    TeiTokenizeRequest,
    TeiTokens,
    TeiTokenVectors,
)
from infinity_emb.server.requests.call import Call
from infinity_emb.server.requests.fields import check_num_items
from infinity_emb.server.responses.json_vectors import json_response, write_numbers
from infinity_emb.server.responses.sliced import JsonList
from infinity_emb.server.routing import Endpoint, Form
from infinity_emb.types import TokenIdPolicy

# A response of `/embed_all` is larger than one of `/embed` by a factor of the number of tokens per text.
MAX_EMBED_ALL = 128


async def tei_embed_all(body: TeiEmbedAllRequest, call: Call) -> Response:
    """Embed every token of texts.

    Returns the last hidden state of each token, special tokens included, neither pooled nor projected nor
    normalized.
    """
    watch = Stopwatch()
    check_num_items(body.inputs, limit=MAX_EMBED_ALL, name="inputs")
    engine, input_type = call.resolve(body, "embed", body.inputs)
    options = EmbedOptions(
        prompt_name=body.prompt_name,
        input_type=input_type,
        truncation=read_truncation(body),
        outputs=("tokens",),
        token_ids=TokenIdPolicy.model,
    )
    result = await watch.time(engine.embedder.encode(body.inputs, options))
    matrices = result.get("tokens")
    num_values = sum(matrix.size for matrix in matrices)
    content = JsonList(lambda index: write_numbers(matrices[index]), len(matrices), num_values)
    return watch.stamp(json_response(content), engine, body.inputs, num_tokens=result.num_tokens)


async def tei_tokenize(body: TeiTokenizeRequest, call: Call) -> Response:
    """Tokenize texts.

    Returns the tokens of each text without truncation, and their byte ranges.
    """
    engine, _ = call.resolve(body, "embed", body.inputs)
    tokenized = await engine.tokenizer.tokenize(
        body.inputs, add_special_tokens=body.add_special_tokens is not False, prompt_name=body.prompt_name
    )
    # On a thread: a long text has many tokens.
    texts = await asyncio.to_thread(lambda: [_describe(text) for text in tokenized])
    return json_response(JsonList(texts.__getitem__, len(texts), sum(map(len, texts))))


async def tei_decode(body: TeiDecodeRequest, call: Call) -> Response:
    """Decode token ids.

    Returns the text of each list of token ids.
    """
    engine, _ = call.resolve(body, "embed", body.ids)
    skip_special_tokens = body.skip_special_tokens is not False
    return json_response(await engine.tokenizer.decode(body.ids, skip_special_tokens=skip_special_tokens))


def _describe(tokenized: Tokenized) -> list[dict[str, object]]:
    """Describe the tokens of one text; the dialect counts positions in bytes of UTF-8."""
    code_points = np.frombuffer(tokenized.text.encode("utf-32-le"), dtype=np.uint32)  # (n,)
    sizes = 1 + (code_points >= 0x80) + (code_points >= 0x800) + (code_points >= 0x10000)
    starts = [0, *np.cumsum(sizes).tolist()]  # of each character, and the end of the text
    return [
        {
            "id": token.id,
            "text": token.text,
            "special": token.is_special,
            "start": None if token.span is None else starts[token.span[0]],
            "stop": None if token.span is None else starts[token.span[1]],
        }
        for token in tokenized.tokens
    ]


ENDPOINTS = [
    Endpoint(path, [Form(handler, schema, response, examples, errors=ERRORS)], is_at_v1=False)
    for path, handler, schema, response, examples in (
        ("/embed_all", tei_embed_all, TeiEmbedAllRequest, TeiTokenVectors, TEI_EMBED_ALL_EXAMPLES),
        ("/tokenize", tei_tokenize, TeiTokenizeRequest, TeiTokens, TEI_TOKENIZE_EXAMPLES),
        ("/decode", tei_decode, TeiDecodeRequest, list[str], TEI_DECODE_EXAMPLES),
    )
]
