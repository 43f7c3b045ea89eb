"""Ids of requests and responses."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys

import pytest

from infinity_emb.server.random_ids import make_random_id
from tests.support.event_loop import PATIENCE_S


def test_an_id_has_32_hexadecimal_digits_and_no_other_has_the_same() -> None:
    ids = [make_random_id() for _ in range(1000)]

    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
    assert len(set(ids)) == len(ids)


def test_code_that_seeds_random_numbers_does_not_make_ids_repeat() -> None:
    random.seed(1)
    first = make_random_id()
    random.seed(1)

    assert make_random_id() != first


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_makes_other_ids() -> None:
    code = """
import os
from infinity_emb.server.random_ids import make_random_id
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
print(make_random_id(), flush=True)
os._exit(0)
"""
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    ids = ended.stdout.split()

    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(set(ids)) == len(ids) == 2
