"""The valid API keys: those of the options, and those of a file that may change at any time.

Only digests are kept, and neither keys nor digests are logged. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterable

from infinity_emb.config.server_config import ServerConfig
from infinity_emb.server.middleware.key_file import KeyFile, hash_key


class ApiKeys:
    """The valid keys of both sources."""

    def __init__(self, keys: Iterable[str], file: KeyFile | None = None) -> None:
        self._digests = frozenset(hash_key(key.encode()) for key in keys)
        self._file = file

    @classmethod
    def from_config(cls, config: ServerConfig) -> ApiKeys | None:
        """Return None if no key is required. Raises StartupError for a file that cannot be used."""
        file = None
        if config.api_key_file:
            admin_key = config.admin_key.strip()
            file = KeyFile(config.api_key_file, reserved=hash_key(admin_key.encode()) if admin_key else None)
        return cls(config.api_key, file) if config.api_key or file else None

    @classmethod
    def from_admin_key(cls, config: ServerConfig) -> ApiKeys | None:
        """Return None if there is no admin key."""
        return cls([config.admin_key.strip()]) if config.admin_key else None

    def __contains__(self, given: bytes) -> bool:
        """Look a key up by its digest: the time depends neither on the number of keys nor on their bytes."""
        digest = hash_key(given)
        return digest in self._digests or (self._file is not None and digest in self._file.digests())
