"""Emulate one CUDA device, so that the code for CUDA runs on a machine without a GPU.

A tensor on the emulated device has the device `cuda:0` and keeps its numbers in a tensor on the host, or none
in one on the meta device. Each operator runs there. As on a GPU it raises for tensors of two devices, and in
addition writes down what would make the host wait for the device, and what is launched.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu import emulated_attention, emulated_graphs

DEVICE = torch.device("cuda", 0)
_MEMORY_BYTES = 140 * 10**9
# Operators whose output has a size that depends on values, or that return a number to the host.
_WAITING = frozenset(
    {
        "_local_scalar_dense",
        "equal",
        "nonzero",
        "nonzero_numpy",
        "masked_select",
        "bincount",
        "_unique",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "unique_dim_consecutive",
        "allclose",
    }
)
# Operators that take tensors of both places.
_ON_BOTH = frozenset(
    {"_pack_padded_sequence", "_pad_packed_sequence", "lstm", "_has_compatible_shallow_copy_type", "set_data"}
)


@dataclass(frozen=True, slots=True)
class Launch:
    """One operator on the device, on the tensors of the host that hold its numbers.

    moved_bytes: what it reads and writes, of a fused kernel, which is known without tensors.
    """

    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    arguments: tuple[Any, ...]
    moved_bytes: int | None = None


@dataclass(slots=True)
class Log:
    """Record what a piece of code does on the device."""

    waits: list[str] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    copied_bytes: dict[str, int] = field(default_factory=lambda: {"to device": 0, "to host": 0})
    num_copies: int = 0
    pinned: list[Tensor] = field(default_factory=list)  # kept, so that their addresses remain theirs

    def add_copy(self, direction: str, values: Tensor) -> None:
        """Count a copy between host and device."""
        self.num_copies += 1
        self.copied_bytes[direction] += values.numel() * values.element_size()

    def is_pinned(self, values: Tensor) -> bool:
        """Return whether a tensor on the host was allocated in pinned memory."""
        address = values.untyped_storage().data_ptr()
        return any(each.untyped_storage().data_ptr() == address for each in self.pinned)


_logs: list[Log] = []
_places = [torch.device("cpu")]  # of the numbers: the host, or meta for none


@contextlib.contextmanager
def record() -> Iterator[Log]:
    """Record what the block does on the emulated device."""
    _logs.append(Log())
    try:
        yield _logs[-1]
    finally:
        _logs.pop()


def add_launches(launches: list[Launch]) -> None:
    """Record launches of kernels that are not operators."""
    _logs[-1].launches.extend(launches)


class EmulatedTensor(Tensor):
    """A tensor that says it is on the emulated device. host: its numbers."""

    host: Tensor
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> EmulatedTensor:
        """Wrap a tensor of the host or of the meta device."""
        strides = host.stride() if host.layout is torch.strided else None
        # A view of a tensor from outside of inference mode is none of inference mode, even within it.
        with torch.inference_mode(host.is_inference()):
            tensor: Any = Tensor._make_wrapper_subclass(
                cls, host.shape, strides=strides, dtype=host.dtype, layout=host.layout, device=DEVICE
            )
        tensor.host = host
        return cast(EmulatedTensor, tensor)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Name the tensors inside, for torch.compile, which replaces them by its own while it traces."""
        return ["host"], None

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], context: None, shape: object, strides: object
    ) -> EmulatedTensor:
        """Wrap what `__tensor_flatten__` named."""
        return EmulatedTensor(inner["host"])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares the one that does nothing
        cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operator where the numbers are."""
        return _run(operator, args, kwargs or {})

    def __getitem__(self, key: Any) -> Any:
        """Index the numbers: Python's own indexing needs a build of torch for CUDA."""
        _check_index(self, key)
        host, host_key = self.host, _unwrap(key)
        found = host[host_key]
        emulated_graphs.note(lambda: host[host_key], [found], [host])
        log = _logs[-1]
        if not _shares_memory(found, [self.host]):
            log.launches.append(Launch("index", [self.host], [found], ()))
        return EmulatedTensor(found)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Assign to the numbers, as `__getitem__` reads them."""
        _check_index(self, key, is_assigned=True)
        if isinstance(value, Tensor) and not isinstance(value, EmulatedTensor) and value.dim():
            _wait("assignment from the host")
        host, host_key, host_value = self.host, _unwrap(key), _unwrap(value)
        host[host_key] = host_value
        emulated_graphs.note(lambda: host.__setitem__(host_key, host_value), [], [host])
        _logs[-1].launches.append(Launch("index_put", [self.host], [self.host], ()))

    # As with indexing, torch's own methods of these names need a build for CUDA.

    def contiguous(self, *args: Any, **kwargs: Any) -> Any:
        """Copy the numbers unless they are contiguous."""
        return _run(torch.ops.aten.contiguous.default, (self, *args), kwargs)

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Any:
        """Copy numbers into the tensor."""
        return _run(torch.ops.aten.copy_.default, (self, source), {"non_blocking": non_blocking})

    def nonzero(self, *, as_tuple: bool = False) -> Any:
        """Return the indices of nonzero numbers, and wait for their count."""
        operator = torch.ops.aten.nonzero_numpy if as_tuple else torch.ops.aten.nonzero
        return _run(operator.default, (self,), {})

    def __invert__(self) -> Any:
        """Negate."""
        return _run(torch.ops.aten.bitwise_not.default, (self,), {})

    def item(self) -> Any:
        """Wait for the device and return the only number."""
        return _run(torch.ops.aten._local_scalar_dense.default, (self,), {})

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), spec)

    def __repr__(self) -> str:  # type: ignore[override]  # torch's argument is its own
        return f"EmulatedTensor({self.host!r})"

    def tolist(self) -> Any:
        """Wait for the device and return the numbers."""
        _wait("tolist")
        return self.host.tolist()

    @property
    def data(self) -> Tensor:
        """Return the tensor without its history."""
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]  # a descriptor of C++
        self.host = value.host

    def data_ptr(self) -> int:
        """Return the address of the numbers; equal for tied weights."""
        return self.host.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Copy the numbers."""
        copied: Any = EmulatedTensor(self.host.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, requires_grad=self.requires_grad)
        return copied


