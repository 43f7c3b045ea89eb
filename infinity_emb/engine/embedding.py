"""Embed texts, images and audio: resolve the options, compute, and shape the vectors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from infinity_emb.engine.calibration import Calibrator
from infinity_emb.engine.checks import check_capability, check_texts, list_values
from infinity_emb.engine.embedding_options import NEEDS_RANGES, OptionResolver
from infinity_emb.engine.gate import RequestGate
from infinity_emb.engine.host import OpenModel
from infinity_emb.engine.passages import join_passages, locate_passages, require_mean_pooling, split_joined
from infinity_emb.engine.results import DEFAULT_OPTIONS, Embeddings, EmbedOptions
from infinity_emb.engine.runner import INPUTS_PER_CHUNK
from infinity_emb.engine.slot import ModelSlot
from infinity_emb.engine.token_ids import TokenIdService
from infinity_emb.errors import BadInput
from infinity_emb.items import (
    Float32Array,
    InputOptions,
    LateChunkingInput,
    Outputs,
    Piece,
    RequestInput,
    TokenIdsInput,
    count_request_chars,
    iterate_chunks,
    number_inputs,
)
from infinity_emb.postprocessing import average_pieces, normalize, quantize_vectors, truncate_dimensions
from infinity_emb.preprocessing.chunking import check_num_pieces
from infinity_emb.preprocessing.media.reader import MediaReader
from infinity_emb.scheduling.fair_threads import MAX_SHORT_CHARS, FairThreads
from infinity_emb.types import EmbeddingDtype, Modality


class EmbeddingService:
    """Compute embeddings with one model."""

    def __init__(
        self,
        slot: ModelSlot,
        gate: RequestGate,
        *,
        resolver: OptionResolver,
        media: MediaReader,
        token_ids: TokenIdService,
        calibrator: Calibrator,
    ) -> None:
        self._slot = slot
        self._gate = gate
        self._resolver = resolver
        self._media = media
        self._token_ids = token_ids
        self._calibrator = calibrator

    async def start(self) -> None:
        """Calibrate, where vectors are int8 or uint8 by default."""
        if self._resolver.default_dtype in NEEDS_RANGES and "dense" in self._slot.info.outputs:
            await self._calibrator.prepare(self._slot, self._gate)

    async def encode(
        self, sentences: Iterable[str | TokenIdsInput], options: EmbedOptions = DEFAULT_OPTIONS
    ) -> Embeddings:
        """Compute the outputs that the options ask for, all of a text in one forward pass.

        sentences: texts, or token ids where the model is served with --token-ids.
        Raises as `AsyncEmbeddingEngine.embed` does.
        """
        texts = self._list_texts(sentences)
        input_options = self._resolver.resolve(options)
        num_chars = count_request_chars(texts, input_options.prompt)
        async with self._gate.request(len(texts), num_chars) as open_model:
            inputs = await self._token_ids.read(texts, open_model, options.token_ids)
            if options.chunking:
                return await self._encode_chunks(_require_texts(inputs), input_options, options, open_model)
            outputs = await open_model.runner.run(number_inputs(inputs), input_options)
            return await self._shape(outputs, options, open_model)

    async def encode_passages(
        self,
        texts: Iterable[str | TokenIdsInput],
        options: EmbedOptions = DEFAULT_OPTIONS,
        *,
        chunk_size: int | None = None,
    ) -> Embeddings:
        """Embed with late chunking: read the texts as one, and average the token vectors of each.

        chunk_size: split the joined text into chunks of this many tokens and embed those instead.
        Texts are joined with a space unless they end in whitespace; `spans` are of the joined text.
        Raises as `AsyncEmbeddingEngine.embed` does, and BadInput for a model without mean pooling.
        Source: Günther et al. 2024, https://arxiv.org/abs/2409.04701
        """
        texts = self._list_texts(texts)
        input_options = replace(self._resolver.resolve(options), truncation="model", outputs=("chunks",))
        num_chars = len(input_options.prompt) + count_request_chars(texts)
        async with self._gate.request(len(texts), num_chars) as open_model:
            split = require_mean_pooling(self._slot.name, open_model.model)
            passages = join_passages(
                _require_texts(await self._token_ids.read(texts, open_model, options.token_ids))
            )
            if chunk_size is not None:
                joined, limit = "".join(passages), input_options.limit(self._slot.info.max_tokens)
                passages = await open_model.threads.run(
                    lambda: split_joined(joined, split, chunk_size=chunk_size, max_tokens=limit),
                    num_chars=len(joined),
                )
            with self._gate.grow(len(texts), max(len(texts), len(passages))):
                outputs = await open_model.runner.run(
                    [RequestInput(LateChunkingInput(tuple(passages)), 0)], input_options
                )
            outputs = Outputs({"dense": outputs.by_name["chunks"][0]}, outputs.num_tokens)
            embeddings = await self._shape(outputs, options, open_model)
        return replace(embeddings, spans=locate_passages(passages))

    async def encode_media(
        self, sources: Iterable[Any], modality: Modality, options: EmbedOptions = DEFAULT_OPTIONS
    ) -> Embeddings:
        """Compute the outputs that the options ask for; truncation and chunking have no effect on media.

        Raises as `AsyncEmbeddingEngine.image_embed` and `audio_embed` do.
        """
        is_image = modality is Modality.image
        check_capability(self._slot, "image_embed" if is_image else "audio_embed")
        name = "images" if is_image else "audios"
        media = list(list_values(sources, name=name, what="files, URLs or objects"))
        if not media:
            raise BadInput(f"{name} is empty; give at least one")
        input_options, options = self._resolver.resolve_media(options, modality)
        async with self._gate.request(len(media)) as open_model:
            read: Any = self._media.images if is_image else self._media.clips
            async with read(media, open_model.media) as inputs:
                outputs = await open_model.runner.run(number_inputs(inputs), input_options)
            return await self._shape(outputs, options, open_model)

    async def quantize(
        self, vectors: Float32Array, dtype: EmbeddingDtype, *, is_normalized: bool = False
    ) -> npt.NDArray[Any]:
        """Convert dense vectors of texts to another dtype, see `quantize_vectors`.

        vectors: (N, D) float32 from `encode`, so that one forward pass serves several dtypes.
        is_normalized: they were requested with `normalize`.
        Needs no room in the queue. Raises what computing the calibration texts raises.
        """
        if dtype in NEEDS_RANGES:
            await self._calibrator.prepare(self._slot, self._gate)
        return self._quantize(vectors, dtype, is_normalized=is_normalized)

    def _quantize(
        self, vectors: Float32Array, dtype: EmbeddingDtype, *, is_normalized: bool
    ) -> npt.NDArray[Any]:
        ranges = None
        if dtype in NEEDS_RANGES:
            ranges = self._calibrator.ranges(vectors.shape[1], is_normalized=is_normalized)
        return quantize_vectors(vectors, dtype, ranges)

    def _list_texts(self, texts: Iterable[str | TokenIdsInput]) -> Sequence[str | TokenIdsInput]:
        is_sparse = "embed_sparse" in self._slot.info.capabilities
        check_capability(self._slot, "embed_sparse" if is_sparse else "embed")
        listed = list_values(texts, name="sentences")
        check_texts(listed, allows_token_ids=True)
        return listed

    async def _encode_chunks(
        self, texts: list[str], input_options: InputOptions, options: EmbedOptions, open_model: OpenModel
    ) -> Embeddings:
        """Split texts that are over the limit, and average the vectors of their chunks."""
        split, limit = open_model.model.split, input_options.limit(self._slot.info.max_tokens)
        if split is None or limit is None:
            outputs = await open_model.runner.run(number_inputs(texts), input_options)
            return await self._shape(outputs, options, open_model)
        prompt = input_options.prompt
        chunks_by_text = await _split_texts(
            texts, lambda text: split(text, prompt=prompt, max_tokens=limit), len(prompt), open_model.threads
        )
        inputs = [
            RequestInput(text[chunk.start : chunk.end] if len(chunks) > 1 else text, position)
            for position, (text, chunks) in enumerate(zip(texts, chunks_by_text, strict=True))
            for chunk in chunks
        ]
        num_chars = count_request_chars([item.value for item in inputs], prompt)
        with self._gate.grow(len(texts), len(inputs), num_chars):
            outputs = await open_model.runner.run(inputs, input_options)
        vectors = average_pieces(
            outputs.by_name["dense"],
            [len(chunks) for chunks in chunks_by_text],
            [max(1, chunk.num_tokens) for chunks in chunks_by_text for chunk in chunks],
        )
        return await self._shape(Outputs({"dense": vectors}, outputs.num_tokens), options, open_model)

    async def _shape(self, outputs: Outputs, options: EmbedOptions, open_model: OpenModel) -> Embeddings:
        """Cut vectors to the dimensions and convert them to the dtype that the options ask for."""
        dtype = self._resolver.choose_dtype(options)
        if dtype in NEEDS_RANGES and "dense" in outputs.by_name:
            await self._calibrator.prepare(self._slot, self._gate, open_model)
        return await open_model.threads.convert(
            lambda: self._convert(outputs, options, dtype), num_bytes=outputs.count_bytes()
        )

    def _convert(self, outputs: Outputs, options: EmbedOptions, dtype: EmbeddingDtype) -> Embeddings:
        by_name = outputs.by_name
        is_normalized = self._resolver.should_normalize(options)
        dense = multivector = None
        if "dense" in by_name:
            vectors = _scale(by_name["dense"], options.dimensions, is_normalized=is_normalized)
            dense = list(self._quantize(vectors, dtype, is_normalized=is_normalized))
        if "multivector" in by_name:
            multivector = [
                quantize_vectors(_scale(vectors, options.dimensions, is_normalized=is_normalized), dtype)
                for vectors in by_name["multivector"]
            ]
        return Embeddings(
            num_tokens=sum(outputs.num_tokens.tolist()),
            dense=dense,
            sparse=by_name.get("sparse"),
            multivector=multivector,
            tokens=by_name.get("tokens"),
        )


def _scale(vectors: Float32Array, dimensions: int | None, *, is_normalized: bool) -> Float32Array:
    """Cut (N, D) vectors to the dimensions, and scale them to length 1 if they are to be normalized."""
    cut = truncate_dimensions(vectors, dimensions)
    return normalize(cut) if is_normalized else cut


def _require_texts(inputs: Sequence[str | TokenIdsInput]) -> list[str]:
    """Raise BadInput for token ids."""
    texts = [value for value in inputs if isinstance(value, str)]
    if len(texts) < len(inputs):
        raise BadInput("token ids cannot be split or joined; send texts for chunking")
    return texts


async def _split_texts(
    texts: list[str], split: Callable[[str], list[Piece]], num_prompt_chars: int, threads: FairThreads
) -> list[list[Piece]]:
    """Return the pieces of each text. Raises BadInput for too many, before the rest is split."""
    pieces: list[list[Piece]] = []
    counts = [num_prompt_chars + len(text) for text in texts]
    for part in iterate_chunks(counts, max_inputs=INPUTS_PER_CHUNK, max_chars=MAX_SHORT_CHARS):
        pieces += await threads.run(
            functools.partial(list, map(split, texts[part])),
            num_chars=sum(counts[part]),
            num_inputs=len(texts),
        )
        check_num_pieces(sum(map(len, pieces)), len(texts))
    return pieces
