"""Inputs reach sentence-transformers in a form that names their modality."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers.base.modules import Transformer

from infinity_emb.backends.torch.st_preprocessing import get_modality, preprocess
from infinity_emb.items import AudioInput, ImageInput, Input, LateChunkingInput, Pair, TokenIdsInput
from infinity_emb.types import Modality

IMAGE = ImageInput(np.zeros((2, 3, 3), dtype=np.uint8))
AUDIO = AudioInput(np.zeros(4, dtype=np.float32))


class RecordingModel:
    """Return what `preprocess` was called with."""

    def __init__(self, module: object) -> None:
        self._module = module

    def __getitem__(self, index: int) -> object:
        return self._module

    def preprocess(self, inputs: list[Any], **options: Any) -> dict[str, Any]:
        return {"inputs": inputs, **options}


def make_transformer(*modalities: str, message_format: str = "flat") -> Any:
    transformer: Any = Transformer.__new__(Transformer)
    torch.nn.Module.__init__(transformer)
    transformer.modality_config = {name: {} for name in modalities}
    transformer.input_formatter = type("Formatter", (), {"message_format": message_format})()
    return transformer


def read(module: object, value: Input, prompt: str = "") -> tuple[Any, Any]:
    model: Any = RecordingModel(module)
    output = preprocess(model, value, prompt=prompt, task=None, sampling_rate=16)
    (wrapped,) = output["inputs"]
    return wrapped, output["prompt"]


@pytest.mark.parametrize(
    ("value", "modality"),
    [
        ("text", Modality.text),
        (Pair("query", "document"), Modality.text),
        (TokenIdsInput((1,)), Modality.text),
        (LateChunkingInput(("text",)), Modality.text),
        (IMAGE, Modality.image),
        (AUDIO, Modality.audio),
    ],
)
def test_all_but_images_and_audio_is_text(value: Input, modality: Modality) -> None:
    assert get_modality(value) is modality


def test_a_text_is_named_a_text_with_the_prompt_before_it() -> None:
    module = make_transformer("text")
    assert read(module, "http://cat.png") == ({"text": "http://cat.png"}, None)
    assert read(module, "cat", "http://x/") == ({"text": "http://x/cat"}, None)
    assert read(module, Pair("cat", "dog"), "query: ") == (("query: cat", "dog"), None)


def test_a_chat_template_gets_the_prompt_apart() -> None:
    module = make_transformer("message", message_format="structured")
    assert read(module, "cat", "query: ") == ({"text": "cat"}, "query: ")
    assert read(module, Pair("cat", "dog"), "query: ") == (({"text": "cat"}, {"text": "dog"}), "query: ")
    assert read(make_transformer("message"), Pair("cat", "dog")) == (("cat", "dog"), None)


def test_other_modules_get_bare_texts() -> None:
    module = torch.nn.Identity()
    assert read(module, "cat", "query: ") == ("cat", "query: ")
    assert read(module, Pair("cat", "dog")) == (("cat", "dog"), None)


def test_media_keep_their_prompt() -> None:
    wrapped, prompt = read(make_transformer("image"), IMAGE, "describe: ")
    assert isinstance(wrapped, Image.Image)
    assert (wrapped.size, prompt) == ((3, 2), "describe: ")
    wrapped, _ = read(make_transformer("audio"), AUDIO)
    assert wrapped == {"array": AUDIO.samples, "sampling_rate": 16}