class _Everywhere(TorchDispatchMode):
    """Also see operators without an emulated tensor: those that create one."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operator, args, kwargs or {})

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let torch.compile trace, without this mode; compiled code runs with it."""
        return True


class _Event:
    """An event of a stream on which everything has completed."""

    def record(self, stream: object = None) -> None:
        """Record nothing."""

    def synchronize(self) -> None:
        """Wait for nothing."""


@contextlib.contextmanager
def emulate_cuda(*, has_numbers: bool = True) -> Iterator[None]:
    """Add an emulated device, as new as an H100, to torch on this thread.

    has_numbers: else only shapes, dtypes and devices are computed, as fast for large models as for small.
    Models are moved to `cuda:0`, with the number: without it torch asks the driver for the current device.
    """
    cuda: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "emulated",
        "mem_get_info": lambda device=None: (_MEMORY_BYTES, _MEMORY_BYTES),
        "set_device": lambda device: None,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: None,
        "current_stream": lambda device=None: None,
        "get_rng_state": lambda device=0: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=0: None,
        "Event": _Event,
        "CUDAGraph": emulated_graphs.EmulatedGraph,
        "graph": emulated_graphs.capture,
        "graph_pool_handle": lambda: (0, 0),
    }
    future = torch.__future__
    overwrites, lifts = future.get_overwrite_module_params_on_conversion(), torch._C._only_lift_cpu_tensors()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(torch.cuda, **cuda))
        # A parameter moved to the device is another object; torch's default copies the C++ part alone.
        future.set_overwrite_module_params_on_conversion(True)
        stack.callback(future.set_overwrite_module_params_on_conversion, overwrites)
        # torch.tensor(…, device=…) makes a tensor on the host and copies it through the mode.
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        _places.append(torch.device("cpu" if has_numbers else "meta"))
        stack.callback(_places.pop)
        stack.enter_context(record())
        stack.enter_context(_Everywhere())
        yield


