"""What a served model and its reference are asked when they are compared, and how the engine is asked it.

The inputs are texts that come with the package, and images and sounds that are drawn here. Knows nothing of
tolerances or tables; `verification.py` asks and compares.
"""

from __future__ import annotations

import functools
import io
import wave
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infinity_emb.agreement import scattered
from infinity_emb.backends.base import Clip, Pair, Picture, Reference, Rows
from infinity_emb.calibration import calibration_texts
from infinity_emb.embedding import Embeddings, EmbedOptions
from infinity_emb.engine import AsyncEmbeddingEngine
from infinity_emb.primitives import Modality, ModelInfo, ModelKind

NUM_TEXTS = 40
_QUERY = "Which of these texts is about rivers, trains or money?"
_MAX_CUT_TOKENS = 1024  # a text over a higher limit would take minutes on a CPU
_LONG_TEXT_CHARS = 8192
_CHARS_PER_TOKEN = 12  # no tokenizer has longer tokens on average
_IMAGE_SIZES = ((48, 64), (224, 224), (300, 140), (96, 480))  # height, width
_CLIP_SECONDS = (0.5, 1.0, 1.7)
# What the engine ranks by; a model may ask for another similarity, which the reference then follows.
_RANKED_BY = {ModelKind.embedder: "cosine", ModelKind.sparse: "dot"}

Ask = Callable[[Sequence[Any]], Awaitable[list[Rows]]]


@dataclass(frozen=True, slots=True)
class Question:
    """Inputs, how the engine is asked about them, and what the reference answers for each."""

    name: str
    inputs: Sequence[Any]
    ask: Ask
    expected: Callable[[], list[Rows]]
    is_score: bool = False


def questions(engine: AsyncEmbeddingEngine, reference: Reference) -> Iterator[Question]:
    """Everything that the model can do and the reference can do too."""
    able = engine.info.capabilities
    texts = _texts(engine.info.max_tokens)
    if "classify" in able:
        pairs = [Pair(*both) for both in zip(texts, reversed(texts), strict=True)]
        for name, inputs in (("classify", texts), ("classify pairs", pairs)):
            yield _question(name, inputs, _ask_labels(engine), reference.classify, is_score=True)
    if "embed" in able:
        for task in (None, "query", "document"):
            yield _about_texts(engine, reference, texts, task)
    if "rerank" in able and _is_ranked_alike(engine.info):
        refer = functools.partial(_score, reference)
        yield _question("rerank", texts, _ask_scores(engine), refer, is_score=True)
    if "image_embed" in able:
        yield _about_media(engine, reference, [_picture(*size) for size in _IMAGE_SIZES])
    if "audio_embed" in able:
        rate = reference.sampling_rate
        assert rate is not None, "a model that takes sounds has a sampling rate"
        yield _about_media(engine, reference, [_clip(seconds, rate) for seconds in _CLIP_SECONDS])


def left_out(info: ModelInfo, reference: Reference) -> Iterator[str]:
    """What is served and has nothing to be compared with, a sentence each."""
    if len(info.outputs) > 1:
        others = " and ".join(info.outputs[1:])
        yield f"{others} are not compared: {reference.library} does not answer them"
    if "rerank" in info.capabilities and not _is_ranked_alike(info):
        ranked_by = _RANKED_BY[info.kind]
        yield f"rerank is not compared: it is by {ranked_by}, and the model asks for {info.similarity}"


def _is_ranked_alike(info: ModelInfo) -> bool:
    return _RANKED_BY.get(info.kind, info.similarity) == info.similarity


def _question(
    name: str, inputs: Sequence[Any], ask: Ask, refer: Callable[[Any], Rows], *, is_score: bool = False
) -> Question:
    return Question(name, inputs, ask, lambda: [refer(each) for each in inputs], is_score)


