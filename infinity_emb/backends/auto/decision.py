"""Remember which engine was chosen for a model, so that the next start does not measure again."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from infinity_emb._version import __version__
from infinity_emb.config.model_options import ComputeOptions, LoadOptions, ModelOptions
from infinity_emb.config.options import list_options
from infinity_emb.hardware import cpu_name, num_usable_cpus
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.storage.files import cache_dir
from infinity_emb.storage.keyed_file import KeyedFile
from infinity_emb.types import InferenceEngine

# Raised when the way of measuring changes, so that engines are measured again.
_MEASURE_VERSION = 3


@dataclass(frozen=True, slots=True)
class Decision:
    """The engine, why it was chosen, and the table of all engines that were measured."""

    engine: InferenceEngine
    reason: str
    table: tuple[str, ...]


def load_decision(file: KeyedFile) -> Decision | None:
    """Return the decision of an earlier start, or None."""
    content = file.read()
    if content is None:
        return None
    stored = json.loads(content)
    return Decision(InferenceEngine(stored["engine"]), stored["reason"], tuple(stored["table"]))


def save_decision(file: KeyedFile, decision: Decision) -> None:
    """Keep a decision for the next start, with its key for people who read the file."""
    content = {**asdict(decision), "key": json.loads(file.key)}
    file.write(json.dumps(content, indent=1, ensure_ascii=False).encode())


def find_decision_file(
    args: LoadOptions, files: ModelFiles, libraries: Sequence[str], device_names: Sequence[str]
) -> KeyedFile:
    """Return the file for the decision about this model on this machine.

    libraries: of the installed engines.
    device_names: of the accelerators in this machine.
    """
    key = {
        "model": args.model_name_or_path,
        "files": files.version,
        "options": {
            option.name: str(getattr(args, option.name))
            for part in (ModelOptions, ComputeOptions)
            for option in list_options(part)
            if option.spec.affects_speed
        },
        "machine": [cpu_name(), f"{num_usable_cpus()} cores", *device_names],
        "versions": {
            "infinity_emb": __version__,
            "measure": _MEASURE_VERSION,
            **{library: find_version(library) for library in ("transformers", *libraries)},
        },
    }
    return KeyedFile(
        folder=cache_dir(os.environ) / "engines",
        purpose="engine decision",
        name=args.model_name_or_path,
        key=json.dumps(key, sort_keys=True),
        suffix=".json",
    )


def find_version(library: str) -> str:
    """Return the version of the package; for a module, the packages that provide it, with their versions.

    onnxruntime has another package for each kind of GPU.
    """
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        packages = importlib.metadata.packages_distributions().get(library, ())  # slow: reads all metadata
        return ", ".join(sorted(f"{name} {importlib.metadata.version(name)}" for name in set(packages)))
