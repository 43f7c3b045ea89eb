"""`infinity_emb models`: the real huggingface_hub, against a hub on the loopback and a cache of its own."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from infinity_emb import cli
from infinity_emb.cli.tool import format_bytes
from tests.support.hub_server import HubServer, commit_hash


def safetensors(*shape: int) -> bytes:
    """A file of one float32 tensor."""
    num_bytes = 4 * shape[0] * shape[1]
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, num_bytes]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(num_bytes)


BERT = json.dumps({"architectures": ["BertModel"], "model_type": "bert"}).encode()
CLASSIFIER = {
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"0": "a", "1": "b"},
    "auto_map": {"AutoConfig": "own.Config"},
}
REPOSITORIES = {
    "org/small": {
        "main": {
            "README.md": b"# small",
            "config.json": BERT,
            "tokenizer.json": b"{ }",
            "model.safetensors": safetensors(1000, 10),
            "onnx/model.onnx": b"onnx",
        }
    },
    "org/labels": {
        "main": {
            "config.json": json.dumps(CLASSIFIER).encode(),
            "preprocessor_config.json": b'{"image_processor_type": "X"}',
            "model.safetensors": safetensors(10, 10),
        }
    },
    "org/data": {"main": {"rows.txt": b"1"}},
}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(REPOSITORIES) as server:
        yield server


@pytest.fixture(autouse=True)
def _machine(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    constants = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
        "HF_HUB_OFFLINE": False,
    }
    for name, value in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("infinity_emb.cli.models.configure_logging", lambda level: None)
    yield
    huggingface_hub.close_session()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    exit_code = cli.main(["models", *arguments])
    return exit_code, *capsys.readouterr()


def test_a_download_prints_the_folder_and_is_listed_with_kind_and_size(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    exit_code, out, _ = run(capsys, "download", "org/small")
    commit = commit_hash("org/small", REPOSITORIES["org/small"]["main"])
    folder = tmp_path / "hub" / "models--org--small" / "snapshots" / commit
    assert (exit_code, out) == (0, f"{folder}\n")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]

    models = {each["model"]: each for each in json.loads(run(capsys, "list", "--json")[1])}
    small = models["org/small"]
    assert (small["kind"], small["num_revisions"], small["problem"]) == ("embedder", 1, None)
    assert small["size_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert small["path"] == str(folder)
    exit_code, out, _ = run(capsys, "list")
    assert exit_code == 0
    size = format_bytes(small["size_bytes"])
    assert any(re.match(rf"org/small +embedder +{size} +1  just now$", line) for line in out.splitlines())
    assert out.splitlines()[-1].endswith(f"the cache is {tmp_path / 'hub'}")
    (tmp_path / "hub" / "version.txt").write_text("1")  # transformers writes it; it is no model
    assert run(capsys, "list")[1] == out


def test_a_cache_that_is_empty_or_holds_half_a_model_is_listed(
    capsys: pytest.CaptureFixture[str], hub: HubServer
) -> None:
    names = {each["model"] for each in json.loads(run(capsys, "list", "--json")[1])}
    assert names <= {"sentence-transformers/all-MiniLM-L6-v2"}  # the package that brings it
    huggingface_hub.hf_hub_download("org/small", "tokenizer.json")
    out = run(capsys, "list")[1]
    assert any("org/small" in line and "incomplete: no config.json" in line for line in out.splitlines())


def test_show_fetches_the_configuration_and_no_weights(
    capsys: pytest.CaptureFixture[str], hub: HubServer, tmp_path: Path
) -> None:
    exit_code, out, _ = run(capsys, "show", "org/small", "--json")
    needs = json.loads(out)
    assert exit_code == 0
    assert hub.fetched_files() == ["config.json"]
    assert not (tmp_path / "hub").exists()
    assert needs["source"] == "hub"
    assert needs["kind"] == "embedder"
    assert needs["download_bytes"] == sum(needs["files"].values())
    assert set(needs["files"]) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert needs["num_parameters"] == pytest.approx(10_000, rel=0.01)  # by size: this hub counts none
    assert needs["engines"] == ["torch", "onnx or openvino (onnx/model.onnx)"]


def test_show_of_a_model_on_this_machine_asks_nobody(
    capsys: pytest.CaptureFixture[str], hub: HubServer
) -> None:
    run(capsys, "download", "org/labels")
    hub.requests.clear()
    needs = json.loads(run(capsys, "show", "org/labels", "--json")[1])
    assert hub.requests == []
    assert needs["source"] == "cache"
    assert needs["kind"] == "classifier"
    assert needs["download_bytes"] == 0
    assert needs["num_parameters"] == 100
    assert needs["memory_bytes"] == {"float32": 400, "float16": 200}
    assert needs["extras"] == ["torch", "vision"]
    assert needs["needs_own_code"] is True

    out = run(capsys, "show", "org/labels")[1]
    assert out.splitlines()[0].startswith("org/labels: classifier, in the cache, ")
    assert "400 bytes in float32 (CPU), 200 bytes in half precision (GPU)" in out
    assert "--trust-remote-code" in out


@pytest.mark.parametrize("action", ["show", "download"])
@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("org/absent", ["no model named 'org/absent'", "check the spelling"]),
        ("org/data", ["'org/data'", "is not a model that can be served", "config.json"]),
        ("no/such/model", ["neither a local folder nor a hub id"]),
        ("./absent", ["no folder", "check the path"]),
    ],
)
def test_what_is_no_model_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], action: str, model: str, words: list[str]
) -> None:
    exit_code, out, err = run(capsys, action, model)
    assert (exit_code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [word for word in words if word not in err] == []


@pytest.mark.parametrize("action", ["show", "download"])
def test_offline_and_unreachable_hubs_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, hub: HubServer, action: str
) -> None:
    hub.failures["*"] = 503
    exit_code, _, err = run(capsys, action, "org/small")
    assert (exit_code, err.count("\n")) == (1, 1)
    assert "cannot get 'org/small'" in err
    hub.failures.clear()
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    exit_code, _, err = run(capsys, action, "org/small")
    assert exit_code == 1
    assert "offline mode is on" in err
    assert hub.requests == []


def test_a_revision_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("show", "download"):
        exit_code, _, err = run(capsys, action, "org/small", "--revision", "v9")
        assert exit_code == 1
        assert "has no revision 'v9'" in err


def test_a_missing_action_and_a_misspelt_option_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, word in (([], "ACTION"), (["list", "--jsn"], "--jsn")):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["models", *arguments])
        assert exit_.value.code == 2
        assert word in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (999_600, "1 MB"), (90_868_376, "90.9 MB")],
)
def test_sizes_have_three_digits(number: int, text: str) -> None:
    assert format_bytes(number) == text
