"""What an idempotent producer may rely on, for logs that keep sequences themselves."""

from typing import Final

import pytest

from freshrank.errors import TransportError
from freshrank.transport.base import ACTIONS, EXAMPLES
from tests.integration.transport.log_checks import (
    Check,
    OpenLog,
    new_records,
    opened,
    read_all,
    values,
)


def check_repeated_sequences_are_ignored(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        log.append(EXAMPLES, new_records(0, 3), partition=0, producer="joiner-0", first_sequence=0)
        places = log.append(
            EXAMPLES, new_records(1, 4), partition=0, producer="joiner-0", first_sequence=1
        )
        assert places == [(0, -1), (0, -1), (0, 3), (0, 4)]
        assert values(read_all(log, EXAMPLES, 0)) == [b"value-%d" % i for i in range(5)]
        assert log.last_sequence(EXAMPLES, 0, "joiner-0") == 4


def check_sequences_outlive_a_restart(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        assert log.last_sequence(EXAMPLES, 1, "joiner-1") == -1
        log.append(EXAMPLES, new_records(0, 6), partition=1, producer="joiner-1", first_sequence=0)
    with opened(open_log) as log:
        assert log.last_sequence(EXAMPLES, 1, "joiner-1") == 5
        places = log.append(
            EXAMPLES, new_records(0, 7), partition=1, producer="joiner-1", first_sequence=0
        )
        assert places == [(1, -1)] * 6 + [(1, 6)]


def check_gap_in_the_sequence_is_refused(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        log.append(EXAMPLES, new_records(0, 2), partition=0, producer="joiner-0", first_sequence=0)
        for producer, first_sequence in (("joiner-0", 3), ("unheard-of", 1)):
            with pytest.raises(TransportError) as gap:
                log.append(
                    EXAMPLES,
                    new_records(9, 1),
                    partition=0,
                    producer=producer,
                    first_sequence=first_sequence,
                )
            assert gap.value.code == "sequence-gap"
        assert log.end_offset(EXAMPLES, 0) == 2
        assert log.last_sequence(EXAMPLES, 0, "joiner-0") == 1


def check_sequences_are_counted_per_producer_and_partition(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        log.append(EXAMPLES, new_records(0, 3), partition=0, producer="a", first_sequence=0)
        log.append(EXAMPLES, new_records(0, 2), partition=0, producer="b", first_sequence=0)
        log.append(EXAMPLES, new_records(0, 1), partition=1, producer="a", first_sequence=0)
        log.append(EXAMPLES, new_records(7, 1), partition=0)
        sequences = [
            log.last_sequence(EXAMPLES, partition, producer)
            for partition, producer in ((0, "a"), (0, "b"), (1, "a"), (1, "b"))
        ]
        assert sequences == [2, 1, 0, -1]
        assert log.last_sequence(ACTIONS, 0, "a") == -1


def check_half_an_idempotent_append_is_refused(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        for producer, first_sequence, partition in (
            ("a", None, 0),
            (None, 0, 0),
            ("a", 0, None),
            ("", 0, 0),
            ("a", -1, 0),
        ):
            with pytest.raises(TransportError) as refused:
                log.append(
                    EXAMPLES,
                    new_records(0, 1),
                    partition=partition,
                    producer=producer,
                    first_sequence=first_sequence,
                )
            assert refused.value.code == "bad-append"
        assert log.end_offset(EXAMPLES, 0) == 0


IDEMPOTENCE_CHECKS: Final[list[Check]] = [
    check for name, check in sorted(globals().items()) if name.startswith("check_")
]
