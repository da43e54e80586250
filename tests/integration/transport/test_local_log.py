"""The local log passes the checks of all logs, and keeps what only it promises."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from freshrank.clock import ManualClock, SystemClock
from freshrank.errors import TransportError
from freshrank.transport.base import ACTIONS, ENTITIES, EXAMPLES, NewRecord, TopicPartition
from freshrank.transport.local import LocalLog
from freshrank.transport.partition_writer import Fsync
from freshrank.transport.partitioner import murmur2, partition_of_key
from tests.integration.transport.idempotence_checks import IDEMPOTENCE_CHECKS
from tests.integration.transport.log_checks import (
    LOG_CHECKS,
    N_PARTITIONS,
    Check,
    new_records,
    opened,
    read_all,
    values,
)

OpenLocalLog = Callable[[], LocalLog]


@pytest.mark.parametrize("segment_bytes", [64 << 20, 600], ids=["one-segment", "many-segments"])
@pytest.mark.parametrize(
    "check",
    LOG_CHECKS + IDEMPOTENCE_CHECKS,
    ids=lambda check: check.__name__.removeprefix("check_"),
)
def test_local_log_passes(check: Check, segment_bytes: int, tmp_path: Path) -> None:
    check(
        lambda: LocalLog(
            tmp_path / "log",
            clock=SystemClock(),
            n_partitions=N_PARTITIONS,
            segment_bytes=segment_bytes,
        )
    )


@pytest.mark.parametrize("fsync", ["always", "never"])
def test_every_fsync_policy_keeps_the_records(fsync: Fsync, tmp_path: Path) -> None:
    def open_log() -> LocalLog:
        return LocalLog(tmp_path, clock=SystemClock(), fsync=fsync)

    with opened(open_log) as log:
        log.append(ACTIONS, new_records(0, 10))
        assert log.end_offset(ACTIONS, 0) == 10
    with opened(open_log) as log:
        assert values(read_all(log, ACTIONS, 0)) == [b"value-%d" % i for i in range(10)]


def test_murmur2_agrees_with_kafka() -> None:
    # org.apache.kafka.common.utils.UtilsTest.testMurmur2
    known = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
        b"abc": 479470107,
    }
    assert {key: murmur2(key) for key in known} == {
        key: signed & 0xFFFFFFFF for key, signed in known.items()
    }
    # Kafka takes the sign bit away, then the remainder; 3 partitions show it where 4 do not.
    assert {key: partition_of_key(key, 3) for key in known} == {
        key: (signed + 2**31 if signed < 0 else signed) % 3 for key, signed in known.items()
    }


def test_append_time_stays_when_the_clock_steps_back(tmp_path: Path) -> None:
    clock = ManualClock(now_ms=5_000)

    def open_log() -> LocalLog:
        return LocalLog(tmp_path, clock=clock)

    with opened(open_log) as log:
        log.append(ACTIONS, new_records(0, 1))
        clock.advance(ms=-4_000)
        log.append(ACTIONS, new_records(1, 1))
    with opened(open_log) as log:
        log.append(ACTIONS, new_records(2, 1))
        clock.advance(ms=5_000)
        log.append(ACTIONS, new_records(3, 1))
        times_ms = [record.appended_at_ms for record in read_all(log, ACTIONS, 0)]
    assert times_ms == [5_000, 5_000, 5_000, 6_000]


def test_append_time_stays_over_a_restart_with_an_empty_segment(tmp_path: Path) -> None:
    clock = ManualClock(now_ms=100_000)

    def open_log() -> LocalLog:
        return LocalLog(tmp_path, clock=clock, retention_ms=100_000)

    with opened(open_log) as log:
        log.append(ACTIONS, new_records(0, 1))
        clock.advance(ms=60_000)  # more than a quarter of the retention: a segment begins
        log.wait({TopicPartition(ACTIONS, 0): 1}, timeout_s=0.0)
    assert len(list((tmp_path / ACTIONS / "0").glob("*.log"))) == 2
    clock.advance(ms=-100_000)
    with opened(open_log) as log:
        log.append(ACTIONS, new_records(1, 1))
        assert [record.appended_at_ms for record in read_all(log, ACTIONS, 0)] == [100_000] * 2


def test_segment_is_as_documented(tmp_path: Path) -> None:
    """Logs outlive programs: a change of these bytes needs a new format version."""
    with opened(lambda: LocalLog(tmp_path, clock=ManualClock(now_ms=0x0102030405))) as log:
        log.append(EXAMPLES, [NewRecord(b"key", b"value"), NewRecord(b"", b"")])
        log.append(
            EXAMPLES, [NewRecord(b"", b"v")], partition=0, producer="joiner", first_sequence=0
        )
    start = b"\x83\xabbase_offset\x00\xb3last_appended_at_ms\x00\xa9producers\x80"
    data = b"FRSEGM" + struct.pack("<HII", 1, len(start), zlib.crc32(start)) + start
    for sequence, producer, key, value in (
        (-1, b"", b"key", b"value"),
        (-1, b"", b"", b""),
        (0, b"joiner", b"", b"v"),
    ):
        length = 28 + len(producer + key + value)
        body = struct.pack("<IqqHBB", length, 0x0102030405, sequence, len(key), len(producer), 0xF5)
        body += producer + key + value
        data += struct.pack("<I", zlib.crc32(body)) + body
    directory = tmp_path / EXAMPLES / "0"
    assert (directory / "00000000000000000000.log").read_bytes() == data
    assert (directory / "END").read_bytes() == struct.pack("<QQ", 3, 2**64 - 4)


def test_another_number_of_partitions_is_refused(tmp_path: Path) -> None:
    LocalLog(tmp_path, clock=SystemClock(), n_partitions=2).close()
    for n_partitions in (1, 3):
        with pytest.raises(TransportError) as refused:
            LocalLog(tmp_path, clock=SystemClock(), n_partitions=n_partitions)
        assert refused.value.code == "log-partitions"
    LocalLog(tmp_path, clock=SystemClock(), n_partitions=2).close()


@pytest.mark.parametrize("n_partitions", [0, 4097])
def test_impossible_number_of_partitions_is_refused(n_partitions: int, tmp_path: Path) -> None:
    with pytest.raises(TransportError) as refused:
        LocalLog(tmp_path, clock=SystemClock(), n_partitions=n_partitions)
    assert refused.value.code == "log-partitions"


def test_log_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    LocalLog(tmp_path, clock=SystemClock()).close()
    (tmp_path / "log.json").write_text(json.dumps({"format": 2, "n_partitions": 1}))
    with pytest.raises(TransportError) as refused:
        LocalLog(tmp_path, clock=SystemClock())
    assert refused.value.code == "newer-version"


def test_closed_log_is_refused(tmp_path: Path) -> None:
    log = LocalLog(tmp_path, clock=SystemClock())
    log.append(ACTIONS, new_records(0, 1))
    log.close()
    log.close()
    with pytest.raises(TransportError) as refused:
        log.append(ACTIONS, new_records(0, 1))
    assert refused.value.code == "log-closed"


@pytest.mark.parametrize("group", ["", "../up", "a/b", ".hidden", "x" * 101])
def test_group_name_that_is_no_file_name_is_refused(group: str, tmp_path: Path) -> None:
    with opened(lambda: LocalLog(tmp_path, clock=SystemClock())) as log:
        with pytest.raises(TransportError) as refused:
            log.commit(group, {TopicPartition(ACTIONS, 0): 1})
        assert refused.value.code == "group-name"


class TestRetention:
    """Records older than ten seconds leave, whole segments at a time, looked at once a minute."""

    RETENTION_MS = 10_000

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock(now_ms=1_000_000)

    @pytest.fixture
    def open_log(self, clock: ManualClock, tmp_path: Path) -> OpenLocalLog:
        return lambda: LocalLog(
            tmp_path, clock=clock, retention_ms=self.RETENTION_MS, segment_bytes=500
        )

    def test_old_records_leave_and_new_ones_stay(
        self, open_log: OpenLocalLog, clock: ManualClock
    ) -> None:
        with opened(open_log) as log:
            log.append(ACTIONS, new_records(0, 50))
            clock.advance(ms=60_000)
            log.append(ACTIONS, new_records(50, 10))
            clock.advance(ms=60_000)
            log.append(ACTIONS, new_records(60, 1))
            assert log.start_offset(ACTIONS, 0) == 60
            assert values(read_all(log, ACTIONS, 0)) == [b"value-60"]
            with pytest.raises(TransportError) as removed:
                log.read(ACTIONS, 0, 59)
            assert removed.value.code == "offset-removed"

    def test_records_younger_than_the_retention_stay(
        self, open_log: OpenLocalLog, clock: ManualClock
    ) -> None:
        with opened(open_log) as log:
            clock.advance(ms=55_000)
            log.append(ACTIONS, new_records(0, 50))
            clock.advance(ms=self.RETENTION_MS)
            log.append(ACTIONS, new_records(50, 1))
            assert log.start_offset(ACTIONS, 0) == 0

    def test_quiet_topic_loses_its_old_records_too(
        self, open_log: OpenLocalLog, clock: ManualClock
    ) -> None:
        with opened(open_log) as log:
            log.append(ACTIONS, new_records(0, 3))
            for _ in range(2):
                clock.advance(ms=60_000)
                log.wait({TopicPartition(EXAMPLES, 0): 0}, timeout_s=0.0)
            assert log.start_offset(ACTIONS, 0) == log.end_offset(ACTIONS, 0) == 3

    def test_features_of_items_and_users_stay_however_old(
        self, open_log: OpenLocalLog, clock: ManualClock
    ) -> None:
        with opened(open_log) as log:
            log.append(ENTITIES, new_records(0, 3))
            for _ in range(2):
                clock.advance(ms=60_000)
                log.wait({TopicPartition(EXAMPLES, 0): 0}, timeout_s=0.0)
            assert (log.start_offset(ENTITIES, 0), log.end_offset(ENTITIES, 0)) == (0, 3)

    def test_offsets_and_sequences_outlive_the_records(
        self, open_log: OpenLocalLog, clock: ManualClock
    ) -> None:
        with opened(open_log) as log:
            log.append(EXAMPLES, new_records(0, 9), partition=0, producer="j", first_sequence=0)
            clock.advance(ms=60_000)
            log.append(ACTIONS, new_records(0, 1))
        with opened(open_log) as log:
            assert log.start_offset(EXAMPLES, 0) == log.end_offset(EXAMPLES, 0) == 9
            assert log.last_sequence(EXAMPLES, 0, "j") == 8
            places = log.append(
                EXAMPLES, new_records(8, 2), partition=0, producer="j", first_sequence=8
            )
            assert places == [(0, -1), (0, 9)]


def test_read_crosses_segments_in_one_call(tmp_path: Path) -> None:
    with opened(lambda: LocalLog(tmp_path, clock=SystemClock(), segment_bytes=400)) as log:
        for i in range(100):
            log.append(ACTIONS, new_records(i, 1))
        assert len(list((tmp_path / ACTIONS / "0").glob("*.log"))) > 5
        assert values(log.read(ACTIONS, 0, 3, n_max=90)) == [b"value-%d" % i for i in range(3, 93)]


def test_too_many_producers_are_refused(tmp_path: Path) -> None:
    with opened(lambda: LocalLog(tmp_path, clock=SystemClock(), fsync="never")) as log:
        for i in range(1_000):
            log.append(EXAMPLES, new_records(0, 1), partition=0, producer=f"p{i}", first_sequence=0)
        with pytest.raises(TransportError) as refused:
            log.append(EXAMPLES, new_records(0, 1), partition=0, producer="p", first_sequence=0)
        assert refused.value.code == "too-many-producers"


def test_key_beyond_its_limit_is_refused(tmp_path: Path) -> None:
    with opened(lambda: LocalLog(tmp_path, clock=SystemClock())) as log:
        log.append(ACTIONS, [NewRecord(bytes(65_535), b"")])
        with pytest.raises(TransportError) as refused:
            log.append(ACTIONS, [NewRecord(bytes(65_536), b"")])
        assert refused.value.code == "record-too-large"


def test_two_logs_have_two_identities_and_one_of_an_earlier_version_gets_its_own(
    tmp_path: Path,
) -> None:
    def identity(name: str) -> str:
        with opened(lambda: LocalLog(tmp_path / name, clock=SystemClock())) as log:
            return log.identity

    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "log.json").write_text('{"format":1,"n_partitions":1}')
    assert len({identity("a"), identity("b"), identity("earlier")}) == 3
    assert identity("earlier") == identity("earlier") != ""
