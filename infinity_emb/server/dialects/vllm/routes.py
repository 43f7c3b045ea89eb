"""vLLM's `/score` and `/pooling`, and its form of `/classify`; its `/embeddings` and `/rerank` are ours.

Source: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.responses import Response

from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.results import ClassifyOptions, EmbedOptions, RerankOptions
from infinity_emb.items import TokenIdsInput
from infinity_emb.postprocessing import normalize
from infinity_emb.server.dialects.vllm.schemas import (
    VLLM_CLASSIFY_EXAMPLES,
    VLLM_POOLING_EXAMPLES,
    VLLM_SCORE_EXAMPLES,
    PoolingTask,
    VllmClassifyRequest,
    VllmClassifyResponse,
    VllmPoolingRequest,
    VllmPoolingResponse,
    VllmRequest,
    VllmScoreRequest,
    VllmScoreResponse,
)
from infinity_emb.server.request_errors import body_error
from infinity_emb.server.requests.call import Call
from infinity_emb.server.requests.embedding_options import check_normalize
from infinity_emb.server.requests.fields import choose_truncation
from infinity_emb.server.responses.binary_vectors import ByteFormat
from infinity_emb.server.responses.encoding import Encoding, check_num_described
from infinity_emb.server.responses.json_vectors import (
    base64_writer,
    binary_response,
    task_response,
    write_numbers,
)
from infinity_emb.server.responses.sliced import JsonList
from infinity_emb.server.routes.rerank import score_pairs, split_pairs
from infinity_emb.server.routing import Endpoint, Form
from infinity_emb.types import (
    Capability,
    ClassifyReturnType,
    EmbeddingDtype,
    EmbeddingEncodingFormat,
    ModelKind,
    OutputName,
    TokenIdPolicy,
    Truncation,
)

# (D,) for a text, or (n, D) for its tokens.
Pooled = Sequence[npt.NDArray[Any]]


async def vllm_score(body: VllmScoreRequest, call: Call) -> Response:
    """Score documents against queries.

    Returns the scores in the order of the documents; they are those of `/rerank`.
    """
    engine, _ = call.resolve(body, "rerank", body.documents)
    documents = await _decode(engine, body.documents)
    queries = _broadcast(await _decode(engine, body.queries), documents)
    options = RerankOptions(
        raw_scores=body.use_activation is False,
        max_query_tokens=body.max_tokens_per_query,
        max_document_tokens=body.max_tokens_per_doc,
        prompt=body.instruction,
        truncation=_read_truncation(body),
        max_tokens=body.truncate_prompt_tokens,
    )
    scores, num_tokens = await score_pairs(engine, queries, documents, options)
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
    return _respond(engine, data, num_tokens)


async def vllm_pooling(body: VllmPoolingRequest, call: Call) -> Response:
    """Embed or classify texts.

    Returns a vector per text, a vector per token, or the probabilities of the labels.
    """
    if body.task == "token_classify":
        message = "is not supported; use 'embed', 'token_embed' or 'classify'"
        raise body_error("not_able", message, loc=["task"], given=body.task)
    encoding = Encoding(
        format=body.encoding_format or EmbeddingEncodingFormat.float,
        byte_format=ByteFormat(embed_dtype=body.embed_dtype, endianness=body.endianness or "little"),
    )
    check_num_described(body.input, encoding.format)
    engine, input_type = call.resolve(body, _choose_capability(body), body.input)
    arrays, num_tokens = await _pool(engine, body, input_type)
    if encoding.is_binary:
        name = engine.engine_args.served_model_name
        return binary_response(arrays, encoding, model=name, num_tokens=num_tokens)
    is_base64 = encoding.format is EmbeddingEncodingFormat.base64
    write = base64_writer(encoding.byte_format) if is_base64 else write_numbers
    data = JsonList(
        lambda index: {"index": index, "object": "pooling", "data": write(arrays[index])},
        len(arrays),
        sum(array.size for array in arrays),
    )
    return _respond(engine, data, num_tokens)


async def vllm_classify(body: VllmClassifyRequest, call: Call) -> Response:
    """Return the most likely label of each text, and the probabilities in the order of the labels."""
    engine, _ = call.resolve(body, "classify", body.input)
    scores, num_tokens = await _classify(engine, body)
    labels = engine.info.labels

    def describe(index: int) -> object:
        row = scores[index]
        return {"index": index, "label": labels[row.argmax()], "probs": row, "num_classes": len(labels)}

    data = JsonList(describe, len(scores), len(scores) * len(labels))
    return _respond(engine, data, num_tokens)


def _choose_capability(body: VllmPoolingRequest) -> Capability:
    return "classify" if body.task == "classify" else "embed"


def _respond(engine: AsyncEmbeddingEngine, data: object, num_tokens: int) -> Response:
    name = engine.engine_args.served_model_name
    return task_response("list", {"data": data}, model=name, num_tokens=num_tokens)


def _read_truncation(body: VllmRequest) -> Truncation:
    return choose_truncation(body.truncate, truncation_side=body.truncation_side)


async def _decode(engine: AsyncEmbeddingEngine, inputs: Sequence[str | TokenIdsInput]) -> list[str]:
    """Replace token ids by their text, which is tokenized together with the query or prompt."""
    ids = [value.ids if isinstance(value, TokenIdsInput) else () for value in inputs]
    decoded = await engine.tokenizer.decode(ids) if any(ids) else []
    return [
        decoded[index] if isinstance(value, TokenIdsInput) else value for index, value in enumerate(inputs)
    ]


def _broadcast(queries: list[str], documents: list[str]) -> list[str]:
    """Return one query per document. Raises a 422 unless there is one query, or one for each document."""
    if len(queries) not in (1, len(documents)):
        message = f"has {len(queries)} texts for {len(documents)} documents; send one, or one for each"
        raise body_error("wrong_number", message, loc=["queries"], given=queries)
    return queries if len(queries) == len(documents) else queries * len(documents)


async def _classify(
    engine: AsyncEmbeddingEngine, body: VllmClassifyRequest | VllmPoolingRequest
) -> tuple[Pooled, int]:
    """Return (L,) scores per input in the order of the model's labels, and the number of tokens."""
    options = ClassifyOptions(
        token_ids=TokenIdPolicy.model,
        raw_scores=body.use_activation is False,
        truncation=_read_truncation(body),
        max_tokens=body.truncate_prompt_tokens,
    )
    labelled, num_tokens = await engine.scorer.classify(body.input, options)
    ordered = await asyncio.to_thread(
        lambda: [_order_scores(engine.info.labels, scores) for scores in labelled]
    )
    return ordered, num_tokens


