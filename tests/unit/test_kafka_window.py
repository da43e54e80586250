"""Who may read from the records that were fetched ahead, and who makes the consumer seek."""

import pytest

from freshrank.transport.base import ACTIONS, Record
from freshrank.transport.kafka_window import Window


def window(start: int, end: int) -> Window:
    """One with the records from `start` up to `end`."""
    made = Window()
    made.seek(start)
    records = [Record(ACTIONS, 0, offset, b"", b"value", 0) for offset in range(start, end)]
    made.extend(records, end)
    return made


@pytest.mark.parametrize(
    ("offset", "end", "is_served"),
    [
        (2, 0, False),  # before it
        (3, 0, True),
        (8, 0, True),  # the next to be fetched
        (9, 8, False),  # nobody knows of a record at 8
        (9, 9, True),  # whoever appended it goes on behind it
        (8 + 64, 100, True),
        (8 + 65, 100, False),  # too far: a seek is sooner there
    ],
)
def test_a_reader_a_little_ahead_waits_for_the_consumer(
    offset: int, end: int, *, is_served: bool
) -> None:
    assert window(3, 8).serves(offset, end) is is_served


def test_who_is_ahead_gets_nothing_twice_and_frees_what_lies_behind() -> None:
    made = window(3, 8)
    assert made.take(9, 10, 1 << 20) == []
    made.extend([Record(ACTIONS, 0, 8, b"", b"own", 0)], 9)
    assert made.take(9, 10, 1 << 20) == []
    made.extend([Record(ACTIONS, 0, 9, b"", b"next", 0)], 10)
    assert [one.value for one in made.take(9, 10, 1 << 20)] == [b"next"]


def test_nobody_is_served_of_a_log_that_was_lost() -> None:
    made = window(3, 8)
    made.lose()
    assert not made.serves(9, 9)