def _run(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    leaves = list(_flatten((args, *kwargs.values())))
    emulated = [leaf for leaf in leaves if isinstance(leaf, EmulatedTensor)]
    others = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, EmulatedTensor)]
    target = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
    is_to_device = bool(emulated) if target is None else target.type == "cuda"
    if not emulated and not is_to_device:
        return _run_on_host(operator, args, kwargs)
    name = operator._schema.name.partition("::")[2]
    if name == "to":
        return _convert(operator, args, kwargs)
    if name == "copy_" and others:
        return _copy(args[0], args[1], non_blocking=bool((args[2:] or [kwargs.get("non_blocking")])[0]))
    if name == "_to_copy" and bool(emulated) != is_to_device:
        return _move(args[0], kwargs, is_to_device=is_to_device)
    _check_devices(name, emulated, others)
    _note_waits(operator, name, args, kwargs)
    hosts = {id(each.host): each for each in emulated}
    host_args = _unwrap(args)
    host_kwargs = {key: _unwrap(value) for key, value in kwargs.items()}
    compute = _EMULATED.get(name, operator)
    outputs = compute(*host_args, **host_kwargs)
    tensors = [leaf for leaf in _flatten(outputs) if isinstance(leaf, Tensor)]
    host_tensors = [leaf for leaf in _flatten((host_args, *host_kwargs.values())) if isinstance(leaf, Tensor)]
    emulated_graphs.note(lambda: compute(*host_args, **host_kwargs), tensors, host_tensors)
    _log_launch(operator, name, [each.host for each in emulated], outputs, host_args)

    def wrap(leaf: Any) -> Any:
        # The lengths of sequences stay on the host.
        is_length = name in ("_pack_padded_sequence", "_pad_packed_sequence") and leaf is outputs[1]
        if not isinstance(leaf, Tensor) or is_length:
            return leaf
        return hosts.get(id(leaf)) if id(leaf) in hosts else EmulatedTensor(leaf)

    return _map(wrap, outputs)


def _add_product_with_gelu(bias: Tensor, rows: Tensor, weight: Tensor, *, use_gelu: bool) -> Tensor:
    """Compute GELU as the library for CUDA does: by tanh, before the product is rounded."""
    assert use_gelu
    added = torch.addmm(bias.float(), rows.float(), weight.float())
    return torch.nn.functional.gelu(added, approximate="tanh").to(rows.dtype)


_EMULATED: dict[str, Callable[..., Any]] = {
    "_varlen_attn": emulated_attention.attend,
    "_addmm_activation": _add_product_with_gelu,
}


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to each element of an operator's arguments, which nest only lists and tuples."""
    if isinstance(value, (list, tuple)):
        return type(value)([_map(function, each) for each in value])
    return function(value)


def _flatten(value: Any) -> Iterator[Any]:
    """Yield each element of an operator's arguments."""
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _flatten(each)
    else:
        yield value


