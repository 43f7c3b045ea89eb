"""Export each network to ONNX once in a run: torch takes seconds for the smallest one."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

# Code that does not change during a run, unlike that of model folders.
_PACKAGES = ("torch.", "transformers.", "infinity_emb.", "tests.")
Export = Callable[..., Any]


def keep_exports(export: Export, folder: Path) -> Export:
    """Return `torch.onnx.export`, with files of networks that were exported before copied from a folder.

    folder: may be shared by processes that export at the same time.
    """

    def export_once(network: torch.nn.Module, inputs: Sequence[Any], path: Any, **options: Any) -> Any:
        name = _make_name(network, inputs, Path(path).name, options)
        if name is None:
            return export(network, inputs, path, **options)
        kept = folder / name
        if not kept.exists():
            draft = Path(tempfile.mkdtemp(dir=folder))
            export(network, inputs, draft / Path(path).name, **options)
            try:
                draft.rename(kept)
            except OSError:  # another process was first
                shutil.rmtree(draft)
        shutil.copytree(kept, Path(path).parent, dirs_exist_ok=True)
        return None

    return export_once


def _make_name(
    network: torch.nn.Module, inputs: Sequence[Any], file_name: str, options: dict[str, Any]
) -> str | None:
    """Return a digest of whatever may change the graph; None if code of a model folder may."""
    modules = [f"{type(each).__module__}.{type(each).__qualname__}" for each in network.modules()]
    if not all(each.startswith(_PACKAGES) for each in modules):
        return None
    configs = [
        # Without the folder, which differs for each test.
        ({**each.to_dict(), "_name_or_path": ""}, each._attn_implementation)
        for each in (getattr(module, "config", None) for module in network.modules())
        if each is not None
    ]
    modes = [module.training for module in network.modules()]
    digest = hashlib.sha256(repr((file_name, options, modules, modes, configs)).encode())
    tensors = [*network.state_dict().items(), *(("", each) for each in inputs)]
    for name, tensor in [*tensors, *network.named_buffers()]:
        digest.update(repr((name, tensor.dtype, tensor.shape)).encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
