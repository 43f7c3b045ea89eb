"""Keep a value in a file from one start to the next, under a key of everything it depends on."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from infinity_emb.storage.files import write_atomically

logger = logging.getLogger("infinity_emb")

_MAX_NAME_CHARS = 60


def make_keyed_name(name: str, *key: object) -> str:
    """Return a file name that people recognize and that differs for each `repr` of name and key."""
    readable = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[-_MAX_NAME_CHARS:]
    return f"{readable}-{hashlib.sha256(repr((name, *key)).encode()).hexdigest()[:32]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedFile:
    """A value on disk; a file that is damaged, or that was written for another key, counts as absent.

    The content is followed by a line with the SHA-256 of key and content. There is no lock: processes that
    start together each put a complete file in place, and the last one wins.

    purpose: what the file is, for log messages.
    name: the readable part of the file name.
    suffix: the end of the file name.
    """

    folder: Path
    purpose: str
    name: str
    key: str
    suffix: str

    @property
    def path(self) -> Path:
        """Return where the file is or would be."""
        return self.folder / f"{make_keyed_name(self.name, self.key)}{self.suffix}"

    def read(self) -> bytes | None:
        """Return the content that was written for this key, or None; a file that cannot be used is logged."""
        try:
            stored = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            logger.warning("cannot read %s %s (%s); recomputing", self.purpose, self.path, exc)
            return None
        checksum_size = len(self._checksum_line(b""))
        content, checksum = stored[:-checksum_size], stored[-checksum_size:]
        if checksum != self._checksum_line(content):
            logger.warning("%s %s is corrupt; recomputing", self.purpose, self.path)
            return None
        return content

    def write(self, content: bytes) -> None:
        """Keep a value for the next start; a folder that is not writable is logged."""
        try:
            write_atomically(self.path, content + self._checksum_line(content))
        except OSError as exc:
            logger.warning(
                "cannot write %s %s (%s), so the next start recomputes it; set INFINITY_HOME to a writable"
                " folder",
                self.purpose,
                self.path,
                exc,
            )

    def _checksum_line(self, content: bytes) -> bytes:
        return b"\n" + hashlib.sha256(self.key.encode() + content).hexdigest().encode() + b"\n"
