"""Convert encoded inputs, outputs and errors to headers and arrays, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from infinity_emb import errors
from infinity_emb.cli.front_ends.frames import Array, Frame, Header
from infinity_emb.errors import BackendFailed, Overloaded, ServingError, one_line
from infinity_emb.items import Encoded, ForwardSpec, SparseVector
from infinity_emb.types import OutputName

_MAX_MESSAGE_CHARS = 2000


class ArrayWriter:
    """Collect the arrays of a frame, and refer to them by number; the same object is sent once."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []
        self._numbers: dict[int, int] = {}

    def add(self, array: Array) -> int:
        """Return the number of the array."""
        number = self._numbers.setdefault(id(array), len(self.arrays))
        if number == len(self.arrays):
            self.arrays.append(array)
        return number


def pack_items(items: Sequence[Encoded]) -> tuple[Header, list[Array]]:
    """Return the header and the arrays of encoded inputs.

    Raises BackendFailed for features that are neither arrays nor JSON values.
    """
    writer = ArrayWriter()
    writer.add(np.array([len(item.token_ids) for item in items], dtype=np.int32))
    writer.add(items[0].token_ids if len(items) == 1 else np.concatenate([item.token_ids for item in items]))
    specs: dict[ForwardSpec, int] = {}
    numbers = [specs.setdefault(item.spec, len(specs)) for item in items]
    header: Header = {
        "positions": [item.position for item in items],
        "specs": [(spec.modality, spec.task, spec.prompt_length, spec.outputs) for spec in specs],
    }
    if len(specs) > 1:
        header["spec_numbers"] = numbers
    if any(rest := [_pack_rest(item, writer) for item in items]):
        header["rest"] = rest
    return header, writer.arrays


def _pack_rest(item: Encoded, writer: ArrayWriter) -> Header:
    """Return the fields that few inputs have."""
    rest: Header = {}
    if item.type_ids is not None:
        rest["type_ids"] = writer.add(item.type_ids)
    if item.num_attended_tokens is not None:
        rest["num_attended_tokens"] = item.num_attended_tokens
    if item.features is not None:
        rest["features"] = {name: _pack_value(value, writer) for name, value in item.features.items()}
    if item.spans is not None:
        rest["spans"] = item.spans
    if item.query_vectors is not None:
        rest["query_vectors"] = writer.add(item.query_vectors)
    if item.media_tokens:
        rest["media_tokens"] = item.media_tokens
    return rest


def _pack_value(value: Any, writer: ArrayWriter) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {"array": writer.add(value)}
    if isinstance(value, list | tuple):
        return {"list": [_pack_value(each, writer) for each in value]}
    if isinstance(value, Mapping):
        return {"mapping": {name: _pack_value(each, writer) for name, each in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise BackendFailed(
        f"cannot hand {type(value).__name__} to the engine process, which this model's preprocessing returns;"
        " start the server with --api-servers 1"
    )


def unpack_items(frame: Frame) -> Iterator[Encoded]:
    """Yield the encoded inputs of a frame; their arrays are views of its memory."""
    header, arrays = frame
    lengths, token_ids = arrays[:2]
    specs = [
        ForwardSpec(modality, task, length, tuple(outputs))
        for modality, task, length, outputs in header["specs"]
    ]
    positions: list[int] = header["positions"]
    numbers = header.get("spec_numbers") or [0] * len(positions)
    rests = header.get("rest") or [{}] * len(positions)
    end = 0
    for length, position, number, rest in zip(lengths.tolist(), positions, numbers, rests, strict=True):
        start, end = end, end + length
        kwargs = {name: _UNPACK[name](value, arrays) for name, value in rest.items()}
        yield Encoded(token_ids[start:end], spec=specs[number], position=position, **kwargs)


def _unpack_value(value: Header, arrays: Sequence[Array]) -> Any:
    ((kind, held),) = value.items()
    if kind == "array":
        return arrays[held]
    if kind == "list":
        return [_unpack_value(each, arrays) for each in held]
    if kind == "mapping":
        return {name: _unpack_value(each, arrays) for name, each in held.items()}
    return held


_UNPACK: Mapping[str, Any] = {
    "type_ids": lambda number, arrays: arrays[number],
    "query_vectors": lambda number, arrays: arrays[number],
    "num_attended_tokens": lambda number, _: number,
    "media_tokens": lambda number, _: number,
    "spans": lambda spans, _: tuple(map(tuple, spans)),
    "features": lambda features, arrays: {
        name: _unpack_value(each, arrays) for name, each in features.items()
    },
}


def pack_outputs(outputs: Mapping[OutputName, Any]) -> tuple[Header, list[Array]]:
    """Return the header and the arrays of the outputs of a request."""
    header: Header = {}
    arrays: list[Array] = []
    for name, output in outputs.items():
        if isinstance(output, np.ndarray):
            header[name] = "array"
            arrays.append(output)
        elif isinstance(output[0], SparseVector):
            header[name] = "sparse"
            arrays += [_lengths(vector.indices for vector in output)]
            arrays += [np.concatenate([vector.indices for vector in output])]
            arrays += [np.concatenate([vector.values for vector in output])]
        else:
            header[name] = "ragged"
            arrays += [_lengths(output), np.concatenate(output)]
    return header, arrays


def unpack_outputs(header: Mapping[OutputName, str], arrays: Sequence[Array]) -> dict[OutputName, Any]:
    """Return outputs of a request; no two share memory."""
    remaining = iter(arrays)
    outputs: dict[OutputName, Any] = {}
    for name, kind in header.items():
        first = next(remaining)
        if kind == "array":
            outputs[name] = first
            continue
        ends = np.cumsum(first)[:-1]
        parts = np.split(next(remaining), ends)
        if kind == "sparse":
            outputs[name] = list(map(SparseVector, parts, np.split(next(remaining), ends)))
        else:
            outputs[name] = parts
    return outputs


def _lengths(entries: Iterable[Array]) -> Array:
    return np.array([len(entry) for entry in entries], dtype=np.int64)


def pack_error(error: Exception) -> Header:
    """Return an error for a header, without its traceback."""
    if not isinstance(error, ServingError):
        error = BackendFailed(f"{type(error).__name__}: {one_line(error)}")
    packed: Header = {
        "class": type(error).__name__,
        "reason": error.reason[:_MAX_MESSAGE_CHARS],
        "position": error.position,
    }
    if isinstance(error, Overloaded):
        packed["retry_after_s"] = error.retry_after_s
    return packed


def unpack_error(packed: Header) -> ServingError:
    """Return the error again."""
    cls = getattr(errors, packed["class"])
    kwargs = {"retry_after_s": packed["retry_after_s"]} if "retry_after_s" in packed else {}
    error: ServingError = cls(packed["reason"], position=packed["position"], **kwargs)
    return error