def _order_scores(labels: Sequence[str], scores: Sequence[ClassifyReturnType]) -> npt.NDArray[np.float32]:
    by_label = {score["label"]: score["score"] for score in scores}
    return np.array([by_label[label] for label in labels], dtype=np.float32)


async def _pool(
    engine: AsyncEmbeddingEngine, body: VllmPoolingRequest, input_type: str | None
) -> tuple[Pooled, int]:
    """Compute what the task asks for, by default the main task of the model."""
    kind = engine.info.kind
    if kind is ModelKind.reranker and body.task in (None, "classify"):
        return await _score_inputs(engine, body)
    if body.task == "classify" or (body.task is None and kind is ModelKind.classifier):
        return await _classify(engine, body)
    return await _embed(engine, body, input_type)


async def _score_inputs(engine: AsyncEmbeddingEngine, body: VllmPoolingRequest) -> tuple[Pooled, int]:
    """Return (1,) score of each pair: a reranker is a classifier with one label."""
    options = RerankOptions(
        raw_scores=body.use_activation is False,
        truncation=_read_truncation(body),
        max_tokens=body.truncate_prompt_tokens,
    )
    queries, documents = split_pairs(body.input, name="input")
    scores, num_tokens = await score_pairs(engine, queries, documents, options)
    return [np.array([score], dtype=np.float32) for score in scores], num_tokens


async def _embed(
    engine: AsyncEmbeddingEngine, body: VllmPoolingRequest, input_type: str | None
) -> tuple[Pooled, int]:
    output = _choose_output(body.task, engine.info.outputs)
    if output == "tokens" and body.dimensions is not None:
        message = "is not supported for token vectors; leave it out"
        raise body_error("not_for_tokens", message, loc=["dimensions"], given=body.dimensions)
    options = EmbedOptions(
        input_type=input_type,
        dimensions=body.dimensions,
        embedding_dtype=EmbeddingDtype.float32,
        normalize=body.use_activation,
        token_ids=TokenIdPolicy.model,
        outputs=(output,),
        truncation=_read_truncation(body),
        max_tokens=body.truncate_prompt_tokens,
    )
    if output == "dense":
        check_normalize(engine, options)
    result = await engine.embedder.encode(_require_single_texts(body), options)
    arrays = result.get(output)
    if output == "tokens" and body.use_activation is not False:
        arrays = await asyncio.to_thread(lambda: list(map(normalize, arrays)))
    return arrays, result.num_tokens


def _require_single_texts(body: VllmPoolingRequest) -> list[str | TokenIdsInput]:
    """Raise a 422 for pairs of texts, which have no vectors."""
    texts = [value for value in body.input if isinstance(value, (str, TokenIdsInput))]
    if len(texts) < len(body.input):
        raise body_error("not_for_pairs", "must be texts for this task, not pairs", loc=["input"])
    return texts


def _choose_output(task: PoolingTask | None, outputs: Sequence[OutputName]) -> OutputName:
    """Choose trained token vectors if the model has them, else the last hidden state."""
    if task == "embed" or (task is None and outputs[:1] != ("multivector",)):
        return "dense"
    return "multivector" if "multivector" in outputs else "tokens"


ENDPOINTS = [
    Endpoint("/score", [Form(vllm_score, VllmScoreRequest, VllmScoreResponse, VLLM_SCORE_EXAMPLES)]),
    Endpoint(
        "/pooling",
        [Form(vllm_pooling, VllmPoolingRequest, VllmPoolingResponse, VLLM_POOLING_EXAMPLES)],
        binary_types=["application/octet-stream"],
    ),
]

# Path of an endpoint → more forms of it.
FORMS = {
    "/classify": [
        Form(
            vllm_classify,
            VllmClassifyRequest,
            VllmClassifyResponse,
            VLLM_CLASSIFY_EXAMPLES,
            discriminators=frozenset({"use_activation", "activation"}),
        )
    ]
}
