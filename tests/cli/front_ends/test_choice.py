"""The number of front ends that `--api-servers auto` stands for."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_emb.cli.front_ends import choice
from infinity_emb.cli.front_ends.choice import choose_front_ends
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.config.server_config import ServerConfig
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.types import ModelInfo, ModelKind
from tests.cli.front_ends.conftest import FrontEndServer
from tests.support.server_process import FAKE as FAKE_SERVER

STATIC = ModelInfo(
    kind=ModelKind.embedder,
    capabilities=("embed",),
    embedding_dimension=256,
    max_tokens=None,
    dtype="float32",
    dtype_reason="",
    device="cpu",
    attention="none",
    attention_reason="",
    pooling="mean",
    prompts={},
    default_prompt_name=None,
    revision=None,
    source="",
    engine="torch",
)
NETWORK = replace(STATIC, attention="packed")
ON_GPU = replace(NETWORK, device="cuda:0", dtype="bfloat16")
FAKE = replace(STATIC, engine="debugengine")
MEGABYTE, GIGABYTE = 2**20, 2**30


class Engine(NamedTuple):
    engine_args: EngineArgs
    info: ModelInfo


def choose(
    *infos: ModelInfo,
    num_cpus: int = 16,
    free_bytes: int | None = 64 * GIGABYTE,
    platform: str = "linux",
    **options: Any,
) -> int:
    """Choose for models, a machine, and options, which are those of the server or of each model."""
    of_models = {name: value for name, value in options.items() if hasattr(EngineArgs(), name)}
    of_server = {name: value for name, value in options.items() if name not in of_models}
    engines = [Engine(EngineArgs(**of_models), info) for info in infos or (STATIC,)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "num_usable_cpus", lambda: num_cpus)
        patch.setattr(choice, "free_memory_bytes", lambda: free_bytes)
        patch.setattr(sys, "platform", platform)
        return choose_front_ends(ServerConfig(**of_server), cast("list[AsyncEmbeddingEngine]", engines))


@pytest.mark.parametrize(
    ("num_cpus", "number"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (8, 4), (16, 4), (256, 4)]
)
def test_a_static_model_has_a_front_end_for_every_two_cores(num_cpus: int, number: int) -> None:
    assert choose(num_cpus=num_cpus) == number


@pytest.mark.parametrize(
    "infos", [[NETWORK], [ON_GPU], [FAKE], [STATIC, NETWORK], [STATIC, ON_GPU], [FAKE, STATIC]]
)
def test_every_other_model_is_served_by_one_process(infos: list[ModelInfo]) -> None:
    assert choose(*infos) == 1


def test_several_static_models_share_the_front_ends() -> None:
    assert choose(STATIC, STATIC) == 4


@pytest.mark.parametrize("platform", ["darwin", "win32", "freebsd14"])
def test_other_systems_than_linux_have_one_process(platform: str) -> None:
    assert choose(platform=platform) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"admin_key": "key-of-an-administrator"},
        {"batch_dir": "batches"},
        {"otel": True},
        {"vector_memory_cache_mb": 1},
        {"vector_disk_cache": True},
        {"idle_unload_s": 60},
    ],
)
def test_options_that_several_processes_serve_less_well_keep_one(options: dict[str, Any]) -> None:
    assert choose(**options) == 1


@pytest.mark.parametrize(
    ("free_bytes", "number"),
    [(None, 1), (0, 1), (GIGABYTE - 1, 1), (GIGABYTE, 2), (2 * GIGABYTE - 1, 3), (2 * GIGABYTE, 4)],
)
def test_every_front_end_has_half_a_gigabyte(free_bytes: int | None, number: int) -> None:
    assert choose(free_bytes=free_bytes) == number


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({"max_body_bytes": 40 * MEGABYTE}, 3),
        ({"max_body_bytes": 64 * MEGABYTE}, 1),
        ({"max_total_body_bytes": 256 * MEGABYTE}, 1),
        ({"max_total_body_bytes": 4 * GIGABYTE, "max_body_bytes": 64 * MEGABYTE}, 4),
        ({"max_connections": 700}, 2),
        ({"max_connections": 256}, 1),
    ],
)
def test_a_divided_limit_still_allows_what_one_process_does(options: dict[str, Any], number: int) -> None:
    assert choose(**options) == number


def test_the_log_names_the_number_the_cores_and_the_option(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    choose(num_cpus=6)
    (line,) = caplog.messages
    assert line == "3 front ends for static models, on 6 cores (--api-servers auto)"
    choose(num_cpus=2)
    assert len(caplog.messages) == 1


@given(
    st.integers(1, 512),
    st.integers(0, 2**40),
    st.integers(1, 2**30),
    st.integers(1, 2**34),
    st.integers(1, 2**16),
)
def test_no_number_exceeds_what_the_machine_and_the_limits_have(
    num_cpus: int, free_bytes: int, max_body: int, max_total: int, max_connections: int
) -> None:
    config = ServerConfig(
        max_body_bytes=max_body, max_total_body_bytes=max_total, max_connections=max_connections
    )
    number = choice.count_front_ends(config, num_cpus=num_cpus, free_bytes=free_bytes)
    assert 1 <= number <= choice.MAX_FRONT_ENDS
    if number > 1:
        assert 2 * number <= num_cpus
        assert 2**29 * number <= free_bytes
        # The share of each process, of which the engine process is one.
        assert max_total // (number + 1) >= choice.BODIES_PER_REQUEST * max_body
        assert max_connections // number >= choice.MIN_CONNECTIONS
    more = choice.count_front_ends(config, num_cpus=num_cpus + 1, free_bytes=free_bytes + 1)
    assert more >= number


# As the command line does, on a machine with four cores.
PROGRAM = """
import sys
from infinity_emb.cli import main
from infinity_emb.cli.front_ends import choice
choice.num_usable_cpus, choice.free_memory_bytes = lambda: 4, lambda: 2**33
sys.exit(main())
"""


@pytest.mark.model
@pytest.mark.skipif(sys.platform != "linux", reason="several front ends need Linux")
@pytest.mark.parametrize(
    ("options", "number"), [([], 0), (["--api-servers", "auto"], 2), (["--api-servers", "1"], 0)]
)
def test_a_server_with_a_static_model_has_several_processes_with_auto(
    tmp_path: Path, options: list[str], number: int
) -> None:
    from tests.backends.static.test_load import save_model  # it imports torch

    model = str(save_model(tmp_path / "model"))
    check_number_of_front_ends(number, "--host", "127.0.0.1", "--port", "0", "--model-id", model, *options)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="front ends are forked")
def test_a_server_with_another_model_has_one_process() -> None:
    check_number_of_front_ends(0, *FAKE_SERVER, "--model-id", "debug", "--api-servers", "auto")


def check_number_of_front_ends(number: int, *arguments: str) -> None:
    server = FrontEndServer("v2", *arguments, command=[sys.executable, "-c", PROGRAM])
    try:
        server.wait_until_listening()
        assert len(server.list_front_ends()) == number
        assert bool(server.list_processes()) == (number > 0)  # the fork server is one
        assert any(f"{number} front ends for static models, on 4 cores" in line for line in server.lines) == (
            number > 0
        )
        assert [server.embed("word1 word2").status_code for _ in range(6)] == [200] * 6
    finally:
        server.kill()