def _convert(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `Tensor.to`, in inference mode one operator with many signatures, as the copy that it comes to."""
    names = [argument.name for argument in operator._schema.arguments]
    options = dict(zip(names, args, strict=False)) | kwargs
    source, other = options.pop("self"), options.pop("other", None)
    if other is not None:
        options |= {"device": other.device, "dtype": other.dtype}
    device, dtype = options.get("device") or source.device, options.get("dtype") or source.dtype
    if (device.type, dtype) == (source.device.type, source.dtype) and not options.get("copy"):
        return source
    kept = {name: options[name] for name in ("non_blocking", "memory_format") if options.get(name)}
    return _run(torch.ops.aten._to_copy.default, (source,), kept | {"device": device, "dtype": dtype})


def _run_on_host(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not kwargs.get("pin_memory"):
        return operator(*args, **kwargs)
    outputs = operator(*args, **(kwargs | {"pin_memory": False}))
    _logs[-1].pinned.append(outputs)
    return outputs


def _copy(target: Tensor, source: Tensor, *, non_blocking: bool) -> Any:
    """Copy numbers between host and device into an existing tensor."""
    is_to_host = isinstance(source, EmulatedTensor)
    on_host = target if is_to_host else source
    if not on_host.dim() and not is_to_host:
        return target.fill_(source.item())
    if not (non_blocking and _logs[-1].is_pinned(on_host)):
        _wait("copy to the host" if is_to_host else "copy from pageable memory")
    _logs[-1].add_copy("to host" if is_to_host else "to device", on_host)
    numbers: Tensor = _unwrap(source)
    if numbers.device.type != "meta":
        _unwrap(target).copy_(numbers)
    elif is_to_host:
        target.fill_(1)
    return target


def _move(source: Tensor, kwargs: dict[str, Any], *, is_to_device: bool) -> Any:
    """Copy numbers between host and device into a new tensor, perhaps of another dtype."""
    options = {name: value for name, value in kwargs.items() if name in ("dtype", "memory_format")}
    if not is_to_device:
        _wait("copy to the host")
        _logs[-1].add_copy("to host", source)
        return torch.ops.aten._to_copy(_unwrap(source), **options)
    if not (kwargs.get("non_blocking") and _logs[-1].is_pinned(source)):
        _wait("copy from pageable memory")
    _logs[-1].add_copy("to device", source)
    moved = torch.ops.aten._to_copy(source, device=_places[-1], **options)
    emulated_graphs.note(lambda: torch.ops.aten._to_copy(source, **options), [moved], [])
    return EmulatedTensor(moved)


def _wait(reason: str) -> None:
    if emulated_graphs.is_capturing():
        raise RuntimeError(f"operation not permitted when stream is capturing: {reason}")
    _logs[-1].waits.append(f"{reason} in {_find_caller()}")


def _find_caller() -> str:
    """Return the innermost function that is neither of torch nor of this module."""
    frame = inspect.currentframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.name != Path(__file__).name and "/site-packages/torch/" not in str(path):
            return f"{path.stem}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "torch"


def _unwrap(value: Any) -> Any:
    """Replace emulated tensors, also within lists, by their numbers, and the device by theirs."""
    if isinstance(value, EmulatedTensor):
        return value.host
    if isinstance(value, torch.device) and value.type == "cuda":
        return _places[-1]
    if isinstance(value, (list, tuple)):
        return type(value)([_unwrap(each) for each in value])
    return value


def _check_devices(name: str, emulated: list[EmulatedTensor], others: list[Tensor]) -> None:
    """Raise RuntimeError for tensors of two devices; a single number on the host may meet any tensor."""
    if not emulated or name in _ON_BOTH or all(each.dim() == 0 for each in others):
        return
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        _wait("index on the host")
        return
    raise RuntimeError(f"{name}: expected all tensors on one device, found cuda:0 and {others[0].device}")


def _note_waits(operator: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if name in _WAITING:
        _wait(name)
    elif name == "repeat_interleave" and operator._overloadname in ("Tensor", "self_Tensor"):
        if kwargs.get("output_size") is None:
            _wait(name)
    elif name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1]):
        _wait("index by a mask")


def _check_index(values: EmulatedTensor, key: Any, *, is_assigned: bool = False) -> None:
    """Write down indexes that wait for the device; a mask whose values are assigned does not."""
    for each in key if isinstance(key, tuple) else (key,):
        is_on_host = isinstance(each, Tensor) and not isinstance(each, EmulatedTensor) and each.dim()
        if isinstance(each, list) or is_on_host:
            _wait("index on the host")
        elif isinstance(each, EmulatedTensor) and each.dtype == torch.bool and not is_assigned:
            _wait("index by a mask")
        elif isinstance(each, EmulatedTensor) and not each.dim():
            _wait("index by a number on the device")


def _log_launch(
    operator: Any, name: str, inputs: list[Tensor], outputs: Any, arguments: tuple[Any, ...]
) -> None:
    tensors = [leaf for leaf in _flatten(outputs) if isinstance(leaf, Tensor)]
    if not operator._schema.returns:
        tensors = inputs[:1]  # which it changes
    if tensors and all(0 in each.shape for each in tensors):
        return  # torch launches nothing for tensors without elements
    is_view = not operator._schema.is_mutable and all(_shares_memory(each, inputs) for each in tensors)
    if tensors and not is_view and not name.startswith(("empty", "new_empty")):
        _logs[-1].launches.append(Launch(name, inputs, tensors, arguments))


def _shares_memory(values: Tensor, inputs: list[Tensor]) -> bool:
    if values.layout is not torch.strided:
        return False
    storage = values.untyped_storage()._cdata
    return any(each.layout is torch.strided and each.untyped_storage()._cdata == storage for each in inputs)
