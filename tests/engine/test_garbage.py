"""Objects that stay are exempt from collections, and a model that was unloaded is freed all the same."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from infinity_emb.engine.garbage import collect_all, freeze_new_objects, frozen_objects


class Cycle:
    """An object that only a collection frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(scope="module", autouse=True)
def frozen_again() -> Iterator[None]:
    """Keep what stays out of collections for the tests that follow, as conftest.py does."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def without_automatic_collections() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def make_garbage() -> weakref.ref[Cycle]:
    return weakref.ref(Cycle())


def test_objects_of_before_are_not_visited_inside_the_block() -> None:
    cycle = Cycle()
    found = weakref.ref(cycle)
    with frozen_objects():
        del cycle
        gc.collect()
        assert found() is not None
    gc.collect()
    assert found() is None


def test_objects_made_inside_the_block_are_collected() -> None:
    with frozen_objects():
        found = make_garbage()
        gc.collect()
        assert found() is None


def test_a_model_loaded_inside_the_block_can_be_frozen_too() -> None:
    with frozen_objects():
        model = Cycle()
        found = weakref.ref(model)
        freeze_new_objects()
        del model
        gc.collect()
        assert found() is not None
    gc.collect()
    assert found() is None


def test_what_a_load_leaves_is_collected_and_not_frozen() -> None:
    with frozen_objects():
        found = make_garbage()
        freeze_new_objects()
        assert found() is None


def test_outside_of_the_block_objects_that_others_froze_stay_frozen() -> None:
    gc.freeze()
    try:
        num_frozen = gc.get_freeze_count()
        model = Cycle()
        freeze_new_objects()
        collect_all()
        # Objects whose last reference goes, such as another thread's, leave the number too.
        assert 0.9 * num_frozen < gc.get_freeze_count() <= num_frozen
        del model
    finally:
        gc.unfreeze()


def test_collecting_all_reaches_frozen_objects_and_freezes_the_others_again() -> None:
    with frozen_objects():
        model = Cycle()
        found = weakref.ref(model)
        freeze_new_objects()
        del model
        collect_all()
        assert found() is None
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
