"""The keys that clients may bring: those of the options, and those of a file that may change meanwhile.

Keeps digests, never keys, and writes neither to the log. Knows nothing of HTTP. Called by `auth.py`, from the
event loop alone.
"""

from __future__ import annotations

import codecs
import logging
import os
import secrets
import time
from collections.abc import Iterable
from hashlib import sha256
from typing import NamedTuple

from infinity_emb.config import ServerConfig
from infinity_emb.errors import StartupError

logger = logging.getLogger("infinity_emb")

# A changed file counts after this time at the latest.
CHECK_INTERVAL_S = 1.0


class ApiKeys:
    """All keys that count, of both sources."""

    def __init__(self, keys: Iterable[str], file: KeyFile | None = None) -> None:
        self._digests = _digests_of(key.encode() for key in keys)
        self._file = file

    @classmethod
    def of_config(cls, config: ServerConfig) -> ApiKeys | None:
        """None where everybody is let in. Raises StartupError for a file without keys."""
        file = KeyFile(config.api_key_file) if config.api_key_file else None
        return cls(config.api_key, file) if config.api_key or file else None

    @classmethod
    def of_admin(cls, config: ServerConfig) -> ApiKeys | None:
        """None where nobody may administer."""
        return cls([config.admin_key]) if config.admin_key else None

    def __contains__(self, given: bytes) -> bool:
        """Takes as long for a key that is nearly right, and for any of the keys, as for every other."""
        digest = sha256(given).digest()
        known = self._digests if self._file is None else (*self._digests, *self._file.digests())
        matches = [secrets.compare_digest(digest, each) for each in known]  # all, also behind the right one
        return any(matches)


class KeyFile:
    """The keys of a file, one a line; blank lines and those that begin with # say nothing.

    A file that is replaced or rewritten is read again; what is then unreadable or has no key leaves the keys
    as they were, so that a slip of an administrator locks nobody out. Raises StartupError where there never
    was a key.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._content = _read(path)
        self._checked_s = time.monotonic()
        self._is_failing = False

    def digests(self) -> tuple[bytes, ...]:
        """Of the keys that count now."""
        now_s = time.monotonic()
        if now_s - self._checked_s >= CHECK_INTERVAL_S:
            self._checked_s = now_s
            self._refresh()
        return self._content.digests

    def _refresh(self) -> None:
        is_changed = _stamp_of(self._path) != self._content.stamp
        try:
            if is_changed:
                self._content = _read(self._path)
        except StartupError as exc:
            if not self._is_failing:
                logger.error("%s; the keys that it had still count", exc)
            self._is_failing = True
            return
        if is_changed or self._is_failing:
            logger.info("read --api-key-file %r again: %d keys", self._path, len(self._content.digests))
        self._is_failing = False


class _Content(NamedTuple):
    """stamp: what changes whenever the file does."""

    stamp: tuple[int, ...] | None
    digests: tuple[bytes, ...]


def _read(path: str) -> _Content:
    # Stamped before: what is written while this reads is seen the next time.
    stamp = _stamp_of(path)
    try:
        with open(path, "rb") as file:
            lines = file.read().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as exc:
        raise StartupError(f"--api-key-file {path!r} cannot be read: {exc.strerror}") from exc
    digests = _digests_of(line for line in map(bytes.strip, lines) if line and not line.startswith(b"#"))
    if not digests:
        raise StartupError(f"--api-key-file {path!r} has no key; write one a line")
    return _Content(stamp, digests)


def _stamp_of(path: str) -> tuple[int, ...] | None:
    """None for what is not there. Follows links, which is how Kubernetes replaces the files of a secret."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _digests_of(keys: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(sha256(key).digest() for key in keys)
