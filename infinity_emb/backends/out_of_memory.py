"""Recognize out-of-memory errors of torch and of the libraries that compute in its place."""

from __future__ import annotations

import errno
import re

from infinity_emb.errors import ServingError

# Few libraries have an exception class for it, so messages are matched. The patterns are narrow: OpenVINO
# also runs out of registers, or "can't allocate memory for dynamic layout", while memory is free.
_MESSAGES = re.compile(
    r"(?<![a-z])out[ _]of[ _]((host|device)[ _])?memory\b(?! bounds)"  # torch and onnxruntime on GPUs, OpenCL
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory"  # torch on a CPU
    r"|invalid buffer size: [\d.]+ [KMGT]i?B"  # torch on Metal: more than it allocates at once
    r"|available memory of \d+ is smaller"  # onnxruntime
    r"|failed to allocated? (memory|\d+ bytes)|\bcan ?not allocate \d+ bytes"  # all but torch
    r"|exceeded max size of memory|CL_OUT_OF_RESOURCES"  # OpenVINO on a GPU
    r"|ALLOC_FAILED|ALLOCATION_FAIL|cudaErrorMemoryAllocation"  # cuBLAS, cuDNN, OpenCL, CUDA
    r"|\bbad[_ ]?alloc(ation)?\b"  # C++, on Linux and on Windows
    r"|cannot allocate memory \((os error )?12\)",  # mapping a file
    re.IGNORECASE,
)


def is_out_of_memory(exc: BaseException) -> bool:
    """Return whether an exception, or one that caused it, reports a lack of memory."""
    if isinstance(exc, MemoryError) or type(exc).__name__ == "OutOfMemoryError" or _has_message(exc):
        return True
    origin = exc.__cause__ or exc.__context__
    return origin is not None and is_out_of_memory(origin)


def _has_message(exc: BaseException) -> bool:
    if isinstance(exc, OSError):
        return exc.errno == errno.ENOMEM
    # onnxruntime's classes have no common base. Our own errors quote others, which are matched as their
    # cause.
    is_of_library = isinstance(exc, RuntimeError) or type(exc).__module__.startswith("onnxruntime.")
    return is_of_library and not isinstance(exc, ServingError) and bool(_MESSAGES.search(str(exc)))
