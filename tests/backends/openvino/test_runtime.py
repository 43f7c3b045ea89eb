from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import socket, sys

def refuse(*given):
    raise AssertionError("the network is asked for")

socket.socket.connect = socket.getaddrinfo = refuse
{first}
from infinity_emb.backends.openvino.runtime import core
assert "CPU" in core().available_devices
assert core() is core()
print(sorted(name for name in sys.modules if name.startswith("openvino_telemetry")))
"""


def _names_imported(home: Path, first: str = "") -> str:
    environment = os.environ | {"HOME": str(home), "CI": ""}
    program = [sys.executable, "-c", _PROGRAM.format(first=first)]
    return subprocess.run(program, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    """`import openvino` alone sends an event, and writes an id of the user into the home folder."""
    assert _names_imported(tmp_path) == "[]"
    assert not list(tmp_path.iterdir())


def test_what_others_have_imported_before_stays(tmp_path: Path) -> None:
    first = "import types; sys.modules['openvino_telemetry'] = types.ModuleType('openvino_telemetry')"
    assert _names_imported(tmp_path, first) == "['openvino_telemetry']"
