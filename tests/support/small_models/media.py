"""Small random models that take images or audio; their processors need no torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.support.small_models.architectures import ARCHITECTURES, make_tokenizer

SAMPLING_RATE = 16_000
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_TEXT = ARCHITECTURES["bert"]
_DECODER = ARCHITECTURES["qwen3"]


def save_clip(folder: Path) -> Path:
    """Two towers, each pooled by transformers."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=_TEXT, vision_config=_VISION, projection_dim=24)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return _save(folder, transformers.CLIPModel(config), transformers.CLIPProcessor(images, _tokenizer(77)))


def save_siglip(folder: Path) -> Path:
    """Its text tower reads the last position, so padding changes its vectors."""
    torch.manual_seed(0)
    text = _TEXT | {"max_position_embeddings": 64, "projection_size": 32}
    config = transformers.SiglipConfig(text_config=text, vision_config=_VISION)
    images: Any = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return _save(
        folder, transformers.SiglipModel(config), transformers.SiglipProcessor(images, _tokenizer(64))
    )


def save_clap(folder: Path) -> Path:
    """Texts and sounds."""
    torch.manual_seed(0)
    audio = {
        "spec_size": 64,
        "num_mel_bins": 16,
        "window_size": 4,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "patch_embeds_hidden_size": 16,
        "hidden_size": 32,
        "projection_dim": 16,
        "num_classes": 4,
        "enable_fusion": False,
    }
    text = _TEXT | {"max_position_embeddings": 128, "projection_dim": 16}
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=16)
    sounds = transformers.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=SAMPLING_RATE,
        hop_length=160,
        max_length_s=2,
        fft_window_size=256,
        truncation="rand_trunc",
        padding="repeatpad",
    )
    return _save(folder, transformers.ClapModel(config), transformers.ClapProcessor(sounds, _tokenizer(77)))


def save_colpali(folder: Path) -> Path:
    """A vector per image patch; the folder is transformers' own, without `modules.json`."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(256, "<image>")
    tokenizer.bos_token = "[CLS]"
    vlm = transformers.PaliGemmaConfig(
        vision_config=_VISION | {"projection_dim": 32, "model_type": "siglip_vision_model"},
        text_config=_DECODER | {"vocab_size": 520, "model_type": "gemma"},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    images: Any = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    network = transformers.ColPaliForRetrieval(transformers.ColPaliConfig(vlm_config=vlm, embedding_dim=16))
    network.save_pretrained(folder)
    transformers.ColPaliProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def save_colqwen(folder: Path) -> Path:
    """As ColPali, with as many patches as the image is large."""
    torch.manual_seed(0)
    words = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
    tokenizer = _tokenizer(2048, *words)
    image_id, start_id, end_id, video_id = map(tokenizer.convert_tokens_to_ids, words)
    vlm = transformers.Qwen2VLConfig(
        text_config=_DECODER
        | {
            "vocab_size": 530,
            "max_position_embeddings": 2048,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "num_heads": 2,
            "hidden_size": 32,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "mlp_ratio": 2,
        },
        image_token_id=image_id,
        video_token_id=video_id,
        vision_start_token_id=start_id,
        vision_end_token_id=end_id,
    )
    network = transformers.ColQwen2ForRetrieval(transformers.ColQwen2Config(vlm_config=vlm, embedding_dim=16))
    network.save_pretrained(folder)
    images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=32 * 32)
    transformers.ColQwen2Processor(images, tokenizer).save_pretrained(folder)
    return folder


def random_images(count: int) -> list[Image.Image]:
    """Of many sizes."""
    generator = np.random.default_rng(0)
    return [
        Image.fromarray(generator.integers(0, 255, (40 + 7 * n, 60 - 3 * n, 3), dtype=np.uint8))
        for n in range(count)
    ]


def sine_waves(count: int) -> list[np.ndarray]:
    """(n,) float32 each, of different length and pitch."""
    return [
        (0.3 * np.sin(np.arange(SAMPLING_RATE + 4000 * n) * 0.05 * (n + 1))).astype(np.float32)
        for n in range(count)
    ]


def _tokenizer(max_length: int, *special: str) -> PreTrainedTokenizerBase:
    tokenizer = make_tokenizer("of no class of its own", max_length)
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def _save(folder: Path, network: PreTrainedModel, processor: Any) -> Path:
    network.save_pretrained(folder / "backbone")
    processor.save_pretrained(folder / "backbone")
    model = SentenceTransformer(modules=[Transformer(str(folder / "backbone"))], device="cpu")
    model.save_pretrained(str(folder / "model"))
    return folder / "model"
