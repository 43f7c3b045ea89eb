"""The exceptions of this package, one tree.

    ServingError
    ├── BadInput                what the caller sent cannot be served           400
    │   ├── InputTooLong        a text has too many tokens and may not be cut   400
    │   ├── MatryoshkaDimError  `dimensions` outside 1..dimension               400
    │   ├── ImageCorruption     an image cannot be decoded, or not safely       400
    │   ├── AudioCorruption     a sound cannot be decoded, or not safely        400
    │   ├── UnknownModel        no engine of that name                          400
    │   └── ModelNotDeployedError  the model cannot do that task or modality    400
    ├── Overloaded              the queue is full                               429
    ├── DeadlineExceeded        not answered within the request's time          504
    ├── BackendFailed           computing these items failed                    500
    │   └── DeviceOutOfMemory   they do not fit into the device's memory        500
    ├── EngineNotReady          not started, shutting down or dead              503
    ├── NameInUse               a model of that name is served or being changed 409
    ├── LoadFailed              a model that was asked for cannot be served     400
    └── StartupError            a model or an option cannot be served at all    (exit code 1)
        ├── ModelTooLarge       there is no memory for a model                  507
        └── DeviceFailed        what computes did not start                     (exit code 1)

A class exists only where some caller acts differently. Every message says what was wrong, the limit and
the way out. HTTP statuses are listed here for the reader; `server/errors.py` holds the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class ServingError(Exception):
    """Base of everything this package raises on purpose.

    position: which of the request's inputs is to blame, where it is one; the message then names it.
    """

    def __init__(self, reason: str, *, position: int | None = None) -> None:
        super().__init__(reason if position is None else f"input {position} {reason}")
        self.reason = reason
        self.position = position

    def moved_to(self, position: int) -> Self:
        """The same error about the input that the caller knows by another number."""
        moved = type(self)(self.reason, position=position)
        moved.__cause__ = self.__cause__
        return moved


class BadInput(ServingError, ValueError):
    """What the caller sent cannot be served; sending it again will fail again."""


class InputTooLong(BadInput):
    """A text has more tokens than the model takes and the caller asked not to cut it."""


class MatryoshkaDimError(BadInput):
    """The requested number of dimensions is not in 1..dimension of the model."""


class ImageCorruption(BadInput):
    """An image is broken, of an unknown format, too small or too large."""


class AudioCorruption(BadInput):
    """A sound is broken, of an unknown format, empty or too long."""


class UnknownModel(BadInput, IndexError):
    """No engine serves a model of that name. An IndexError too, as `array[name]` raises."""


class ModelNotDeployedError(BadInput):
    """The model is served but cannot do this task or modality."""


class Overloaded(ServingError):
    """The queue is full; the same request may be accepted later.

    retry_after_s: when there will probably be room.
    """

    def __init__(self, reason: str, *, position: int | None = None, retry_after_s: int = 1) -> None:
        super().__init__(reason, position=position)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ServingError):
    """The request was not answered within the time that it had; what remained of it was dropped."""


class BackendFailed(ServingError, RuntimeError):
    """The device could not compute these items; others are not affected."""


class DeviceOutOfMemory(BackendFailed):
    """A batch does not fit into the device's memory; a smaller one may."""


class EngineNotReady(ServingError, ValueError):
    """The engine is not started, is shutting down, or its worker died.

    A ValueError too: callers of `embed` on a stopped engine have always caught that.
    """


class StartupError(ServingError):
    """A model, an extra, a device or an option that cannot be served; raised before anything runs."""


class ModelTooLarge(StartupError):
    """There is no memory for the model; there may be when others are unloaded."""


class DeviceFailed(StartupError):
    """What computes did not start; it would not with another file of the model either."""


class NameInUse(ServingError):
    """A model of that name is served already, or is being loaded or unloaded at this moment."""


class LoadFailed(ServingError):
    """A model that the server was asked to load while it runs cannot be served."""


def one_line(error: BaseException, max_chars: int | None = None) -> str:
    """What it says without line breaks, cut after so many characters."""
    return " ".join(str(error).split())[:max_chars]
