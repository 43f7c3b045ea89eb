"""Every kind of model on an emulated CUDA device, in bfloat16, with the branches and kernels for CUDA.

A wrong shape, dtype or mix of devices raises; what waits for the device is written down; values are compared
with those of sentence-transformers in the same dtype. Inputs and outputs pass through frames, as they do with
front ends.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder

from benchmarks.gpu.emulated_cuda import emulate_cuda, record
from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.torch import cpu_threads, device
from infinity_emb.cli.front_ends.encoding import pack_items, pack_outputs, unpack_items, unpack_outputs
from infinity_emb.items import AudioInput, ImageInput, Input, InputOptions, number_inputs
from tests.support.accelerated_models import load_folder
from tests.support.frames import send
from tests.support.model_kinds import Family, Kind, list_kinds
from tests.support.small_models.media import SAMPLING_RATE

pytestmark = [
    pytest.mark.model,
    # transformers' default configurations name start and end tokens outside of these small vocabularies.
    pytest.mark.filterwarnings("ignore"),
]

KINDS = list_kinds()
# Where other libraries wait for the device, and for what.
KNOWN_WAITS = {
    "masking_utils._ignore_bidirectional_mask_sdpa": "whether a padded batch has padding",
    "masking_utils._ignore_causal_mask_sdpa": "the same",
    "pooling._forward_flattened": "a token's position in its text, for weights or to leave a prompt out",
    "tensor.repad_flattened_features": "lengths, copied from memory that is not pinned",
    "lstm.forward": "the number of words of each text",
    "token_pooling._hierarchical_pool_one": "clustering on the host",
    "token_pooling.<listcomp>": "clustering on the host",
    "token_pooling.forward": "clustering on the host",
    "modeling_t5.forward": "a classifier's check that each text has one end token",
    "modeling_paligemma.get_placeholder_mask": "the number of image tokens",
    "import_utils.torch_compilable_check": "the same",
    "modeling_colqwen2.forward": "the sizes of images",
    "vision_utils.get_vision_position_ids": "the sizes of images",
    "vision_utils.get_vision_cu_seqlens": "the sizes of images",
    "modeling_qwen2_vl.<listcomp>": "the sizes of images",
}
# Packed kinds that may wait; all others must not.
WAITING_PACKED = ("weightedmean", "two poolings", "multivector")
MIN_COSINE = 0.999
MAX_SCORE_DIFFERENCE = 0.05  # relative to the largest


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Compute small operators on one core, and say how many kinds there are."""
    with cpu_threads.one_core():
        yield
    warnings.warn(f"{len(KINDS)} kinds of models ran on the emulated CUDA device", stacklevel=1)


def load(path: Path, **options: Any) -> LoadedModel:
    return load_folder(path, device="cuda", model_warmup=False, **options)


def compute_references(family: Family, path: Path, inputs: Sequence[Input]) -> list[np.ndarray]:
    """Ask sentence-transformers for each input alone, on the CPU. Returns (n, D) each."""
    classes: dict[Family, Any] = {
        "embedder": SentenceTransformer,
        "sparse": SparseEncoder,
        "multivector": MultiVectorEncoder,
        "reranker": CrossEncoder,
        "classifier": CrossEncoder,
    }
    # In half precision CLAP's network refuses its own processor's features.
    dtype = torch.float32 if isinstance(inputs[0], AudioInput) else torch.bfloat16
    model: Any = classes[family](str(path), device="cpu", model_kwargs={"dtype": dtype})
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    if isinstance(model, CrossEncoder):
        with torch.inference_mode():
            scores = [model(model.preprocess([value]))["scores"] for value in inputs]
        return [row.float().numpy() for row in scores]
    options: dict[str, Any] = {"show_progress_bar": False}
    if family != "multivector":
        options["convert_to_tensor"] = True
    if family == "sparse":
        options["convert_to_sparse_tensor"] = False
    rows = [torch.as_tensor(model.encode([_unwrap(value)], **options)[0]) for value in inputs]
    return [np.atleast_2d(row.float().numpy()) for row in rows]


