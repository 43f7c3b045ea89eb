"""Faults that the fake backend injects."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from infinity_emb.errors import StartupError


@dataclass(frozen=True, slots=True)
class Faults:
    """Faults to inject. The `*_on` words select batches with a text that contains the word."""

    delay_s: float = 0.0  # duration of each batch
    fail_on: str = ""  # the batch raises
    die_on: str = ""  # the worker thread ends
    hang_on: str = ""  # the batch never returns
    wrong_count_on: str = ""  # each output misses its last entry
    nan_on: str = ""  # the text's vector is NaN
    nan_in_half_on: str = ""  # the text's vector is NaN unless computed in full precision
    load_delay_s: float = 0.0  # duration of loading
    load_fails: str = ""  # path of a file whose content is why loading fails; see `fail_to_load`


def parse_faults(settings: dict[str, str]) -> Faults:
    """Read the faults from text. Raise StartupError for an unknown one or a wrong value."""
    known = Faults.__dataclass_fields__
    unknown = settings.keys() - known.keys()
    if unknown:
        raise StartupError(f"debugengine has no fault {sorted(unknown)}; it has {sorted(known)}")
    delay_s, load_delay_s = (
        _parse_seconds(name, settings.pop(name, "0")) for name in ("delay_s", "load_delay_s")
    )
    return Faults(delay_s=delay_s, load_delay_s=load_delay_s, **settings)


def fail_to_load(reason: str) -> NoReturn:
    """Raise MemoryError, abort the process, never return, take all memory, or raise StartupError."""
    if reason == "memory":
        raise MemoryError
    if reason == "abort":
        os.abort()
    if reason == "hang":
        ctypes.PyDLL(None).pause()  # with the interpreter's lock, as native code may hold it
    taken = []
    while reason == "all memory":
        taken.append(np.ones(2**22))
    raise StartupError(f"told not to load: {reason}")


def _parse_seconds(name: str, text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise StartupError(f"debugengine cannot wait {name}={text!r}; give a number of seconds")
