"""Export each network to ONNX once in a run: torch takes seconds for the smallest one."""

from __future__ import annotations

import hashlib
import inspect
import marshal
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

# Code that does not change during a run, unlike that of model folders.
_PACKAGES = ("torch.", "transformers.", "infinity_emb.", "tests.")
# Attributes that are no part of the graph, or that are read elsewhere: the folder differs for each test.
_SKIPPED = frozenset({"_parameters", "_buffers", "_modules", "config", "name_or_path"})
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
            except OSError:
                if not kept.exists():
                    raise
                shutil.rmtree(draft)  # another process was first
        for each in kept.iterdir():
            shutil.copyfile(each, Path(path).parent / each.name)
        return None

    return export_once


def _make_name(
    network: torch.nn.Module, inputs: Sequence[Any], file_name: str, options: dict[str, Any]
) -> str | None:
    """Return a digest of whatever may change the graph; None if own code may."""
    if any(_has_own_code(each) for each in network.modules()):
        return None
    modules = [_describe(each) for each in network.modules()]
    types = dict.fromkeys(type(each) for each in network.modules())
    configs = [
        # Without the folder, which differs for each test.
        ({**each.to_dict(), "_name_or_path": ""}, each._attn_implementation)
        for each in (getattr(module, "config", None) for module in network.modules())
        if each is not None
    ]
    digest = hashlib.sha256(repr((file_name, options, repr(network), modules, configs)).encode())
    for code in (code for each in types for code in _list_code(each.forward)):
        digest.update(code)
    tensors = [*network.state_dict().items(), *(("", each) for each in inputs)]
    for name, tensor in [*tensors, *network.named_buffers()]:
        digest.update(repr((name, tensor.dtype, tensor.shape)).encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _has_own_code(module: torch.nn.Module) -> bool:
    """Return whether a module runs code of a model folder, or other code than the rest of its class."""
    hooks: Any = (module._forward_hooks, module._forward_pre_hooks)
    return not type(module).__module__.startswith(_PACKAGES) or "forward" in vars(module) or any(hooks)


def _describe(module: torch.nn.Module) -> str:
    """Return the class and the attributes, the same in each process."""
    values = {
        name: value
        for name, value in vars(module).items()
        if name not in _SKIPPED and not isinstance(value, (set, frozenset))  # their order differs
    }
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    return re.sub(" at 0x[0-9a-f]+", "", f"{name} {values}")


def _list_code(function: Callable[..., Any] | None) -> Iterator[bytes]:
    """Yield the code of a function, and of those that it wraps."""
    while function is not None:
        if inspect.isfunction(function):
            yield marshal.dumps(function.__code__, 2)
        function = getattr(function, "__wrapped__", None)