def _unwrap(value: Input) -> Any:
    if isinstance(value, ImageInput):
        return Image.fromarray(value.pixels)
    if isinstance(value, AudioInput):
        return {"array": value.samples, "sampling_rate": SAMPLING_RATE}
    return value


def to_rows(entries: Any, width: int) -> list[np.ndarray]:
    """Return (n, D) for each entry of an output."""
    if isinstance(entries[0], np.ndarray):
        return [np.atleast_2d(entry) for entry in entries]
    rows = np.zeros((len(entries), 1, width), dtype=np.float32)
    for row, entry in zip(rows, entries, strict=True):
        row[0, entry.indices] = entry.values
    return list(rows)


def assert_alike(found: list[np.ndarray], expected: list[np.ndarray], *, are_scores: bool) -> None:
    assert [each.shape for each in found] == [each.shape for each in expected]
    actual, wanted = np.concatenate(found), np.concatenate(expected)
    assert np.isfinite(actual).all()
    assert np.abs(wanted).max() > 0
    if are_scores:
        assert np.abs(actual - wanted).max() <= MAX_SCORE_DIFFERENCE * max(1, np.abs(wanted).max())
        return
    norms = np.linalg.norm(actual, axis=1) * np.linalg.norm(wanted, axis=1)
    cosines = (actual * wanted).sum(axis=1)[norms > 0] / norms[norms > 0]
    assert cosines.min() >= MIN_COSINE


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_model_on_cuda(name: str, tmp_path: Path) -> None:
    kind: Kind = KINDS[name]
    path = kind.save(tmp_path)
    outputs: list[Any] = []
    with emulate_cuda():
        model = load(path)
        assert (model.info.dtype, model.info.device) == ("bfloat16", "cuda:0")
        wanted = model.info.outputs or ("dense",)
        for inputs in kind.list_inputs():
            encoded = model.encode(number_inputs(inputs), InputOptions(outputs=wanted))
            batch = list(unpack_items(send(*pack_items(encoded))))
            with record() as log:
                in_flight = model.replicas[0].launch(batch)
            header, arrays = pack_outputs(in_flight.result())
            outputs.append(unpack_outputs(header, send({}, arrays).arrays))
            waits = {wait.partition(" in ")[2] for wait in log.waits}
            assert waits <= KNOWN_WAITS.keys(), log.waits
            if model.info.attention == "packed" and not any(word in name for word in WAITING_PACKED):
                assert not waits
    if name == "module: convolution":
        assert model.info.attention == "padded", "in half precision it seems not to read neighbouring texts"
    if model.info.attention == "packed" and "pooled tokens" not in name:
        assert model.info.attention_reason.startswith("infinity_varlen"), model.info.attention_reason

    for inputs, by_name in zip(kind.list_inputs(), outputs, strict=True):
        assert by_name.keys() == set(wanted)
        expected = compute_references(kind.family, path, inputs)
        found = to_rows(by_name[wanted[0]], expected[0].shape[1])
        assert_alike(found, expected, are_scores=kind.family in ("reranker", "classifier"))


def test_the_emulated_device_refuses_tensors_of_two_devices_and_float32_in_the_flash_kernel() -> None:
    from torch.nn.attention.varlen import varlen_attn

    with emulate_cuda():
        on_device = torch.ones(3, 2, 8).to("cuda:0")
        starts = torch.tensor([0, 3], dtype=torch.int32).to("cuda:0")
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            on_device + torch.ones(3, 2, 8)
        with pytest.raises(RuntimeError, match="takes float16 and bfloat16"):
            varlen_attn(on_device, on_device, on_device, starts, starts, 3, 3)
        with record() as log:
            assert on_device.sum().item() == 48
            on_device.cpu()
            on_device[on_device > 0].nonzero()
    assert [wait.partition(" in ")[0] for wait in log.waits] == [
        "_local_scalar_dense",
        "copy to the host",
        "index by a mask",
        "nonzero",
    ]


def test_only_one_module_asks_for_the_kind_of_device() -> None:
    folder = Path(device.__file__).parent
    asking = re.compile(r"\.type\s*(==|!=|in\b)|\.is_cuda\b")
    found = [path.name for path in folder.rglob("*.py") if asking.search(path.read_text(encoding="utf-8"))]
    assert found == ["device.py"]
