from __future__ import annotations

from infinity_emb.cli.connection_slots import ConnectionSlots


class Connection:
    """Closes when asked, as a connection does a little later."""

    def __init__(self, slots: ConnectionSlots) -> None:
        self.slots = slots
        self.is_open = True
        slots.add(self)

    def make_room(self) -> None:
        self.is_open = False

    def close(self) -> None:
        self.is_open = False
        self.slots.remove(self)


def test_connections_up_to_the_limit_are_regular() -> None:
    slots = ConnectionSlots(max_connections=2, max_extra=1)
    first, second, third = (Connection(slots) for _ in range(3))
    assert [slots.is_extra(each) for each in (first, second, third)] == [False, False, True]
    assert "all 2 connections" in slots.problem.message


def test_an_extra_connection_becomes_regular_when_another_closes() -> None:
    slots = ConnectionSlots(max_connections=1, max_extra=2)
    first, second, third = (Connection(slots) for _ in range(3))
    first.close()
    assert not slots.is_extra(second)
    assert slots.is_extra(third)
    third.close()
    second.close()
    assert not slots.is_extra(Connection(slots))


def test_the_oldest_extra_connection_makes_room_for_the_newest() -> None:
    """So a probe is answered however many connections ask nothing."""
    slots = ConnectionSlots(max_connections=2, max_extra=3)
    connections = [Connection(slots) for _ in range(100)]
    assert [index for index, each in enumerate(connections) if each.is_open] == [0, 1, 97, 98, 99]
    for each in connections:
        slots.remove(each)
    assert not slots.is_extra(Connection(slots))
    assert not slots.is_extra(Connection(slots))
    assert slots.is_extra(Connection(slots))


def test_one_that_has_been_refused_makes_room_first() -> None:
    slots = ConnectionSlots(max_connections=1, max_extra=2)
    regular, waiting, refused = (Connection(slots) for _ in range(3))
    slots.note_refused(refused)
    slots.note_refused(regular)
    Connection(slots)
    assert [regular.is_open, waiting.is_open, refused.is_open] == [True, True, False]
    Connection(slots)
    assert not waiting.is_open
    for each in (refused, waiting, regular):
        slots.remove(each)
    assert not slots.is_full


def test_one_that_makes_room_does_not_give_its_place_to_an_extra_one_twice() -> None:
    slots = ConnectionSlots(max_connections=1, max_extra=1)
    _, evicted, extra = (Connection(slots) for _ in range(3))
    assert not evicted.is_open
    assert slots.is_extra(extra)
    slots.remove(evicted)
    assert slots.is_extra(extra)
