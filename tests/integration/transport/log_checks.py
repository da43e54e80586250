"""What every `EventLog` keeps, whatever carries it: checks for all implementations.

Each check takes a function that opens the log: empty at the first call, the same log at later
calls, which come after the log was closed. Topics have `N_PARTITIONS` partitions.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from freshrank.errors import TransportError
from freshrank.transport.base import (
    ACTIONS,
    CONTROL,
    IMPRESSIONS,
    RECORD_BYTES_MAX,
    EventLog,
    NewRecord,
    Record,
    TopicPartition,
)

N_PARTITIONS: Final = 4
DEADLINE_S: Final = 20.0

OpenLog = Callable[[], EventLog]
Check = Callable[[OpenLog], None]


@contextmanager
def opened(open_log: OpenLog) -> Iterator[EventLog]:
    """The log, closed at the end."""
    with contextlib.closing(open_log()) as log:
        yield log


def eventually(is_so: Callable[[], bool]) -> None:
    """Return once it is so; fail when the time is up."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline_s, "it never came to be"
        time.sleep(0.01)  # else it takes a core from what it waits for


def new_records(first: int, n_records: int) -> list[NewRecord]:
    """Records whose keys and values tell their number."""
    return [NewRecord(b"key-%d" % i, b"value-%d" % i) for i in range(first, first + n_records)]


def read_all(log: EventLog, topic: str, partition: int) -> list[Record]:
    """Every record of a partition, in short reads."""
    records: list[Record] = []
    offset = log.start_offset(topic, partition)
    while part := log.read(topic, partition, offset, n_max=7):
        records += part
        offset = part[-1].offset + 1
    return records


def values(records: list[Record]) -> list[bytes]:
    """Their values."""
    return [record.value for record in records]


