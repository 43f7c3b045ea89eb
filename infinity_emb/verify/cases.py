"""The cases that `verify` compares: inputs, how the engine computes them, and the reference's outputs.

Texts come with the package; images and audio are generated.
"""

from __future__ import annotations

import functools
import io
import wave
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infinity_emb.backends.accuracy import to_dense
from infinity_emb.backends.base import Reference
from infinity_emb.backends.sample_texts import load_sample_texts
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.engine.results import Embeddings, EmbedOptions
from infinity_emb.items import AudioInput, Float32Array, ImageInput, Pair
from infinity_emb.types import Modality, ModelInfo, ModelKind

NUM_TEXTS = 40
_QUERY = "Which of these texts is about rivers, trains or money?"
_MAX_CUT_TOKENS = 1024  # longer texts would take minutes on a CPU
_LONG_TEXT_CHARS = 8192
_CHARS_PER_TOKEN = 12  # no tokenizer has longer tokens on average
_IMAGE_SIZES = ((48, 64), (224, 224), (300, 140), (96, 480))  # height, width
_CLIP_SECONDS = (0.5, 1.0, 1.7)
# The engine's similarity for ranking; the reference uses the one that the model's files name.
_RANKED_BY = {ModelKind.embedder: "cosine", ModelKind.sparse: "dot"}

