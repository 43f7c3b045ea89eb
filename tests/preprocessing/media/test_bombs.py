"""Files made to fill the memory or to crash a decoder: each is refused, in bounded time and memory."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from infinity_emb.errors import BadInput
from tests.support.media_bombs import (
    IMAGE_BOMBS,
    IMAGES,
    LYING_SOUNDS,
    SOUND_BOMBS,
    SOUNDS,
    decode_as_image,
    decode_as_sound,
)

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", IMAGE_BOMBS)
def test_an_image_that_is_a_bomb_is_refused(name: str) -> None:
    data = IMAGE_BOMBS[name]
    assert len(data) < 2**22
    refused_within(data, decode_as_image)


@pytest.mark.parametrize("name", SOUND_BOMBS)
def test_a_sound_that_is_a_bomb_is_refused(name: str) -> None:
    refused_within(SOUND_BOMBS[name], decode_as_sound)


@pytest.mark.parametrize("name", LYING_SOUNDS)
def test_a_sound_that_says_more_than_it_has_is_what_it_has(name: str) -> None:
    assert 0 < len(decode_as_sound(LYING_SOUNDS[name])) < 5000


def refused_within(data: bytes, decode: object, max_bytes: int = 100_000_000) -> None:
    """Python's own memory alone is seen here; the limit of the whole process is `hammer`'s."""
    tracemalloc.start()
    try:
        with pytest.raises(BadInput):
            decode(data)  # type: ignore[operator]
        assert tracemalloc.get_traced_memory()[1] < max_bytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", IMAGES)
def test_the_images_that_are_damaged_are_whole_before(name: str) -> None:
    decode_as_image(IMAGES[name])


@pytest.mark.parametrize("name", SOUNDS)
def test_the_sounds_that_are_damaged_are_whole_before(name: str) -> None:
    decode_as_sound(SOUNDS[name])


@pytest.mark.parametrize("name", IMAGES)
def test_a_file_that_is_cut_anywhere_is_refused_or_decoded(name: str) -> None:
    data = IMAGES[name]
    for end in range(0, len(data), max(1, len(data) // 50)):
        with contextlib.suppress(BadInput):
            decode_as_image(data[:end])


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_neither_crash_nor_hang_nor_fill_the_memory(seed: int) -> None:
    """In a process of its own: a decoder in C may end it, and 2 GiB are all that it has."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.media_bombs", str(seed), "1500"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 < int(done.stdout) < 1500
