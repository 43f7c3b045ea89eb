"""Make Python environments of exact versions, for packages that must not meet ours.

`NAME.txt` in the folder of pins lists every package of an environment, so that nothing is resolved when it is
made.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
# `make test` needs what is installed in seconds, but package managers wait for minutes for a silent registry.
INSTALLING_S = 240


class RegistryTooSlow(Exception):
    """An environment could not be made in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Name what a user installs, with exact versions.

    files_of: packages of which nothing is imported, so that their dependencies are not installed.
    is_shared: torch, transformers and numpy are those of the tests' own environment.
    """

    asked: tuple[str, ...]
    files_of: tuple[str, ...] = ()
    is_shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Environments:
    """Make environments below one folder, each when it is first needed.

    pins: folder of the lists.
    installing_s: how long one command of pip may take.
    """

    folder: Path
    pins: Path
    by_name: Mapping[str, Environment]
    installing_s: float = INSTALLING_S

    def find_python(self, name: str) -> Path:
        """Return the interpreter of an environment, and make the environment first unless it is up to date.

        Raises RegistryTooSlow, and CalledProcessError where a package cannot be installed.
        """
        pins, folder = self.pins / f"{name}.txt", self.folder / name
        if is_outdated(folder, pins):
            make_venv(folder, is_shared=self.by_name[name].is_shared)
            # What is imported is compiled then; the rest of a large package need not be.
            self._pip(folder, "install", "--no-deps", "--no-compile", "--requirement", str(pins))
            mark_made(folder, pins)
        return find_interpreter(folder)

    def write_pins(self, name: str) -> None:
        """Resolve what is asked for, and list all packages that this installs."""
        environment, folder = self.by_name[name], self.folder / name
        make_venv(folder, is_shared=environment.is_shared)
        constrained = ("--constraint", str(REPOSITORY / "constraints.txt")) if environment.is_shared else ()
        self._pip(folder, "install", *constrained, *environment.asked)
        if environment.files_of:
            self._pip(folder, "install", "--no-deps", *environment.files_of)
        pins = self.pins / f"{name}.txt"
        # Without a suffix such as +cpu, which only one package index knows.
        pins.write_text(re.sub(r"\+\w+$", "", self._pip(folder, "freeze", "--local"), flags=re.MULTILINE))
        mark_made(folder, pins)

    def _pip(self, folder: Path, *arguments: str) -> str:
        """Run our own pip on another environment, and return what it prints."""
        python = str(find_interpreter(folder))
        command = (sys.executable, "-m", "pip", "--quiet", "--python", python, *arguments)
        return install(*command, timeout_s=self.installing_s)


def is_outdated(folder: Path, pins: Path) -> bool:
    """Return true unless the folder was made from this list."""
    mark = folder / "made-of"
    return not mark.exists() or mark.read_text() != _digest(pins)


def mark_made(folder: Path, pins: Path) -> None:
    """Record what the folder was made from; last, so that an interrupted one is made again."""
    (folder / "made-of").write_text(_digest(pins))


def packages_of_a_venv() -> Path:
    """Return where an environment has its packages, below its folder."""
    return Path("lib") / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def make_venv(folder: Path, *, is_shared: bool) -> None:
    """Make an empty environment; a shared one also finds the packages of ours."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True)
    if is_shared:
        shared = sysconfig.get_path("purelib")
        (folder / packages_of_a_venv() / "shared.pth").write_text(shared)


def install(*command: str, timeout_s: float = INSTALLING_S, cwd: Path | None = None) -> str:
    """Run a command of a package manager for a bounded time, and never again if it took longer.

    Returns what it prints. Raises RegistryTooSlow.
    """
    if command not in _too_slow:
        try:
            return subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, timeout=timeout_s, cwd=cwd
            ).stdout
        except subprocess.TimeoutExpired:
            _too_slow.add(command)
    raise RegistryTooSlow(f"not installed within {timeout_s:g} s: {' '.join(command)}")


_too_slow: set[tuple[str, ...]] = set()


def find_interpreter(folder: Path) -> Path:
    """Return the interpreter of an environment."""
    return folder / "bin" / "python"


def _digest(pins: Path) -> str:
    return hashlib.sha256(pins.read_bytes()).hexdigest()
