"""Exceptions of this package.

    ServingError
    ├── BadInput                   the request cannot be served as it is          400
    │   ├── InputTooLong           too many tokens, and truncation is off         400
    │   ├── MatryoshkaDimError     `dimensions` outside 1..embedding dimension    400
    │   ├── ImageCorruption        an image cannot be decoded safely              400
    │   ├── AudioCorruption        an audio clip cannot be decoded safely         400
    │   ├── UnknownModel           no model of that name is served                404
    │   ├── ModelNotNamed          no model is named, and several could be meant  400
    │   └── ModelNotDeployedError  the model does not support this task           400
    ├── Overloaded                 the queue is full                              429
    ├── DeadlineExceeded           no result within the request's timeout         504
    ├── BackendFailed              computing these items failed                   500
    │   └── DeviceOutOfMemory      a batch does not fit into device memory        500
    ├── EngineNotReady             not started, shutting down, or failed          503
    ├── NameInUse                  the name is taken, or its model is changing    409
    ├── LoadFailed                 a requested model could not be loaded          400
    └── StartupError               a model or an option cannot be served          exit code 1
        ├── ModelTooLarge          not enough memory for the model                507
        └── DeviceFailed           the device or its library did not start        exit code 1

A class exists only where some caller acts differently. Every message states the problem, the limit and the
remedy. HTTP statuses are listed here for the reader; `server/responses/errors.py` holds the table.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


# The position of a ranking's query, which is not one of the request's numbered inputs.
QUERY_POSITION = -1


class ServingError(Exception):
    """Base of all exceptions that this package raises deliberately.

    position: index of the input that caused the error, if it was a single one, or QUERY_POSITION; the
    message names it.
    """

    def __init__(self, reason: str, *, position: int | None = None) -> None:
        subject = "" if position is None else "query " if position == QUERY_POSITION else f"input {position} "
        super().__init__(subject + reason)
        self.reason = reason  # the message without the input
        self.position = position

    def at_position(self, position: int) -> Self:
        """Return a copy that names the input at `position` of the request."""
        located = type(self)(self.reason, position=position)
        located.__cause__ = self.__cause__ or self
        return located


class BadInput(ServingError, ValueError):
    """The request cannot be served as it is; retrying it will fail again."""


class InputTooLong(BadInput):
    """A text exceeds the token limit and truncation is off."""


class MatryoshkaDimError(BadInput):
    """The requested number of dimensions is outside 1..embedding dimension."""


class ImageCorruption(BadInput):
    """An image is corrupt, of an unknown format, too small or too large."""


class AudioCorruption(BadInput):
    """An audio clip is corrupt, of an unknown format, empty or too long."""


class UnknownModel(BadInput, IndexError):
    """No model of that name is served. Also an IndexError, as raised by `array[name]`.

    name: as the request has it.
    """

    def __init__(self, reason: str, *, position: int | None = None, name: str = "") -> None:
        super().__init__(reason, position=position)
        self.name = name


class ModelNotNamed(BadInput):
    """The request names no model, and several could be meant."""


class ModelNotDeployedError(BadInput):
    """The model does not support this task or modality."""


class Overloaded(ServingError):
    """The queue is full; the same request may be accepted later.

    retry_after_s: estimated number of seconds until the queue has room.
    """

    def __init__(self, reason: str, *, position: int | None = None, retry_after_s: int = 1) -> None:
        super().__init__(reason, position=position)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ServingError):
    """The request timed out; its remaining items were dropped."""


class BackendFailed(ServingError, RuntimeError):
    """Computing these items failed; other items are not affected."""


class DeviceOutOfMemory(BackendFailed):
    """A batch does not fit into device memory; a smaller one may."""


class EngineNotReady(ServingError, ValueError):
    """The engine is not started, is shutting down, or its workers failed.

    Also a ValueError, which callers of `embed` on a stopped engine catch since infinity_emb 0.0.77.
    """


class StartupError(ServingError):
    """A model, extra, device or option cannot be served; raised before serving starts."""


class ModelTooLarge(StartupError):
    """There is not enough memory for the model; unloading others may help."""


class DeviceFailed(StartupError):
    """The device or its library did not start; another model file would not help."""


class NameInUse(ServingError):
    """A model of that name is served, or is being loaded or unloaded."""


class LoadFailed(ServingError):
    """A model requested through the admin API could not be loaded."""


def quote_all(names: Iterable[str]) -> str:
    """Join names for a message, each in quotes: 'a', 'b'."""
    return ", ".join(map(repr, names))


@contextlib.contextmanager
def require_extra(user: str, extra: str) -> Iterator[None]:
    """Turn an ImportError inside the block into a StartupError that names the extra to install."""
    try:
        yield
    except ImportError as exc:
        raise StartupError(
            f"{user} needs a package that is not installed ({exc});"
            f" install it with: pip install 'infinity-emb[{extra}]'"
        ) from exc


# Escape sequences that torch, among others, writes into its messages.
_COLORS = re.compile(r"\x1b\[[0-9;]*m")


def one_line(message: object, max_chars: int | None = None) -> str:
    """Return a message on one line, without a terminal's colors, cut to `max_chars` characters."""
    return " ".join(_COLORS.sub("", str(message)).split())[:max_chars]
