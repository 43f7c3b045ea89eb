"""Decode media in a child process, since native code can be stopped only by killing its process.

The processes exchange lines of JSON and bytes, not pickles: a file that takes over the decoder must not take
over the server. The child runs `main`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from infinity_emb.concurrency import KillTimer, prepare_isolated_child, start_isolated_python
from infinity_emb.errors import (
    AudioCorruption,
    BadInput,
    ImageCorruption,
    ModelNotDeployedError,
    ServingError,
)
from infinity_emb.preprocessing.media.decode import Samples, decode_audio, decode_image

DECODE_TIMEOUT_S = 10.0
MAX_MEMORY_BYTES = 4 * 2**30

Pixels = npt.NDArray[np.uint8]
Reserve = Callable[[float], None]

_ERRORS = {error.__name__: error for error in (ImageCorruption, AudioCorruption, ModelNotDeployedError)}
_PROGRAM = "from infinity_emb.preprocessing.media.decoder import main; main()"


class Decoder(Protocol):
    """Decode files; see `decode_image` and `decode_audio`."""

    def decode_image(self, data: bytes, reserve: Reserve) -> Pixels:
        """Return (H, W, 3) RGB."""

    def decode_audio(self, data: bytes, sampling_rate: int, reserve: Reserve) -> Samples:
        """Return (N,) samples."""


class DecoderProcess:
    """A decoder in a child process that starts with the first file, and again after it was killed.

    Used by one thread at a time, except for `kill`.
    """

    def __init__(self, timeout_s: float = DECODE_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._is_killed = False

    def decode_image(self, data: bytes, reserve: Reserve) -> Pixels:
        """Implement `Decoder`; also raise ImageCorruption for a file that takes too long."""
        pixels: Pixels = self._decode({"kind": "image"}, data, reserve, ImageCorruption)
        return pixels

    def decode_audio(self, data: bytes, sampling_rate: int, reserve: Reserve) -> Samples:
        """Implement `Decoder`; also raise AudioCorruption for a file that takes too long."""
        job = {"kind": "audio", "sampling_rate": sampling_rate}
        samples: Samples = self._decode(job, data, reserve, AudioCorruption)
        return samples

    def kill(self) -> None:
        """Kill the process, even while it decodes a file; decoding then raises BadInput."""
        self._is_killed = True
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """Kill the process and wait for its end."""
        if (process := self._process) is not None:
            self._process = None
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                with contextlib.suppress(OSError):  # flushes what was not written yet
                    stream.close()

    def _decode(
        self, job: Mapping[str, object], data: bytes, reserve: Reserve, error_type: type[BadInput]
    ) -> npt.NDArray[Any]:
        if self._is_killed:
            self.close()
            self._is_killed = False
        process = self._process = self._process or start_isolated_python(_PROGRAM)
        timer = KillTimer(self._timeout_s, process.kill)
        timer.start()
        try:
            return _exchange(process, job, data, reserve)
        except (OSError, json.JSONDecodeError) as exc:  # the process has ended
            self.close()
            reason = (
                f"decoding takes over {self._timeout_s:g} s" if timer.has_fired else "its decoder crashed"
            )
            raise error_type(f"cannot be decoded: {reason}; send a smaller or simpler file") from exc
        finally:
            timer.cancel()


def _exchange(
    process: subprocess.Popen[bytes], job: Mapping[str, object], data: bytes, reserve: Reserve
) -> npt.NDArray[Any]:
    """Send a file and return its decoded values. Raises OSError or JSONDecodeError if the process ends."""
    stdin: Any = process.stdin
    stdout: Any = process.stdout
    _write_line(stdin, {**job, "num_bytes": len(data)})
    stdin.write(data)
    stdin.flush()
    refusal: ServingError | None = None
    while "amount" in (answer := _read_line(stdout)):
        try:
            reserve(float(answer["amount"]))
        except ServingError as exc:
            refusal = exc
        _write_line(stdin, {"is_reserved": refusal is None})
        stdin.flush()
    if refusal is not None:
        raise refusal
    if "error" in answer:
        raise _ERRORS.get(answer["error"], BadInput)(str(answer["reason"]))
    array = np.empty(answer["shape"], dtype=np.uint8 if job["kind"] == "image" else np.float32)
    if stdout.readinto(array.data.cast("B")) != array.nbytes:
        raise OSError("the decoder ended")
    return array


def _write_line(stream: IO[bytes], message: Mapping[str, object]) -> None:
    stream.write(json.dumps(message).encode() + b"\n")


def _read_line(stream: IO[bytes]) -> dict[str, Any]:
    """Return the next message. Raises JSONDecodeError at the end of the stream."""
    message: dict[str, Any] = json.loads(stream.readline())
    return message


def main() -> None:
    """Decode files from standard input until it ends, or until nobody reads the answers."""
    replies = os.fdopen(prepare_isolated_child(), "wb")
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    files = sys.stdin.buffer
    try:
        while (line := files.readline()).endswith(b"\n"):
            _serve(json.loads(line), files, replies)
            replies.flush()
    except BrokenPipeError:  # the server has ended; Python would try to send the rest at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), replies.fileno())


def _serve(job: dict[str, Any], files: IO[bytes], replies: IO[bytes]) -> None:
    def reserve(amount: float) -> None:
        _write_line(replies, {"amount": amount})
        replies.flush()
        if not _read_line(files)["is_reserved"]:
            raise BadInput("is not reserved")

    data = files.read(job["num_bytes"])
    try:
        if job["kind"] == "image":
            array: npt.NDArray[Any] = np.asarray(decode_image(data, reserve=reserve))
        else:
            array = decode_audio(data, sampling_rate=job["sampling_rate"], reserve=reserve)
    except ServingError as exc:
        _write_line(replies, {"error": type(exc).__name__, "reason": exc.reason})
        return
    array = np.ascontiguousarray(array)
    _write_line(replies, {"shape": array.shape})
    replies.write(array.data)
