"""The Dockerfiles, their entry point and the compose files; `scripts.container_check` runs an image."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.docs.commands import check_server_command

ROOT = Path(__file__).parents[2]
DOCKERFILES = ("Dockerfile", "Dockerfile.cuda", "Dockerfile.rocm")
ENTRYPOINT = (ROOT / "deploy" / "docker" / "entrypoint.sh").read_text()
NOBODY = 65534


def read_steps(name: str) -> list[str]:
    """Return the instructions without comments, a continued one as one line."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return re.sub(r"\\\n\s*", "", "\n".join(lines)).strip().splitlines()


def read_last_stage(name: str) -> list[str]:
    steps = read_steps(name)
    return steps[max(at for at, step in enumerate(steps) if step.startswith("FROM ")) :]


@pytest.mark.parametrize("name", DOCKERFILES[1:])
def test_images_differ_only_in_what_is_said_about_the_device(name: str) -> None:
    different = set(read_steps(name)) ^ set(read_steps("Dockerfile"))
    assert different
    assert all(step.startswith(("ARG TORCH_BACKEND=", "ENV NVIDIA_")) for step in different), different


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_has_stages_and_leaves_the_tools_of_the_build_behind(name: str) -> None:
    assert sum(step.startswith("FROM ") for step in read_steps(name)) == 2
    last = "\n".join(read_last_stage(name))
    assert "COPY --from=build /venv" in last
    assert "/opt/uv" not in last
    assert "apt/lists" in last


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_runs_as_a_user_that_owns_its_folders_and_checks_its_health(name: str) -> None:
    last = read_last_stage(name)
    users = [step.split()[1] for step in last if step.startswith("USER ")]
    assert users == ["10001"]
    assert any("--owner 10001" in step and "/app/.cache" in step for step in last)
    assert "VOLUME /app/.cache" in last
    assert any(step.startswith("HEALTHCHECK ") and "infinity_emb.cli.health_check" in step for step in last)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_secrets_are_no_build_argument_and_models_are_outside_the_volume(name: str) -> None:
    steps = read_steps(name)
    settings = [step for step in steps if step.startswith(("ARG ", "ENV "))]
    assert not re.search("TOKEN|KEY|SECRET", "\n".join(settings))
    assert any("--mount=type=secret" in step for step in steps)
    assert "ARG MODELS_HOME=${MODELS:+/app/models}" in steps


def test_the_images_are_built_from_files_that_are_sent_to_the_engine() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source
        for step in read_steps("Dockerfile")
        if step.startswith("COPY ") and "--from" not in step
        for source in step.split()[1:-1]
        if not source.startswith("--")
    ]
    assert copied
    assert all(any(source == name or source.startswith(f"{name}/") for name in kept) for source in copied)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """Yield a folder that other users may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def start(folder: Path, home: Path) -> tuple[dict[str, str], str]:
    """Run the entry point as a user without rights; return what the server gets, and what was printed."""
    program = folder / "infinity_emb"
    program.write_text(
        '#!/bin/sh\necho "HF_HOME=$HF_HOME"\necho "INFINITY_HOME=$INFINITY_HOME"\necho "ARGS=$*"\n'
    )
    program.chmod(0o755)
    done = subprocess.run(
        ["sh", "-s", "v2", "--port", "1"],
        input=ENTRYPOINT,
        env={"PATH": f"{folder}:{os.environ['PATH']}", "HF_HOME": str(home), "INFINITY_HOME": ""},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        user=NOBODY if os.getuid() == 0 else None,
        group=NOBODY if os.getuid() == 0 else None,
        extra_groups=[] if os.getuid() == 0 else None,
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines()), done.stderr


def test_a_volume_that_can_be_written_is_used() -> None:
    with open_folder() as folder:
        cache = folder / "cache"
        cache.mkdir()
        cache.chmod(0o777)
        variables, printed = start(folder, cache / "huggingface")
        assert variables == {
            "HF_HOME": str(cache / "huggingface"),
            "INFINITY_HOME": "",
            "ARGS": "v2 --port 1",
        }
        assert printed == ""


def test_a_folder_that_docker_made_as_root_costs_a_warning_and_not_the_start() -> None:
    with open_folder() as folder:
        cache = folder / "cache"
        cache.mkdir(mode=0o555)
        variables, printed = start(folder, cache / "huggingface")
        assert variables["HF_HOME"] == variables["INFINITY_HOME"] == "/tmp/infinity"
        assert f"cannot write {cache}/huggingface" in printed
        assert "chown" in printed


def test_models_in_a_read_only_folder_are_read() -> None:
    with open_folder() as folder:
        home = folder / "cache" / "huggingface"
        (home / "hub").mkdir(parents=True)
        home.chmod(0o555)
        variables, printed = start(folder, home)
        assert variables["HF_HOME"] == str(home)
        assert variables["INFINITY_HOME"] == "/tmp/infinity"
        assert printed


def test_the_compose_file_starts_the_server_with_keys_from_a_file() -> None:
    service = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]["infinity"]
    words = [re.sub(r"\$\{\w+:-(.+)\}", r"\1", word) for word in service["command"]]
    check_server_command(words)
    assert "/run/secrets/api-keys" in words
    assert service["volumes"] == ["models:/app/.cache"]
    assert (ROOT / "deploy" / service["build"]["context"]).resolve() == ROOT
    gpu = yaml.safe_load((ROOT / "deploy" / "compose.cuda.yaml").read_text())["services"]
    assert set(gpu) == {"infinity"}
