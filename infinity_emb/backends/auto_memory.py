"""The engine that was chosen for a model, in a file of the cache, so that the next start measures nothing.

Whatever may make another choice is in the file's key. Knows nothing of how a choice comes about.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinity_emb import __version__
from infinity_emb.config import EngineArgs
from infinity_emb.hardware import cpu_name, num_usable_cpus
from infinity_emb.home import home_folder, write_whole
from infinity_emb.model_files import ModelFiles
from infinity_emb.options import option_fields
from infinity_emb.primitives import InferenceEngine

logger = logging.getLogger("infinity_emb")

# Raised when engines are measured otherwise, so that they are measured anew.
_MEASURE_VERSION = 1
# Options that make no engine faster than another one. Those of the batch's size are among them: a model that
# is loaded again is given the size that was measured, and is still the same.
INDIFFERENT_OPTIONS = frozenset(
    {
        "model_name_or_path",  # both stand in the key by themselves
        "revision",
        "engine",
        "batch_size",
        "max_batch_tokens",
        "model_warmup",
        "vector_disk_cache",
        "vector_disk_cache_mb",
        "vector_memory_cache_mb",
        "embedding_dtype",
        "token_ids",
        "calibration_file",
        "served_model_name",
        "max_queue_items",
        "max_queue_tokens",
        "max_queue_wait_s",
        "request_timeout_s",
        "batch_timeout_s",
        "idle_unload_s",
        "max_queue_pixels",
        "max_queue_audio_s",
        "media_hosts",
        "max_request_tokens",
        "tokenizer_threads",
    }
)


@dataclass(frozen=True, slots=True)
class Decision:
    """The engine, why it was chosen, and the table of all that were measured."""

    engine: InferenceEngine
    reason: str
    table: tuple[str, ...]


class DecisionFile:
    """The decision about one model on one machine.

    key: all that it depends on. The file is JSON, for people to read; nothing is locked: processes that
    start together each put a whole file in place, and the last one stays.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self._key = json.dumps(key, sort_keys=True)
        digest = hashlib.sha256(self._key.encode()).hexdigest()
        name = re.sub(r"[^\w.-]+", "-", str(key["model"]), flags=re.ASCII)[-60:]
        self.path = folder / f"{name}-{digest[:32]}.json"

    def load(self) -> Decision | None:
        """What an earlier start saved, or None; a damaged or unreadable file is logged and left out."""
        try:
            content = json.loads(self.path.read_bytes())
            if json.dumps(content["key"], sort_keys=True) != self._key:
                raise ValueError("it is about something else")
            return Decision(
                InferenceEngine(content["engine"]), str(content["reason"]), tuple(content["table"])
            )
        except FileNotFoundError:
            return None
        # What json and indexing raise for a file that somebody else wrote.
        except (OSError, ValueError, KeyError, TypeError) as exc:
            logger.warning("cannot use %s (%s: %s); measuring anew", self.path, type(exc).__name__, exc)
            return None

    def save(self, decision: Decision) -> None:
        """Keep it for the next start, where the folder can be written; else log a warning."""
        content = {
            "engine": decision.engine.value,
            "reason": decision.reason,
            "table": decision.table,
            "key": json.loads(self._key),
        }
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        try:
            write_whole(self.path, text.encode())
        except OSError as exc:
            logger.warning(
                "cannot write %s (%s), so the next start measures again; set INFINITY_HOME to a folder that"
                " can be written",
                self.path,
                exc,
            )


def decision_file(
    args: EngineArgs, files: ModelFiles, libraries: Sequence[str], device_names: Sequence[str]
) -> DecisionFile:
    """Where the decision about this model is kept.

    libraries: of the engines that are installed.
    device_names: of the accelerators that are here.
    """
    return DecisionFile(
        home_folder(os.environ) / "engines",
        {
            "model": args.model_name_or_path,
            "files": files.version,
            "options": {
                each.name: str(getattr(args, each.name))
                for each in option_fields(type(args))
                if not each.metadata["no_effect"] and each.name not in INDIFFERENT_OPTIONS
            },
            "machine": [cpu_name(), f"{num_usable_cpus()} cores", *device_names],
            "versions": {
                "infinity_emb": __version__,
                "measure": _MEASURE_VERSION,
                **_versions(["transformers", *libraries]),
            },
        },
    )


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    return {library: _version(library) for library in libraries}


def _version(library: str) -> str:
    """Of the package of that name, else of whichever brings it: onnxruntime has one for each kind of GPU."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        packages = importlib.metadata.packages_distributions().get(library, ())  # reads all that is installed
        return ", ".join(sorted(f"{name} {importlib.metadata.version(name)}" for name in set(packages)))
