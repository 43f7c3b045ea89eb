"""`verify` on folders that are whole and on folders that are not: no false alarm, and no silence."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from infinity_emb import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.verify.verify import verify
from tests.support.small_models.traps import BASES, TRAPS

pytestmark = pytest.mark.model

GetBase = Callable[[str], Path]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def get_base(tmp_path_factory: pytest.TempPathFactory) -> GetBase:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = BASES[name](tmp_path_factory.mktemp("base"))
        return made[name]

    return get


@pytest.mark.parametrize("name", TRAPS)
def test_a_folder_is_refused_by_name_or_equal_to_the_reference(
    name: str, get_base: GetBase, tmp_path: Path
) -> None:
    trap = TRAPS[name]
    folder = shutil.copytree(get_base(trap.base), tmp_path / "model")
    trap.change(folder)
    args = EngineArgs(model_name_or_path=str(folder), device="cpu", model_warmup=False, threads=1)
    lines: list[str] = []

    if trap.refused:
        with pytest.raises(StartupError, match=trap.refused) as caught:
            verify(args, write_line=lines.append)
        assert str(folder) in str(caught.value), "the message says which model or file"
        return
    checks = verify(args, write_line=lines.append)

    assert checks
    assert all(check.is_passed for check in checks), "\n".join(lines)
    warnings = [line for line in lines if line.startswith("warning:")]
    if trap.warned:
        assert re.search(trap.warned, " ".join(" ".join(warnings).split()))
    else:
        assert not warnings
