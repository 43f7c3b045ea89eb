"""Read a file of API keys, and read it again when it changes."""

from __future__ import annotations

import codecs
import logging
import os
import re
import time
from hashlib import sha256
from typing import TypeAlias

from infinity_emb.errors import StartupError

logger = logging.getLogger("infinity_emb")

# How often the file is checked. A change takes effect once two checks agree.
CHECK_INTERVAL_S = 1.0
# A shorter key invalidates the whole file: it may be the beginning of a key that is being written.
MIN_KEY_CHARS = 8
_COMMENT = re.compile(rb"(^|\s)#.*")

Stamp: TypeAlias = "tuple[int, ...] | None"


class KeyFile:
    """The keys of a file, one per line; blank lines and comments are ignored.

    A changed file is read once it has not changed for CHECK_INTERVAL_S. If it is invalid then, the previous
    keys stay valid, so that a mistake locks nobody out.
    reserved: digest of a key that must not be in the file.
    Raises StartupError if the file cannot be used at first.
    """

    def __init__(self, path: str, *, reserved: bytes | None = None) -> None:
        self._path = path
        self._reserved = reserved
        # Before reading, so that the next check notices a later change.
        self._stamp = self._seen_stamp = read_stamp(path)
        self._digests = self._read()
        self._checked_s = time.monotonic()
        self._is_failing = False

    def digests(self) -> frozenset[bytes]:
        """Return the digests of the valid keys."""
        now_s = time.monotonic()
        if now_s - self._checked_s >= CHECK_INTERVAL_S:
            self._checked_s = now_s
            self._check()
        return self._digests

    def _check(self) -> None:
        stamp = read_stamp(self._path)
        is_settled = stamp == self._seen_stamp or _is_old(stamp)
        self._seen_stamp = stamp
        if is_settled and (stamp != self._stamp or self._is_failing):
            self._refresh(stamp)

    def _refresh(self, stamp: Stamp) -> None:
        try:
            digests = self._read()
        except StartupError as exc:
            if not self._is_failing:
                logger.error("%s; the previous keys stay valid", exc)
            self._is_failing = True
            return
        if read_stamp(self._path) == stamp:  # else it is being written; the next check reads it
            self._stamp, self._digests, self._is_failing = stamp, digests, False
            logger.info("read --api-key-file %r again: %d keys", self._path, len(digests))

    def _read(self) -> frozenset[bytes]:
        try:
            with open(self._path, "rb") as file:
                lines = file.read().removeprefix(codecs.BOM_UTF8).splitlines()
        except OSError as exc:
            raise self._error(f"cannot be read: {exc.strerror}") from exc
        keys = {number: _COMMENT.sub(b"", line).strip() for number, line in enumerate(lines, 1)}
        for number, key in keys.items():
            if key and len(key.decode(errors="replace")) < MIN_KEY_CHARS:
                raise self._error(f"has a key of less than {MIN_KEY_CHARS} characters in line {number}")
        digests = frozenset(hash_key(key) for key in keys.values() if key)
        if not digests:
            raise self._error("has no key; write one per line")
        if self._reserved in digests:
            raise self._error("has the --admin-key, which must differ from every API key")
        return digests

    def _error(self, problem: str) -> StartupError:
        return StartupError(f"--api-key-file {self._path!r} {problem}")


def read_stamp(path: str) -> Stamp:
    """Return values that change with the file; None for a missing one.

    Follows links, which Kubernetes swaps to replace a secret.
    """
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def hash_key(key: bytes) -> bytes:
    """Return the digest by which a key is looked up."""
    return sha256(key).digest()


def _is_old(stamp: Stamp) -> bool:
    """Return whether the file has not changed for a while, since checks may be as rare as requests."""
    return stamp is not None and time.time_ns() - max(stamp[-2:]) >= CHECK_INTERVAL_S * 1e9
