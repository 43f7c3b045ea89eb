"""Read a user's own calibration texts: one per line, within limits on their number and length."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TextIO

from infinity_emb.errors import StartupError

RECOMMENDED_NUM_TEXTS = 100
MAX_TEXTS = 10_000
MAX_TEXT_CHARS = 100_000

logger = logging.getLogger("infinity_emb")


def read_texts(path: Path) -> list[str]:
    """Read a UTF-8 file with one text per line; blank lines are skipped.

    Raises StartupError if the file cannot be read, is not UTF-8, holds fewer than 2 different texts, over
    10,000 texts, or one of over 100,000 characters. Logs a warning below 100 different texts.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:  # drops a byte order mark
            texts = _read_lines(file, path)
    except OSError as exc:
        raise StartupError(
            f"cannot read the calibration file {str(path)!r} ({exc.strerror or exc}); give a text file"
            " with one text per line"
        ) from exc
    except UnicodeDecodeError as exc:
        raise StartupError(
            f"the calibration file {str(path)!r} is not UTF-8 ({exc.reason}); save it in that encoding"
        ) from exc
    _check_variety(texts, path)
    return texts


def _read_lines(file: TextIO, path: Path) -> list[str]:
    """Read no further than the limits allow, as the file may have been given by mistake."""
    texts: list[str] = []
    while line := file.readline(MAX_TEXT_CHARS + 1):
        if len(line.rstrip("\n")) > MAX_TEXT_CHARS:
            raise StartupError(
                f"the calibration file {str(path)!r} has a line of over {MAX_TEXT_CHARS} characters, the"
                " limit; give one text per line"
            )
        if text := line.strip():
            texts.append(text)
        if len(texts) > MAX_TEXTS:
            raise StartupError(
                f"the calibration file {str(path)!r} has over {MAX_TEXTS} texts, the limit; give a random"
                " sample of them"
            )
    return texts


def _check_variety(texts: list[str], path: Path) -> None:
    num_different = len(set(texts))
    if num_different < 2:  # every range would be empty and every vector the same
        raise StartupError(
            f"the calibration file {str(path)!r} has {num_different} different texts, at least 2 are needed;"
            f" give {RECOMMENDED_NUM_TEXTS} or more, like those that will be embedded, one per line"
        )
    if num_different < RECOMMENDED_NUM_TEXTS:
        logger.warning(
            "calibration file %s has only %d different texts; with fewer than %d, many values of other texts"
            " are outside the ranges and clipped",
            path,
            num_different,
            RECOMMENDED_NUM_TEXTS,
        )
