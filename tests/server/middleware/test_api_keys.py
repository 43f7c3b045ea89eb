from __future__ import annotations

from pathlib import Path

import pytest

from infinity_emb.config.server_config import ServerConfig
from infinity_emb.errors import StartupError
from infinity_emb.server.middleware import api_keys
from infinity_emb.server.middleware.api_keys import ApiKeys
from infinity_emb.server.middleware.key_file import hash_key


def test_without_keys_there_is_nothing_to_ask_for() -> None:
    assert ApiKeys.from_config(ServerConfig()) is None
    assert ApiKeys.from_admin_key(ServerConfig()) is None


def test_keys_of_both_sources_count(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("key-of-file")
    keys = ApiKeys.from_config(ServerConfig(api_key=("first", "second"), api_key_file=str(path)))
    assert keys is not None
    assert all(key in keys for key in (b"first", b"second", b"key-of-file"))
    assert b"third" not in keys


@pytest.mark.parametrize("num_keys", [1, 10_000])
def test_a_key_is_looked_up_by_its_digest_alone(monkeypatch: pytest.MonkeyPatch, num_keys: int) -> None:
    """Each key was compared: 10,000 keys and a request of 3 kB held the event loop for half a second.

    How long it takes must not tell which key is whose; digests hide the bytes and the lengths.
    """
    keys = ApiKeys([f"secret-{number}" for number in range(num_keys)])
    hashed: list[bytes] = []

    def noting(key: bytes) -> bytes:
        hashed.append(key)
        return hash_key(key)

    monkeypatch.setattr(api_keys, "hash_key", noting)
    assert b"secret-0" in keys
    assert b"wrong" not in keys
    assert hashed == [b"secret-0", b"wrong"]
    assert isinstance(keys._digests, frozenset)


@pytest.mark.parametrize("name", ["api_key", "api_key_file", "admin_key"])
@pytest.mark.parametrize("value", ["", " ", "\t\n"])
def test_an_empty_key_that_was_given_is_refused(name: str, value: str) -> None:
    """It comes from a variable that is not set, and let everybody in."""
    with pytest.raises(StartupError, match=f"^{name} is empty; set it, or leave it out to serve without "):
        ServerConfig(**{name: value})


def test_several_keys_must_not_all_be_empty() -> None:
    with pytest.raises(StartupError, match=r"^api_key is empty"):
        ServerConfig(api_key=("", " "))
    assert ServerConfig(api_key=("one", "")).api_key == ("one",)
    assert ServerConfig(api_key=()).api_key == ()


@pytest.mark.parametrize("name", ["INFINITY_API_KEY", "INFINITY_API_KEY_FILE", "INFINITY_ADMIN_KEY"])
def test_an_empty_variable_is_refused(name: str) -> None:
    with pytest.raises(StartupError, match=f"^{name} is empty; set it, or leave it out"):
        ServerConfig.from_env({name: ""})


def test_the_admin_key_is_no_api_key(tmp_path: Path) -> None:
    """Its clients would be administrators."""
    with pytest.raises(StartupError, match="--admin-key must differ from every --api-key"):
        ServerConfig(api_key="same", admin_key="same ")
    path = tmp_path / "keys"
    path.write_text("first-key\nadmin-key # ours\n")
    config = ServerConfig(api_key_file=str(path), admin_key=" admin-key")
    with pytest.raises(StartupError, match="has the --admin-key, which must differ from every API key"):
        ApiKeys.from_config(config)
