"""Start the peers as servers on the loopback, each with its own interpreter and packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.http_load import find_free_port
from benchmarks.peers.environments import PEERS
from benchmarks.texts import bundled_model_folder
from scripts.environments import RegistryTooSlow

READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 20.0
APP = Path(__file__).with_name("app.py")
# Nothing of ours may be found by a peer, and nobody is to be told of its start.
_HIDDEN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_ENVIRON = {name: value for name, value in os.environ.items() if name not in _HIDDEN} | {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
}


class PeerUnavailable(Exception):
    """A peer cannot be installed or started here; the message says why."""


class Listening(Protocol):
    """Declare a server on a port of the loopback, in one process."""

    @property
    def port(self) -> int: ...

    @property
    def pid(self) -> int: ...

    def close(self) -> object: ...


class PeerServer:
    """Run one peer until it is closed. Raises PeerUnavailable where it cannot run."""

    def __init__(self, name: str, folder: Path) -> None:
        """Make its environment if need be, start it and wait until it is ready.

        folder: for the files of this peer alone.
        """
        self.port = find_free_port()
        try:
            python = PEERS.find_python(name)
        except (subprocess.CalledProcessError, RegistryTooSlow, OSError) as exc:
            raise PeerUnavailable(f"cannot be installed: {exc}") from exc
        self._log = folder / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                _make_command(name, python, self.port, folder),
                stdout=log,
                stderr=log,
                cwd=folder,
                env=_ENVIRON,
            )
        try:
            self._wait_until_ready("/health" if name.startswith("infinity") else "/ready")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """Stop the server."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_until_ready(self, path: str) -> None:
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        lines = self._log.read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "nothing in its log")
        raise PeerUnavailable(f"did not become ready: {last[:200]}")


def _make_command(name: str, python: Path, port: int, folder: Path) -> list[str]:
    isolated = [str(python), "-I"]
    model = str(bundled_model_folder())
    if name.startswith("infinity"):
        script = str(python.with_name("infinity_emb"))
        flags = ["--model-id", model, "--engine", "torch", "--device", "cpu", "--port", str(port)]
        return [*isolated, script, "v2", "--host", "127.0.0.1", *flags]
    if name == "fastembed":
        model = str(export_graph_for_fastembed(folder / "model"))
    return [*isolated, str(APP), name, model, str(port)]


def export_graph_for_fastembed(folder: Path) -> Path:
    """Write the graph of the default model and its tokenizer, cut at the length of the model itself."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer

    from infinity_emb.backends.external.onnx_export import export_graph

    source = bundled_model_folder()
    folder.mkdir()
    model = SentenceTransformer(str(source), device="cpu")
    transformer = model[0]
    assert isinstance(transformer, Transformer)
    export_graph(transformer, folder / "model.onnx")
    for name in ("config.json", "tokenizer.json", "special_tokens_map.json"):
        shutil.copy(source / name, folder)
    options = json.loads((source / "tokenizer_config.json").read_text())
    options["model_max_length"] = options["max_length"] = model.max_seq_length
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder


def check_same_model(ours: Listening, peer: Listening, texts: list[str]) -> None:
    """Raise PeerUnavailable unless both compute the same vectors: anything else would be no comparison."""
    cosines = np.sum(_embed(ours.port, texts) * _embed(peer.port, texts), axis=1)
    if cosines.min() < 0.9999:
        raise PeerUnavailable(f"computes other vectors: the lowest cosine to ours is {cosines.min():.4f}")


def _embed(port: int, texts: list[str]) -> np.ndarray:
    """Return (B, D) float32, of length 1."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/embeddings",
        json.dumps({"input": texts}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=READY_TIMEOUT_S) as response:
        data: list[dict[str, Any]] = json.load(response)["data"]
    rows = np.array([each["embedding"] for each in data], dtype=np.float32)
    lengths: np.ndarray = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: np.ndarray = rows / lengths
    return scaled


def make_peer_folder() -> Path:
    """Return a new folder for the files of one peer."""
    return Path(tempfile.mkdtemp(prefix="infinity-peer-"))
