"""Compile a network's layers with torch.compile, once for every number of tokens and texts.

Layers of one kind share the compiled code. A layer only runs code that exists: nothing is compiled while a
request waits, and a batch that no code was made for is computed as if there were none.
"""

from __future__ import annotations

import contextlib
import functools
import os
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from infinity_emb.storage.files import cache_dir

Compiler = str | Callable[..., Any]
Call = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]

# Versions of the code for one function: kinds of layers, each for one text and for several.
_MAX_VERSIONS = 8
_CACHE_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


class CompiledLayers:
    """The layers of a model, to be compiled and switched on and off; off at first.

    compiler: torch's name of it, or a function as torch.compile takes it.
    """

    def __init__(self, networks: Iterable[nn.Module], compiler: Compiler = "inductor") -> None:
        self._layers = [layer for network in networks for layer in _list_outermost(network)]
        call = _copy_function(_call_layer)
        options: dict[str, Any] = {"guard_filter_fn": _ignore_num_threads}
        self._compile: Call = torch.compile(
            call, fullgraph=True, dynamic=True, backend=compiler, options=options
        )
        run: Any = torch._dynamo.run  # it has no annotation
        self._run: Call = run(call)

    def __len__(self) -> int:
        return len(self._layers)

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Compile the layers for the batches that are computed inside the block; afterwards they are off.

        Such a batch raises what torch.compile raises, for example without a C++ compiler or Triton.
        """
        os.environ.setdefault(_CACHE_FOLDER, str(cache_dir(os.environ) / "compiled"))
        with _settings():
            try:
                self._install(self._compile)
                yield
            finally:
                self.disable()

    def enable(self) -> None:
        """Let the layers run compiled code for packed batches, as far as it exists."""
        self._install(self._run)

    def disable(self) -> None:
        """Compute all batches without compiled code."""
        for layer in self._layers:
            layer._compiled_call_impl = None

    def _install(self, call: Call) -> None:
        for layer in self._layers:
            # As `Module.compile` sets it: a copy of the layer, as in float32 on demand, does not have it.
            layer._compiled_call_impl = functools.partial(_dispatch, call, layer)


def _dispatch(call: Call, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if kwargs.get("packed_layout") is None:
        return _call_layer(layer, args, kwargs)
    return call(layer, args, kwargs)


def _call_layer(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return layer._call_impl(*args, **kwargs)


def _copy_function(function: Call) -> Call:
    """Return a copy with its own code object, to which torch attaches what it compiles for one model."""
    assert isinstance(function, types.FunctionType)
    return types.FunctionType(function.__code__.replace(), function.__globals__)


def _list_outermost(network: nn.Module) -> list[nn.Module]:
    """Return the layers of a network of transformers, without those inside of other layers."""
    layers = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
    inner = {id(module) for layer in layers for module in layer.modules() if module is not layer}
    return [layer for layer in layers if id(layer) not in inner]


def _ignore_num_threads(guards: list[Any]) -> list[bool]:
    """Keep all conditions of compiled code but those on global settings, such as the number of threads.

    That number differs between batches, and the code reads it; the others are the same for all batches.
    """
    return [guard.guard_type != "GLOBAL_STATE" for guard in guards]


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Change torch's settings while layers are compiled."""
    import torch._dynamo.config
    import torch._inductor.config
    import torch.fx.experimental._config

    configs: tuple[tuple[Any, dict[str, Any]], ...] = (
        # More versions raise an exception, because each batch must be one graph. A last layer whose hook
        # selects pooled tokens is a kind of layer.
        # Floats such as the scale of attention are constants of the code; else every call would make tensors
        # of them. A network with another scale in each of many layers exceeds the limit, and stays eager.
        (
            torch._dynamo.config,
            {
                "recompile_limit": _MAX_VERSIONS,
                "skip_nnmodule_hook_guards": False,
                "specialize_float": True,
            },
        ),
        # The code asks for the number of threads; it is compiled in this process, not in a pool of others.
        (torch._inductor.config, {"cpp.dynamic_threads": True, "compile_threads": 1}),
        # Sizes that happen to be equal in the first batch differ in others.
        (torch.fx.experimental._config, {"use_duck_shape": False}),
    )
    with contextlib.ExitStack() as stack:
        for config, changes in configs:
            stack.enter_context(config.patch(changes))
        yield