def _about_texts(
    engine: AsyncEmbeddingEngine, reference: Reference, texts: list[str], task: str | None
) -> Question:
    async def ask(given: Sequence[str]) -> list[Rows]:
        answer = await engine.encode(list(given), EmbedOptions(input_type=task))
        return _rows_of(answer, engine.info)

    name = "embed" if task is None else f"embed as {task}"
    return _question(name, texts, ask, lambda text: reference.embed(text, task))


def _about_media(
    engine: AsyncEmbeddingEngine, reference: Reference, media: Sequence[Picture | Clip]
) -> Question:
    """The engine gets files, as clients send them."""
    modality = Modality.image if isinstance(media[0], Picture) else Modality.audio

    async def ask(given: Sequence[bytes]) -> list[Rows]:
        return _rows_of(await engine.encode_media(list(given), modality), engine.info)

    files = [
        _ppm_file(each) if isinstance(each, Picture) else _wav_file(each, reference.sampling_rate or 0)
        for each in media
    ]
    return Question(f"embed {modality}", files, ask, lambda: [reference.embed_media(each) for each in media])


def _rows_of(answer: Embeddings, info: ModelInfo) -> list[Rows]:
    if answer.dense is not None:
        return list(answer.dense)
    if answer.multivector is not None:
        return list(answer.multivector)
    return [scattered(row, info.embedding_dimension) for row in answer.sparse or ()]


def _score(reference: Reference, text: str) -> Rows:
    return reference.score(_QUERY, [text])


def _ask_scores(engine: AsyncEmbeddingEngine) -> Ask:
    async def ask(texts: Sequence[str]) -> list[Rows]:
        ranked, _ = await engine.rerank(query=_QUERY, docs=list(texts))
        scores = np.full((len(texts), 1), np.nan, dtype=np.float32)
        for each in ranked:
            scores[each.index] = each.relevance_score
        return list(scores)

    return ask


def _ask_labels(engine: AsyncEmbeddingEngine) -> Ask:
    async def ask(inputs: Sequence[str | Pair]) -> list[Rows]:
        labelled, _ = await engine.classify(sentences=inputs, raw_scores=True)
        rows = np.full((len(inputs), len(engine.info.labels)), np.nan, dtype=np.float32)
        for row, answer in zip(rows, labelled, strict=True):
            for each in answer:
                row[engine.info.labels.index(each["label"])] = each["score"]
        return list(rows)

    return ask


def _texts(max_tokens: int | None) -> list[str]:
    """Short ones in many languages, awkward ones, and one that is cut unless the limit is high."""
    texts = calibration_texts()
    chosen = texts[:: len(texts) // NUM_TEXTS]
    is_cut = max_tokens is not None and max_tokens <= _MAX_CUT_TOKENS
    num_chars = _CHARS_PER_TOKEN * (max_tokens or 0) if is_cut else _LONG_TEXT_CHARS
    return [*chosen, " ".join(texts)[:num_chars], "a", "  two  spaces ", "\U0001f600 emoji, tab\tand\nline"]


def _picture(height: int, width: int) -> Picture:
    """Smooth in two colours, noise in the third."""
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(height).integers(0, 256, (height, width))
    colours = np.stack([rows * 255 // height, columns * 255 // width, noise], axis=2)
    return Picture(colours.astype(np.uint8))  # (height, width, 3)


def _clip(seconds: float, sampling_rate: int) -> Clip:
    """A tone that rises, in whole steps of 16 bits."""
    times_s = np.arange(int(seconds * sampling_rate)) / sampling_rate
    tone = 0.3 * np.sin(2 * np.pi * (200 + 300 * times_s) * times_s)
    return Clip((np.round(tone * 2**15) / 2**15).astype(np.float32))


def _ppm_file(picture: Picture) -> bytes:
    height, width, _ = picture.pixels.shape
    return b"P6 %d %d 255\n" % (width, height) + picture.pixels.tobytes()


def _wav_file(clip: Clip, sampling_rate: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        file.writeframes((clip.samples * 2**15).astype("<i2").tobytes())
    return buffer.getvalue()
