"""What one model does with texts, images and audio: vectors. The part of `AsyncEmbeddingEngine` that embeds.

Hop 3 of a request (what is asked for, and whether the model can) and hop 7 (dimensions, number formats);
between them every method is `RunningModel.compute`. Knows nothing of HTTP or of any compute library. Over 300
lines: texts, passages and media share the rules of what may be asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from infinity_emb.backends.base import Ids, InputOptions, Passages, Rows, Split
from infinity_emb.calibrator import Calibrator
from infinity_emb.embedding import Embeddings, EmbedOptions, Span
from infinity_emb.errors import BadInput, InputTooLong, ModelNotDeployedError
from infinity_emb.media_inputs import MediaReader
from infinity_emb.one_model import OneModel, check_texts
from infinity_emb.pieces import average_pieces, check_num_pieces, split_texts
from infinity_emb.postprocess import check_dimensions, quantize_rows, shorten_rows
from infinity_emb.primitives import EmbeddingDtype, Modality, OutputName
from infinity_emb.prompts import Prompt, check_prompt, choose_prompt
from infinity_emb.token_budget import token_budget
from infinity_emb.token_ids import TokenIdReader

NEEDS_RANGES = (EmbeddingDtype.int8, EmbeddingDtype.uint8)
_NO_OPTIONS = EmbedOptions()


class EmbeddingTasks(OneModel):
    """`_media` and `_calibrator` are of the event loop that the model runs in."""

    _embedding_dtype: EmbeddingDtype  # where a request asks for no other
    _media: MediaReader
    _calibrator: Calibrator
    _token_ids: TokenIdReader

    async def embed(
        self,
        sentences: list[str],
        matryoshka_dim: int | None = None,
        *,
        truncate: bool = True,
        prompt: str | None = None,
        prompt_name: str | None = None,
        input_type: str | None = None,
    ) -> tuple[list[npt.NDArray[Any]], int]:
        """One vector per text, equal to `SentenceTransformer.encode`.

        matryoshka_dim: keep that many values of each vector, and scale it back to length 1.
        truncate: cut a text that is too long; otherwise it is refused.
        prompt, prompt_name, input_type: as `EmbedOptions` has them.
        Returns one (D,) array per text in the number format that the model is served with, in order, and the
        number of tokens that were embedded. Late-interaction models answer (n, D) arrays.
        Raises BadInput, InputTooLong, MatryoshkaDimError, Overloaded, BackendFailed, EngineNotReady.
        """
        self._running.check_can("embed")
        answer = await self.encode(
            sentences,
            EmbedOptions(
                dimensions=matryoshka_dim,
                truncation="model" if truncate else "off",
                prompt=prompt,
                prompt_name=prompt_name,
                input_type=input_type,
                outputs=self._arrays_output(),
            ),
        )
        return _vectors_of(answer), answer.num_tokens

    async def encode(self, sentences: Sequence[str | Ids], options: EmbedOptions = _NO_OPTIONS) -> Embeddings:
        """What `options` ask for of each text; several outputs of one text come from one forward pass.

        A text may be given as `Ids`, where the model is served with token ids.
        Raises as `embed` does.
        """
        self._check_texts(sentences)
        how = self._how(options)
        async with self._running.admitted(len(sentences)):
            inputs = await self._read_ids(sentences)
            if options.chunking:
                return await self._encode_pieces(_texts_alone(inputs), how, options)
            computed = await self._running.compute(inputs, how)
            return await self._finish(computed.columns, int(computed.num_tokens.sum()), options)

    async def encode_passages(
        self,
        texts: Sequence[str | Ids],
        options: EmbedOptions = _NO_OPTIONS,
        *,
        chunk_size: int | None = None,
    ) -> Embeddings:
        """Late chunking: all texts are read as one, and each has the mean of its own tokens as its vector.

        chunk_size: cut the joined text into chunks of so many tokens instead, and answer one vector for each.
        Texts are joined with a space where they do not end in one; `spans` are of the joined text.
        Raises as `embed` does, and BadInput for a model that does not pool by the mean.
        Source: Günther et al. 2024, https://arxiv.org/abs/2409.04701
        """
        self._check_texts(texts)
        how = replace(self._how(options), truncation="model", outputs=("chunks",))
        async with self._running.admitted(len(texts)):
            split = self._check_averages()
            passages = _joined(_texts_alone(await self._read_ids(texts)))
            if chunk_size is not None:
                whole, limit = "".join(passages), how.limit(self.info.max_tokens)
                passages = await self._running.run_on_thread(lambda: _chunks(whole, split, chunk_size, limit))
            with self._running.widened(len(texts), max(len(texts), len(passages))):
                computed = await self._running.compute([Passages(tuple(passages))], how)
            dense = {"dense": computed.columns["chunks"][0]}
            answer = await self._finish(dense, int(computed.num_tokens.sum()), options)
        ends = np.cumsum([len(passage) for passage in passages])
        spans = [Span(int(end) - len(each), int(end)) for end, each in zip(ends, passages, strict=True)]
        return replace(answer, spans=spans)

    async def image_embed(
        self, *, images: list[Any], matryoshka_dim: int | None = None
    ) -> tuple[list[npt.NDArray[Any]], int]:
        """One vector per image: a URL, a data URI, the bytes of a file, or a PIL image.

        Raises as `embed` does, and ImageCorruption.
        """
        answer = await self.encode_media(images, Modality.image, EmbedOptions(dimensions=matryoshka_dim))
        return _vectors_of(answer), answer.num_tokens

    async def audio_embed(
        self, *, audios: list[Any], matryoshka_dim: int | None = None
    ) -> tuple[list[npt.NDArray[Any]], int]:
        """One vector per clip: a URL, a data URI, or the bytes of a file, of any rate and number of channels.

        Raises as `embed` does, and AudioCorruption.
        """
        answer = await self.encode_media(audios, Modality.audio, EmbedOptions(dimensions=matryoshka_dim))
        return _vectors_of(answer), answer.num_tokens

    async def encode_media(
        self, sources: list[Any], modality: Modality, options: EmbedOptions = _NO_OPTIONS
    ) -> Embeddings:
        """What `options` ask for of each image or clip; truncation and chunking say nothing about them.

        Raises as `embed` does, ImageCorruption and AudioCorruption.
        """
        is_image = modality is Modality.image
        self._running.check_can("image_embed" if is_image else "audio_embed")
        if not isinstance(sources, list) or not sources:
            name = "images" if is_image else "audios"
            raise BadInput(f"{name} must be a list of one or more, not {sources!r:.80}")
        if "tokens" in (options.outputs or ()):
            raise ModelNotDeployedError(f"{modality} inputs have no tokens to be answered; ask for vectors")
        if self._dtype(options) in NEEDS_RANGES:
            raise BadInput(
                f"vectors of {modality} inputs are not available as {self._dtype(options)}, whose ranges come"
                " from texts; ask for float32, float16, binary or ubinary"
            )
        options = replace(options, outputs=options.outputs or self._arrays_output(), chunking=False)
        how = self._how(options)
        how = replace(how, task=how.task or "document", truncation="model")
        async with self._running.admitted(len(sources)):
            read: Any = self._media.images if is_image else self._media.clips
            async with read(sources, self._running.run_on_thread) as inputs:
                computed = await self._running.compute(inputs, how)
            return await self._finish(computed.columns, int(computed.num_tokens.sum()), options)

    async def quantize(self, rows: Rows, dtype: EmbeddingDtype) -> npt.NDArray[Any]:
        """Dense vectors of texts in another number format, as `quantize_rows` describes it.

        rows: (N, D) float32, which `encode` answered and maybe shortened; so one pass serves many formats.
        Raises what `Calibrator.ranges` raises. It asks for no room: what is computed is not thrown away.
        """
        ranges = await self._calibrator.ranges(rows.shape[1]) if dtype in NEEDS_RANGES else None
        return quantize_rows(rows, dtype, ranges)

    def _how(self, options: EmbedOptions) -> InputOptions:
        """Raises BadInput for what the model cannot answer, and for a prompt that it has not."""
        outputs = self._check_outputs(options)
        prompt = self._prompt_for(options)
        return InputOptions(
            prompt=prompt.text,
            task=prompt.task,
            truncation=options.truncation,
            max_tokens=options.max_tokens,
            outputs=outputs,
        )

    def _prompt_for(self, options: EmbedOptions) -> Prompt:
        check_prompt(options.prompt)
        return choose_prompt(
            self.info, prompt=options.prompt, prompt_name=options.prompt_name, input_type=options.input_type
        )

    async def _read_ids(self, inputs: Sequence[str | Ids]) -> Sequence[str | Ids]:
        """Token ids as the model takes them, which may be as texts."""
        if not any(isinstance(each, Ids) for each in inputs):
            return inputs
        vocabulary = self._running.model.vocabulary
        return await self._running.run_on_thread(lambda: self._token_ids.read(inputs, vocabulary))

    def _check_texts(self, texts: Sequence[str | Ids]) -> None:
        self._running.check_can("embed_sparse" if "embed_sparse" in self.info.capabilities else "embed")
        check_texts(texts, or_ids=True)

    def _check_averages(self) -> Split:
        """What cuts texts. Raises ModelNotDeployedError for a model that does not pool by the mean."""
        split = self._running.model.split
        if self.info.pooling != "mean" or split is None or self.info.outputs[0] != "dense":
            raise ModelNotDeployedError(
                f"late chunking averages token vectors, and model {self._running.name!r}"
                f" pools by {self.info.pooling!r}; embed the texts one by one"
            )
        return split

    def _arrays_output(self) -> tuple[OutputName, ...]:
        return tuple(name for name in self.info.outputs if name != "sparse")[:1] or ("dense",)

    def _check_outputs(self, options: EmbedOptions) -> tuple[OutputName, ...]:
        """What is to be computed. Raises BadInput for what the model cannot answer."""
        outputs = options.outputs or self.info.outputs[:1]
        if options.chunking and outputs != ("dense",):
            raise BadInput("chunking averages dense vectors; leave it out for other outputs")
        if outputs == ("tokens",) and self._running.has_token_rows:
            return outputs
        unknown = [name for name in outputs if name not in self.info.outputs]
        if unknown:
            raise ModelNotDeployedError(
                f"model {self._running.name!r} cannot answer {unknown}; its outputs are"
                f" {list(self.info.outputs)}"
            )
        check_dimensions(options.dimensions, self.info.embedding_dimension)
        if self._dtype(options) in NEEDS_RANGES and "multivector" in outputs:
            raise BadInput(
                f"multi-vector outputs are not available as {self._dtype(options)}; ask for float32, float16,"
                " binary or ubinary"
            )
        return tuple(dict.fromkeys(outputs))

    def _dtype(self, options: EmbedOptions) -> EmbeddingDtype:
        return options.embedding_dtype or self._embedding_dtype

    async def _finish(self, columns: Any, num_tokens: int, options: EmbedOptions) -> Embeddings:
        """Hop 7: fewer dimensions, other number formats."""
        dense: list[npt.NDArray[Any]] | None = None
        multivector: list[npt.NDArray[Any]] | None = None
        dtype = self._dtype(options)
        if "dense" in columns:
            dense = list(await self.quantize(shorten_rows(columns["dense"], options.dimensions), dtype))
        if "multivector" in columns:
            multivector = [
                quantize_rows(shorten_rows(rows, options.dimensions), dtype)
                for rows in columns["multivector"]
            ]
        return Embeddings(
            num_tokens=num_tokens,
            dense=dense,
            sparse=columns.get("sparse"),
            multivector=multivector,
            tokens=columns.get("tokens"),
        )

    async def _embed_for_calibration(self, texts: list[str]) -> Rows:
        prompt = choose_prompt(self.info)
        with token_budget(0):  # it is nobody's request
            computed = await self._running.compute(texts, InputOptions(prompt=prompt.text))
        rows: Rows = computed.columns["dense"]
        return rows

    async def _encode_pieces(
        self, sentences: list[str], how: InputOptions, options: EmbedOptions
    ) -> Embeddings:
        """Each text in pieces that fit, and the average of their vectors."""
        split, limit = self._running.model.split, how.limit(self.info.max_tokens)
        if split is None or limit is None:
            computed = await self._running.compute(sentences, how)
            return await self._finish(computed.columns, int(computed.num_tokens.sum()), options)
        pieces = await self._running.run_on_thread(
            lambda: split_texts(sentences, lambda text: split(text, prompt=how.prompt, max_tokens=limit))
        )
        texts = [
            text[piece.start : piece.end] if len(of_text) > 1 else text
            for text, of_text in zip(sentences, pieces, strict=True)
            for piece in of_text
        ]
        places = [place for place, of_text in enumerate(pieces) for _ in of_text]
        with self._running.widened(len(sentences), len(texts)):
            computed = await self._running.compute(texts, how, places=places)
        rows = average_pieces(
            computed.columns["dense"],
            [len(of_text) for of_text in pieces],
            [max(1, piece.num_tokens) for of_text in pieces for piece in of_text],
        )
        return await self._finish({"dense": rows}, int(computed.num_tokens.sum()), options)


def _vectors_of(answer: Embeddings) -> list[npt.NDArray[Any]]:
    vectors = answer.dense if answer.dense is not None else answer.multivector
    return list(vectors or ())


def _texts_alone(inputs: Sequence[str | Ids]) -> list[str]:
    """Raises BadInput for token ids."""
    texts = [each for each in inputs if isinstance(each, str)]
    if len(texts) < len(inputs):
        raise BadInput("token ids cannot be split or joined; send texts for chunking")
    return texts


def _joined(texts: list[str]) -> list[str]:
    """Each text with a space behind it, unless it ends in one or is the last."""
    return [
        text if position == len(texts) - 1 or text[-1:].isspace() else f"{text} "
        for position, text in enumerate(texts)
    ]


def _chunks(whole: str, split: Split, chunk_size: int, max_tokens: int | None) -> list[str]:
    """The text in chunks of so many tokens; a text that no model reads is refused before it is cut small."""
    if max_tokens is not None:
        fitting = split(whole, prompt="", max_tokens=max_tokens, is_alone=False)
        num_tokens = sum(piece.num_tokens for piece in fitting)
        if num_tokens > max_tokens:
            raise InputTooLong(
                f"has {num_tokens} tokens, the limit is {max_tokens}; late chunking reads all of them at"
                " once, so send a shorter text",
                position=0,
            )
    pieces = split(whole, prompt="", max_tokens=chunk_size, is_alone=False)
    check_num_pieces(len(pieces), 1)
    return [whole[piece.start : piece.end] for piece in pieces]
