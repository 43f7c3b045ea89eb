"""Tell which kernels torch.compile would launch on a GPU, on a machine without one.

Inductor lowers the traced layer for an emulated H200 and decides what it fuses; its code is neither written
nor run, so that neither Triton nor a GPU is needed. The layer's operators run on the emulated device instead.
Uses internals of torch 2.13.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._inductor import compile_fx, debug, graph, ir, scheduler, virtualized
from torch._inductor.runtime.hints import DeviceProperties
from torch.overrides import TorchFunctionMode

from benchmarks.gpu.emulated_cuda import DEVICE, EmulatedTensor, Launch, add_launches, record

Sizes = dict[Any, int]  # by the symbols of Inductor

PRODUCTS = ("linear", "addmm", "mm", "bmm", "matmul", "addmm_", "_addmm_activation", "add_product")
ATTENTION = "_varlen_attn"
_LIMITS = {"regs_per_multiprocessor": 65_536, "max_threads_per_multi_processor": 2048, "warp_size": 32}
_H200 = DeviceProperties(type="cuda", index=0, multi_processor_count=132, cc=90, major=9, **_LIMITS)
_PROPERTIES = SimpleNamespace(
    name="NVIDIA H200", gcnArchName="", major=9, minor=0, multi_processor_count=132, **_LIMITS
)


class FusingCompiler:
    """Compile for torch.compile: run the traced operators, and log the kernels that Inductor makes of them.

    Products and attention are kernels of libraries, logged as they are; all others as Inductor fuses them.
    """

    def __init__(self) -> None:
        self.num_compiled = 0

    def __call__(self, module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.num_compiled += 1
        examples = [node.meta["example_value"] for node in module.graph.nodes if node.op == "placeholder"]
        lowered = _lower(module, [_to_plain(example) for example in examples])
        module.graph.eliminate_dead_code()  # as Inductor does
        module.recompile()

        def run(*args: Any) -> Any:
            with record() as log:
                outputs = module(*args)
            library = [each for each in log.launches if each.name in (*PRODUCTS, ATTENTION)]
            fused = _list_fused(lowered, _find_sizes(examples, args))
            if len(library) != _count_library_kernels(lowered):
                raise RuntimeError("Inductor launches other products or attention than eager")
            add_launches([*library, *fused])
            return outputs

        return run


def _to_plain(example: Any) -> Any:
    """Return a tensor of torch's own emulation for one of ours."""
    if not isinstance(example, EmulatedTensor):
        return example
    host: Any = example.host
    with host.fake_mode:
        return torch.empty_strided(host.shape, host.stride(), dtype=host.dtype, device=DEVICE)


def _lower(module: torch.fx.GraphModule, inputs: list[Any]) -> graph.GraphLowering:
    """Let Inductor transform and schedule a traced layer. Returns its graph with the fused nodes."""
    lowered: list[graph.GraphLowering] = []

    def schedule(traced: torch.fx.GraphModule, examples: Sequence[Any], **options: Any) -> Callable[..., Any]:
        lowered.append(_schedule(traced, examples))
        return traced.forward

    inner: Any = schedule  # its type is for Inductor's own
    with _emulate_inductor_device():
        compile_fx.compile_fx(module, inputs, inner_compile=inner)
    return lowered[-1]


def _schedule(traced: torch.fx.GraphModule, examples: Sequence[Any]) -> graph.GraphLowering:
    """Do what Inductor does before it writes code."""
    fake_mode: Any = detect_fake_mode(examples)
    compile_fx.record_original_output_strides(traced)
    handlers: Any = virtualized.V
    with handlers.set_fake_mode(fake_mode):
        compile_fx._recursive_post_grad_passes(traced, is_inference=True)
        lowered = graph.GraphLowering(
            traced, example_inputs=examples, shape_env=fake_mode.shape_env, is_inference=True
        )
        lowered.freeze_runtime_asserts()
        with (
            debug.DebugContext(),
            handlers.set_graph_handler(lowered),
            handlers.set_extern_kernel_nodes([]),
        ):
            lowered.run(*examples)
            lowered.init_wrapper_code()
            lowered._update_scheduler()
    return lowered


@contextlib.contextmanager
def _emulate_inductor_device() -> Iterator[None]:
    """Let Inductor ask for a device, a driver and Triton, and make it believe in an H200."""
    with (
        mock.patch.object(DeviceProperties, "create", return_value=_H200),
        # torch's own emulation would otherwise create tensors on the device.
        mock.patch.object(torch.cuda, "is_available", return_value=False),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=_PROPERTIES),
        mock.patch.object(scheduler, "has_triton", return_value=True),
        _Indexing(),
    ):
        yield


class _Indexing(TorchFunctionMode):
    """Index by operators: Python's own indexing needs a build of torch for CUDA."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.__getitem__ and args[0].device.type == "cuda":
            return _index(*args)
        if function is torch.Tensor.copy_ and args[0].device.type == "cuda":
            return torch.ops.aten.copy_.default(*args)
        return function(*args, **(kwargs or {}))


def _index(values: Tensor, key: Any) -> Tensor:
    keys = key if isinstance(key, tuple) else (key,)
    num_left_out = values.dim() - sum(each is not None and each is not Ellipsis for each in keys)
    dim = 0
    for each in keys:
        if each is Ellipsis:
            dim += num_left_out
        elif each is None:
            values, dim = values.unsqueeze(dim), dim + 1
        elif isinstance(each, slice):
            start, end, step = each.start or 0, 2**62 if each.stop is None else each.stop, each.step or 1
            values, dim = torch.ops.aten.slice.Tensor(values, dim, start, end, step), dim + 1
        elif isinstance(each, Tensor):
            values, dim = torch.ops.aten.index.Tensor(values, [None] * dim + [each]), dim + 1
        else:
            values = values.select(dim, each)
    return values


def _find_sizes(examples: Sequence[Any], args: Sequence[Any]) -> Sizes:
    """Return the value of each symbol in one call."""
    sizes: Sizes = {}
    for example, arg in zip(examples, args, strict=True):
        pairs = (
            zip(example.shape, arg.shape, strict=True) if isinstance(example, Tensor) else [(example, arg)]
        )
        for symbolic, value in pairs:
            if isinstance(symbolic, torch.SymInt) and symbolic.node.expr.is_symbol:
                sizes[symbolic.node.expr] = int(value)
    return sizes


def _list_fused(lowered: graph.GraphLowering, sizes: Sizes) -> list[Launch]:
    """Return the fused kernels for tensors of these sizes; each reads and writes a buffer once."""

    def evaluate(expression: Any, **options: Any) -> int:
        return int(expression if isinstance(expression, int) else expression.subs(sizes))

    handlers: Any = virtualized.V
    with (
        handlers.set_graph_handler(lowered),
        mock.patch.object(lowered.sizevars, "optimization_hint", evaluate),
    ):
        return [
            Launch("fused", [], [], (), sum(node.get_read_write_buffer_accesses(True, True).values()))
            for node in lowered.scheduler.nodes
            if not isinstance(node, (scheduler.ExternKernelSchedulerNode, scheduler.NopKernelSchedulerNode))
        ]


def _count_library_kernels(lowered: graph.GraphLowering) -> int:
    """Count the kernels that Inductor takes from libraries; parts of several outputs are not kernels."""
    return sum(
        isinstance(node, scheduler.ExternKernelSchedulerNode) and not isinstance(node.node, ir.MultiOutput)
        for node in lowered.scheduler.nodes
    )