Compute = Callable[[Sequence[Any]], Awaitable[list[Float32Array]]]


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs, how the engine computes them, and the expected output of each."""

    name: str
    inputs: Sequence[Any]
    compute: Compute
    expected: Callable[[], list[Float32Array]]
    is_score: bool = False


def build_cases(engine: AsyncEmbeddingEngine, reference: Reference) -> Iterator[Case]:
    """Build a case for everything that both the model and the reference can compute."""
    capabilities = engine.info.capabilities
    texts = _choose_texts(engine.info.max_tokens)
    if "classify" in capabilities:
        pairs = [Pair(*both) for both in zip(texts, reversed(texts), strict=True)]
        for name, inputs in (("classify", texts), ("classify pairs", pairs)):
            yield _make_case(name, inputs, _classify(engine), reference.classify, is_score=True)
    if "embed" in capabilities:
        for task in (None, "query", "document"):
            yield _make_text_case(engine, reference, texts, task)
    if "rerank" in capabilities and _has_same_similarity(engine.info):
        reference_output = functools.partial(_score, reference)
        yield _make_case("rerank", texts, _rerank(engine), reference_output, is_score=True)
    if "image_embed" in capabilities:
        yield _make_media_case(engine, reference, [_draw_image(*size) for size in _IMAGE_SIZES])
    if "audio_embed" in capabilities:
        rate = reference.sampling_rate
        assert rate is not None, "audio models have a sampling rate"
        yield _make_media_case(engine, reference, [_make_clip(seconds, rate) for seconds in _CLIP_SECONDS])


def explain_omissions(info: ModelInfo, reference: Reference) -> Iterator[str]:
    """Explain, one sentence each, which outputs the reference cannot compute."""
    if len(info.outputs) > 1:
        others = " and ".join(info.outputs[1:])
        yield f"{others} are not compared: {reference.library} does not compute them"
    if "rerank" in info.capabilities and not _has_same_similarity(info):
        ranked_by = _RANKED_BY[info.kind]
        yield f"rerank is not compared: it uses {ranked_by}, but the model's files name {info.similarity}"


def _has_same_similarity(info: ModelInfo) -> bool:
    return _RANKED_BY.get(info.kind, info.similarity) == info.similarity


def _make_case(
    name: str,
    inputs: Sequence[Any],
    compute: Compute,
    reference_output: Callable[[Any], Float32Array],
    *,
    is_score: bool = False,
) -> Case:
    return Case(name, inputs, compute, lambda: [reference_output(value) for value in inputs], is_score)


def _make_text_case(
    engine: AsyncEmbeddingEngine, reference: Reference, texts: list[str], task: str | None
) -> Case:
    async def compute(given: Sequence[str]) -> list[Float32Array]:
        result = await engine.encode(list(given), EmbedOptions(input_type=task))
        return _get_vectors(result, engine.info)

    name = "embed" if task is None else f"embed as {task}"
    return _make_case(name, texts, compute, lambda text: reference.embed(text, task))


def _make_media_case(
    engine: AsyncEmbeddingEngine, reference: Reference, media: Sequence[ImageInput | AudioInput]
) -> Case:
    """Pass whole files to the engine, as clients do."""
    modality = Modality.image if isinstance(media[0], ImageInput) else Modality.audio

    async def compute(given: Sequence[bytes]) -> list[Float32Array]:
        return _get_vectors(await engine.embedder.encode_media(list(given), modality), engine.info)

    files = [
        _encode_ppm(each) if isinstance(each, ImageInput) else _encode_wav(each, reference.sampling_rate or 0)
        for each in media
    ]
    return Case(f"embed {modality}", files, compute, lambda: [reference.embed_media(each) for each in media])


def _get_vectors(embeddings: Embeddings, info: ModelInfo) -> list[Float32Array]:
    if embeddings.dense is not None:
        return list(embeddings.dense)
    if embeddings.multivector is not None:
        return list(embeddings.multivector)
    return [to_dense(row, info.embedding_dimension) for row in embeddings.sparse or ()]


def _score(reference: Reference, text: str) -> Float32Array:
    return reference.score(_QUERY, [text])


def _rerank(engine: AsyncEmbeddingEngine) -> Compute:
    async def compute(texts: Sequence[str]) -> list[Float32Array]:
        ranked, _ = await engine.rerank(query=_QUERY, docs=list(texts))
        scores = np.full((len(texts), 1), np.nan, dtype=np.float32)
        for result in ranked:
            scores[result.index] = result.relevance_score
        return list(scores)

    return compute


def _classify(engine: AsyncEmbeddingEngine) -> Compute:
    async def compute(inputs: Sequence[str | Pair]) -> list[Float32Array]:
        labelled, _ = await engine.classify(sentences=inputs, raw_scores=True)
        rows = np.full((len(inputs), len(engine.info.labels)), np.nan, dtype=np.float32)
        for row, labels in zip(rows, labelled, strict=True):
            for label in labels:
                row[engine.info.labels.index(label["label"])] = label["score"]
        return list(rows)

    return compute


def _choose_texts(max_tokens: int | None) -> list[str]:
    """Choose short texts in many languages, unusual ones, and one that exceeds a usual limit."""
    texts = load_sample_texts()
    chosen = texts[:: len(texts) // NUM_TEXTS]
    is_cut = max_tokens is not None and max_tokens <= _MAX_CUT_TOKENS
    num_chars = _CHARS_PER_TOKEN * (max_tokens or 0) if is_cut else _LONG_TEXT_CHARS
    return [*chosen, " ".join(texts)[:num_chars], "a", "  two  spaces ", "\U0001f600 emoji, tab\tand\nline"]


def _draw_image(height: int, width: int) -> ImageInput:
    """Draw gradients in two channels and noise in the third."""
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(height).integers(0, 256, (height, width))
    colours = np.stack([rows * 255 // height, columns * 255 // width, noise], axis=2)
    return ImageInput(colours.astype(np.uint8))  # (height, width, 3)


def _make_clip(seconds: float, sampling_rate: int) -> AudioInput:
    """Make a rising tone with samples that are exact in 16 bits."""
    times_s = np.arange(int(seconds * sampling_rate)) / sampling_rate
    tone = 0.3 * np.sin(2 * np.pi * (200 + 300 * times_s) * times_s)
    return AudioInput((np.round(tone * 2**15) / 2**15).astype(np.float32))


def _encode_ppm(picture: ImageInput) -> bytes:
    height, width, _ = picture.pixels.shape
    return b"P6 %d %d 255\n" % (width, height) + picture.pixels.tobytes()


def _encode_wav(clip: AudioInput, sampling_rate: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        file.writeframes((clip.samples * 2**15).astype("<i2").tobytes())
    return buffer.getvalue()
