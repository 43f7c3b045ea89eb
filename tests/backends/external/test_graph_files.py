from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from infinity_emb.backends.external.graph_files import (
    ONNX,
    OPENVINO,
    FileKind,
    GraphFile,
    choose_file,
    guess_dtype,
    list_cpu_features,
    list_parts,
)
from infinity_emb.errors import StartupError
from infinity_emb.types import Dtype

# As sentence-transformers' own repositories have them.
NAMES = [
    "config.json",
    "model.safetensors",
    "onnx/model.onnx",
    "onnx/model_O1.onnx",
    "onnx/model_O3.onnx",
    "onnx/model_O4.onnx",
    "onnx/model_qint8_arm64.onnx",
    "onnx/model_qint8_avx512.onnx",
    "onnx/model_qint8_avx512_vnni.onnx",
    "onnx/model_quint8_avx2.onnx",
]
# As transformers.js has them.
OTHER_NAMES = ["onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_q4.onnx", "onnx/model_quantized.onnx"]


def choose(
    names: list[str],
    *features: str,
    kinds: Sequence[FileKind] = (ONNX,),
    requested: str = "",
    dtype: Dtype = Dtype.float32,
) -> GraphFile | None:
    return choose_file(names, kinds, requested=requested, dtype=dtype, features=frozenset(features))


def name_of(file: GraphFile | None) -> str | None:
    return None if file is None else file.name


@pytest.mark.parametrize("names", [NAMES, OTHER_NAMES])
def test_the_exact_file_is_the_default_whatever_the_cpu_can(names: list[str]) -> None:
    chosen = choose(names, "avx2", "avx512f", "avx512_vnni")
    assert chosen == GraphFile("onnx/model.onnx", Dtype.float32, "the repository's float32 file")


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (["avx2", "avx512f", "avx512_vnni"], "onnx/model_qint8_avx512_vnni.onnx"),
        (["avx2", "avx512f"], "onnx/model_qint8_avx512.onnx"),
        (["avx2"], "onnx/model_quint8_avx2.onnx"),
        (["asimd"], "onnx/model_qint8_arm64.onnx"),
        ([], None),
    ],
)
def test_of_quantised_files_the_one_for_this_cpu_is_taken(features: list[str], expected: str | None) -> None:
    assert name_of(choose(NAMES, *features, dtype=Dtype.int8)) == expected


@pytest.mark.parametrize(
    ("names", "dtype", "expected"),
    [
        (OTHER_NAMES, Dtype.int8, "onnx/model_quantized.onnx"),
        (OTHER_NAMES, Dtype.float16, "onnx/model_fp16.onnx"),
        (NAMES, Dtype.float16, "onnx/model_O4.onnx"),
        (["model.onnx"], Dtype.float32, "model.onnx"),
        (["model.onnx", "onnx/model.onnx"], Dtype.float32, "onnx/model.onnx"),
        (["onnx/model_O3.onnx", "onnx/model_quantized.onnx"], Dtype.float32, None),
        (["sub/model.onnx", "model.onnx.txt"], Dtype.float32, None),
        ([], Dtype.float32, None),
    ],
)
def test_a_format_is_found_by_the_names_that_people_use(
    names: list[str], dtype: Dtype, expected: str | None
) -> None:
    assert name_of(choose(names, dtype=dtype)) == expected


# As sentence-transformers exports them.
OPENVINO_NAMES = ["openvino/openvino_model.xml", "openvino/openvino_model.bin"]
QUANTISED = "openvino/openvino_model_qint8_quantized.xml"


@pytest.mark.parametrize(
    ("names", "dtype", "expected"),
    [
        (NAMES + OPENVINO_NAMES, Dtype.float32, "openvino/openvino_model.xml"),
        (["openvino_model.xml"], Dtype.float32, "openvino_model.xml"),
        (NAMES, Dtype.float32, "onnx/model.onnx"),
        ([*NAMES, *OPENVINO_NAMES, QUANTISED], Dtype.int8, QUANTISED),
        ([*NAMES, *OPENVINO_NAMES], Dtype.int8, "onnx/model_quint8_avx2.onnx"),
        (["config.xml"], Dtype.float32, None),
    ],
)
def test_the_first_kind_is_preferred_where_the_repository_has_it(
    names: list[str], dtype: Dtype, expected: str | None
) -> None:
    assert name_of(choose(names, "avx2", kinds=(OPENVINO, ONNX), dtype=dtype)) == expected


