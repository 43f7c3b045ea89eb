"""`MANAGER` as code for infinity_emb 0.0.77 reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

import infinity_emb
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.options import list_options
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.env import MANAGER, Environment
from infinity_emb.errors import StartupError
from infinity_emb.storage.files import cache_dir
from tests.test_public_names import WATCHED, run_script

# Every attribute of 0.0.77's manager but `cache_dir`, with its default, from that package itself. DIFFERENT
# tells where the answer is another here.
THERE = {
    "anonymous_usage_stats": True,
    "api_key": "",
    "batch_size": [32],
    "bettertransformer": [True],
    "calibration_dataset_url": "https://…",
    "compile": [False],
    "device": ["auto"],
    "device_id": [""],
    "dtype": ["auto"],
    "embedding_dtype": ["float32"],
    "engine": ["torch"],
    "host": "0.0.0.0",
    "lengths_via_tokenize": [False],
    "log_level": "info",
    "max_client_batch_size": 2048,
    "model_id": ["michaelfeil/bge-small-en-v1.5"],
    "model_warmup": [True],
    "permissive_cors": False,
    "pooling_method": ["auto"],
    "port": 7997,
    "preload_only": False,
    "proxy_root_path": "",
    "queue_size": 32000,
    "redirect_slash": "/docs",
    "revision": [""],
    "served_model_name": [""],
    "trust_remote_code": [True],
    "url_prefix": "",
    "vector_disk_cache": [False],
}
DIFFERENT = {
    "anonymous_usage_stats": False,
    "batch_size": [1024],
    "calibration_dataset_url": "",
    "lengths_via_tokenize": [True],
    "model_id": ["sentence-transformers/all-MiniLM-L6-v2"],
    "redirect_slash": "/ui",
    "trust_remote_code": [False],
}


@pytest.fixture(autouse=True)
def clean_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    for config in (EngineArgs, ServerConfig):
        for each in list_options(config):
            monkeypatch.delenv(each.env, raising=False)


@pytest.mark.parametrize("name", THERE)
def test_every_name_answers_what_it_answered_but_where_a_default_is_another(name: str) -> None:
    answer: object = getattr(Environment(), name)
    expected: object = {**THERE, **DIFFERENT}[name]
    assert answer == expected
    assert type(answer) is type(expected)
    if isinstance(expected, list):
        assert isinstance(answer, list)
        assert [type(each) for each in answer] == [type(each) for each in expected]


def test_every_option_of_today_can_be_asked_for_too() -> None:
    manager = Environment()
    assert {*THERE, "cache_dir", "max_batch_tokens", "shutdown_timeout_s"} <= set(dir(manager))
    for name in dir(manager):
        getattr(manager, name)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("model_id", "a/b;c/d;", ["a/b", "c/d"]),
        ("served_model_name", "b;d", ["b", "d"]),
        ("batch_size", "8;16", [8, 16]),
        ("engine", "torch;debugengine", ["torch", "debugengine"]),
        ("device_id", "0,1;2", ["0,1", "2"]),
        ("revision", "main", ["main"]),
        ("model_warmup", "true;0", [True, False]),
        ("queue_size", "7", 7),
        ("port", "80", 80),
        ("permissive_cors", "yes", True),
        ("api_key", "secret", "secret"),
        ("redirect_slash", "", ""),
        ("url_prefix", "/api", "/api"),
    ],
)
def test_the_environment_is_read_when_a_name_is_first_asked_for(
    name: str, text: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = Environment()
    monkeypatch.setenv(f"INFINITY_{name.upper()}", text)
    assert getattr(manager, name) == expected
    monkeypatch.delenv(f"INFINITY_{name.upper()}")
    assert getattr(manager, name) == expected


def test_the_folder_of_files_is_the_one_that_calibration_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFINITY_HOME", str(tmp_path))
    assert MANAGER.cache_dir == cache_dir({"INFINITY_HOME": str(tmp_path)}) / "calibration"
    assert not MANAGER.cache_dir.exists()


def test_a_value_that_does_not_parse_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFINITY_PORT", "eighty")
    with pytest.raises(StartupError, match="INFINITY_PORT must be an integer, got 'eighty'"):
        Environment().port  # noqa: B018


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(AttributeError, match=r"no option 'ports'; there are: admin_key, .* port,"):
        Environment().ports  # noqa: B018


def test_importing_it_reads_nothing() -> None:
    statement = "from infinity_emb import MANAGER; from infinity_emb import env"
    assert run_script(WATCHED.format(statement=statement)) == "[] False\n"
    assert infinity_emb.MANAGER is MANAGER