def check_empty_log_has_no_records(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        assert log.end_offset(ACTIONS, 0) == log.start_offset(ACTIONS, 0) == 0
        assert log.read(ACTIONS, 0, 0) == []


def check_its_identity_outlives_a_restart(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        identity = log.identity
        assert len(identity) == 16
        assert int(identity, 16) >= 0
    with opened(open_log) as log:
        assert log.identity == identity


def check_records_come_back_in_order_with_their_offsets(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        places = log.append(ACTIONS, new_records(0, 3), partition=1)
        places += log.append(ACTIONS, new_records(3, 20), partition=1)
        records = read_all(log, ACTIONS, 1)
        assert places == [(1, i) for i in range(23)]
        assert log.unacknowledged_bytes == 0
        assert [record.offset for record in records] == list(range(23))
        assert [(record.key, record.value) for record in records] == [
            (new.key, new.value) for new in new_records(0, 23)
        ]
        assert {(record.topic, record.partition) for record in records} == {(ACTIONS, 1)}
        assert log.end_offset(ACTIONS, 1) == 23


def check_records_are_there_after_reopening(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        log.append(ACTIONS, new_records(0, 5), partition=0)
        before = read_all(log, ACTIONS, 0)
    with opened(open_log) as log:
        assert read_all(log, ACTIONS, 0) == before
        assert log.append(ACTIONS, new_records(5, 1), partition=0) == [(0, 5)]


def check_append_times_never_step_back(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        for i in range(5):
            log.append(ACTIONS, new_records(i, 2), partition=0)
        times = [record.appended_at_ms for record in read_all(log, ACTIONS, 0)]
        assert times == sorted(times)
        assert times[0] > 0


def check_read_starts_anywhere_and_stops_at_n_max(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        log.append(ACTIONS, new_records(0, 300), partition=0)
        for offset in (0, 1, 63, 64, 65, 128, 298, 299):
            records = log.read(ACTIONS, 0, offset, n_max=2)
            assert values(records) == [b"value-%d" % i for i in range(offset, 300)][:2]
        assert log.read(ACTIONS, 0, 0, n_max=0) == []


def check_read_stops_near_bytes_max_but_gives_one_record(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        log.append(ACTIONS, [NewRecord(b"", bytes(10_000))] * 20, partition=0)
        assert len(log.read(ACTIONS, 0, 0, bytes_max=1)) >= 1
        some = log.read(ACTIONS, 0, 0, bytes_max=50_000)
        assert 1 <= len(some) <= 7


def check_read_outside_the_log_is_refused(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        log.append(ACTIONS, new_records(0, 3), partition=0)
        assert log.read(ACTIONS, 0, 3) == []
        with pytest.raises(TransportError) as beyond:
            log.read(ACTIONS, 0, 4)
        assert beyond.value.code == "offset-beyond-end"
        with pytest.raises(TransportError) as before:
            log.read(ACTIONS, 0, -1)
        assert before.value.code == "offset-removed"


def check_consumers_read_independently(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        log.append(ACTIONS, new_records(0, 10), partition=0)
        ahead = log.read(ACTIONS, 0, 8)
        behind = log.read(ACTIONS, 0, 0, n_max=2)
        assert values(ahead) == [b"value-8", b"value-9"]
        assert values(behind) == [b"value-0", b"value-1"]


def check_keys_choose_the_partition_in_every_topic(open_log: OpenLog) -> None:
    records = new_records(0, 200)
    with opened(open_log) as log:
        assert log.n_partitions(IMPRESSIONS) == log.n_partitions(ACTIONS) == N_PARTITIONS
        impressions = log.append(IMPRESSIONS, records)
        actions = log.append(ACTIONS, records)
        partitions = [partition for partition, _ in impressions]
        assert partitions == [partition for partition, _ in actions]
        assert partitions == [log.partition_of(ACTIONS, record.key) for record in records]
        assert set(partitions) == set(range(N_PARTITIONS))
        for (partition, offset), record in zip(actions, records, strict=True):
            assert log.read(ACTIONS, partition, offset, n_max=1)[0].value == record.value


def check_keys_go_where_kafka_sends_them(open_log: OpenLog) -> None:
    # murmur2 of these keys as Kafka's own UtilsTest has it, as signed numbers.
    known = {b"21": -973932308, b"foobar": -790332482, b"abc": 479470107}
    with opened(open_log) as log:
        for key, murmur2 in known.items():
            assert log.partition_of(ACTIONS, key) == (murmur2 & 0x7FFFFFFF) % N_PARTITIONS


def check_control_has_one_partition(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        assert log.n_partitions(CONTROL) == 1
        assert log.append(CONTROL, new_records(0, 3)) == [(0, 0), (0, 1), (0, 2)]


def check_unknown_places_are_refused(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        with pytest.raises(TransportError) as topic:
            log.append("freshrank.unknown", new_records(0, 1))
        assert topic.value.code == "unknown-topic"
        with pytest.raises(TransportError) as partition:
            log.append(ACTIONS, new_records(0, 1), partition=N_PARTITIONS)
        assert partition.value.code == "unknown-partition"


def check_largest_record_passes_and_a_larger_one_is_refused(open_log: OpenLog) -> None:
    largest = NewRecord(b"key", bytes(RECORD_BYTES_MAX - 1))
    with opened(open_log) as log:
        log.append(ACTIONS, [largest], partition=0)
        assert log.read(ACTIONS, 0, 0)[0].value == largest.value
        too_large = NewRecord(b"key", bytes(RECORD_BYTES_MAX))
        with pytest.raises(TransportError) as refused:
            log.append(ACTIONS, [*new_records(0, 1), too_large], partition=0)
        assert refused.value.code == "record-too-large"
        assert log.end_offset(ACTIONS, 0) == 1


def check_any_bytes_pass_unchanged(open_log: OpenLog) -> None:
    records = [NewRecord(bytes([i]) * (i % 5), bytes(range(256))[: i * 3]) for i in range(80)]
    with opened(open_log) as log:
        log.append(ACTIONS, records, partition=0)
        got = [NewRecord(record.key, record.value) for record in read_all(log, ACTIONS, 0)]
        assert got == records


def check_nothing_appended_changes_nothing(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        assert log.append(ACTIONS, []) == []
        assert log.append(ACTIONS, [], partition=0) == []
        assert log.end_offset(ACTIONS, 0) == 0


def check_large_data_comes_back_whole(open_log: OpenLog) -> None:
    value = bytes(range(256)) * 400  # 100 KiB
    with opened(open_log) as log:
        for i in range(20):
            log.append(
                ACTIONS, [NewRecord(b"%d-%d" % (i, j), value) for j in range(5)], partition=2
            )
        records = read_all(log, ACTIONS, 2)
        assert [record.key for record in records] == [
            b"%d-%d" % (i, j) for i in range(20) for j in range(5)
        ]
        assert all(record.value == value for record in records)


def check_concurrent_appends_keep_each_order(open_log: OpenLog) -> None:
    n_threads, n_each = 6, 40
    with opened(open_log) as log:

        def append(thread: int) -> None:
            for i in range(n_each):
                places = log.append(ACTIONS, [NewRecord(b"%d" % thread, b"%d" % i)], partition=0)
                got = log.read(ACTIONS, 0, places[0][1], n_max=1)
                if (got[0].key, got[0].value) != (b"%d" % thread, b"%d" % i):
                    wrong.append(places)

        wrong: list[list[tuple[int, int]]] = []
        threads = [threading.Thread(target=append, args=(i,)) for i in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        records = read_all(log, ACTIONS, 0)
        assert wrong == []
        assert len(records) == n_threads * n_each
        for i in range(n_threads):
            own = [record.value for record in records if record.key == b"%d" % i]
            assert own == [b"%d" % j for j in range(n_each)]


def check_wait_wakes_on_append(open_log: OpenLog) -> None:
    place = TopicPartition(ACTIONS, 3)
    with opened(open_log) as log:
        results: list[bool] = []
        waiter = threading.Thread(
            target=lambda: results.append(log.wait({place: 0}, timeout_s=DEADLINE_S))
        )
        begun_s = time.monotonic()
        waiter.start()
        log.append(ACTIONS, new_records(0, 1), partition=3)
        waiter.join(DEADLINE_S)
        assert results == [True]
        assert time.monotonic() - begun_s < DEADLINE_S / 2


def check_wait_ends_when_time_is_up(open_log: OpenLog) -> None:
    with opened(open_log) as log:
        log.append(ACTIONS, new_records(0, 2), partition=0)
        assert not log.wait({TopicPartition(ACTIONS, 0): 2}, timeout_s=0.02)
        assert log.wait({TopicPartition(ACTIONS, 0): 1}, timeout_s=0.0)


def check_close_wakes_waiters(open_log: OpenLog) -> None:
    log = open_log()
    is_waiting = threading.Event()
    results: list[bool] = []

    def wait() -> None:
        is_waiting.set()
        results.append(log.wait({TopicPartition(ACTIONS, 0): 0}, timeout_s=DEADLINE_S))

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert is_waiting.wait(DEADLINE_S)
    log.close()
    begun_s = time.monotonic()
    waiter.join(DEADLINE_S)
    assert results in ([False], [])  # [] when close came first: waiting on a closed log is refused
    assert time.monotonic() - begun_s < DEADLINE_S / 2


def check_committed_offsets_are_kept_per_group(open_log: OpenLog) -> None:
    first, second = TopicPartition(ACTIONS, 0), TopicPartition(IMPRESSIONS, 1)
    with opened(open_log) as log:
        assert log.committed("joiner") == {}
        log.commit("joiner", {first: 3, second: 4})
        log.commit("joiner", {first: 5})
        log.commit("report", {second: 1})
    with opened(open_log) as log:
        assert log.committed("joiner") == {first: 5, second: 4}
        assert log.committed("report") == {second: 1}


LOG_CHECKS: Final[list[Check]] = [
    check for name, check in sorted(globals().items()) if name.startswith("check_")
]