def test_a_file_of_a_kind_that_is_not_read_is_not_in_the_repository() -> None:
    with pytest.raises(StartupError, match=r"is not in the repository; available: onnx/model\.onnx$"):
        choose(["onnx/model.onnx", QUANTISED], requested=QUANTISED)
    assert choose([QUANTISED], kinds=(OPENVINO, ONNX), requested=QUANTISED) == GraphFile(
        QUANTISED, Dtype.int8, "requested"
    )


@pytest.mark.parametrize("requested", ["onnx/model_O3.onnx", "model_O3.onnx"])
def test_a_file_that_is_named_is_taken(requested: str) -> None:
    chosen = choose(NAMES, requested=requested, dtype=Dtype.int8)
    assert chosen == GraphFile("onnx/model_O3.onnx", Dtype.float32, "requested")


def test_a_path_is_taken_for_itself_where_another_ends_like_it() -> None:
    assert name_of(choose(["model.onnx", "onnx/model.onnx"], requested="model.onnx")) == "model.onnx"


@pytest.mark.parametrize(
    ("names", "requested", "message"),
    [
        (["onnx/model.onnx"], "model_O9.onnx", "is not in the repository; available: onnx/model.onnx$"),
        ([], "model.onnx", "is not in the repository; available: none$"),
        (["a/m.onnx", "b/m.onnx"], "m.onnx", "matches several files; available: a/m.onnx, b/m.onnx$"),
        (["config.json"], "config.json", "is not in the repository"),
    ],
)
def test_a_name_that_is_no_one_file_is_refused(names: list[str], requested: str, message: str) -> None:
    with pytest.raises(StartupError, match=f"--graph-file '{requested}' {message}"):
        choose(names, requested=requested)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("onnx/model.onnx", Dtype.float32),
        ("onnx/model_O3.onnx", Dtype.float32),
        ("model_optimized.onnx", Dtype.float32),
        ("onnx/model_O4.onnx", Dtype.float16),
        ("model_fp16.onnx", Dtype.float16),
        ("model_quantized.onnx", Dtype.int8),
        ("model_qint8_avx512.onnx", Dtype.int8),
        ("model_uint8.onnx", Dtype.int8),
        ("model_q4f16.onnx", Dtype.int8),
        ("model_bnb4.onnx", Dtype.int8),
        ("int8/model.onnx", Dtype.float32),
    ],
)
def test_a_file_s_name_tells_its_format(name: str, expected: Dtype) -> None:
    assert guess_dtype(name) == expected


def test_weights_beside_a_graph_belong_to_it() -> None:
    names = [
        "m/model.onnx",
        "m/model.onnx_data",
        "m/model.onnx_data_1",
        "m/model.onnx.data",
        "m/model_O1.onnx",
    ]
    others = ["model.onnx_data", "m/model.onnx_data.txt"]
    assert list_parts(names + others, "m/model.onnx") == names[:4]


def test_openvino_s_weights_lie_beside_its_graph() -> None:
    names = [QUANTISED, QUANTISED.replace(".xml", ".bin"), *OPENVINO_NAMES]
    assert list_parts(names, OPENVINO_NAMES[0]) == OPENVINO_NAMES
    assert list_parts(names, QUANTISED) == names[:2]


@pytest.mark.parametrize(
    ("machine", "capability", "has_vnni", "expected"),
    [
        ("arm64", "DEFAULT", False, {"asimd"}),
        ("ARM64", "NEON", False, {"asimd"}),
        ("AMD64", "AVX2", True, {"avx2"}),
        ("x86_64", "AVX512", False, {"avx2", "avx512f"}),
        ("x86_64", "AVX512", True, {"avx2", "avx512f", "avx512_vnni"}),
        ("x86_64", "DEFAULT", False, set()),
    ],
)
def test_the_features_of_the_cpu_are_those_that_torch_finds(
    monkeypatch: pytest.MonkeyPatch, machine: str, capability: str, has_vnni: bool, expected: set[str]
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: has_vnni)
    assert list_cpu_features() == expected


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="there is nothing to compare with")
def test_torch_finds_the_features_that_linux_lists() -> None:
    known = {"avx512_vnni", "avx512f", "avx2", "asimd"}
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    assert list_cpu_features() == known & flags
