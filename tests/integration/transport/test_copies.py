"""Copies of a local log and a parameter channel that are taken while both are written."""

import itertools
from contextlib import closing
from pathlib import Path

import pytest

from freshrank.clock import ManualClock, SystemClock
from freshrank.errors import TransportError
from freshrank.transport.base import ACTIONS, EXAMPLES, NewRecord, TopicPartition
from freshrank.transport.directory import DirectoryChannel
from freshrank.transport.local import LocalLog
from freshrank.transport.local_copy import Limit, copy_log
from tests.meanwhile import meanwhile

PLACE = TopicPartition(EXAMPLES, 0)
N_RECORDS = 60


def opened(directory: Path, clock: ManualClock | None = None) -> LocalLog:
    return LocalLog(
        directory, clock=clock or SystemClock(), segment_bytes=600, retention_ms=1_000_000
    )


def copied(source: Path, target: Path, limit: int | None = None) -> LocalLog:
    """A log that goes on from a copy."""
    target.mkdir()
    copy_log(source, target, {} if limit is None else {PLACE: Limit("joiner-0", limit)})
    return opened(target)


def append(log: LocalLog, first: int, n: int) -> None:
    records = [NewRecord(b"", b"value-%d" % i) for i in range(first, first + n)]
    log.append(EXAMPLES, records, partition=0, producer="joiner-0", first_sequence=first)


def values(log: LocalLog) -> list[bytes]:
    return [one.value for one in log.read(EXAMPLES, 0, log.start_offset(EXAMPLES, 0))]


def test_a_copy_ends_where_its_producer_does(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "log")) as log:
        for first in range(0, N_RECORDS, 3):
            append(log, first, 3)
        assert len(list((tmp_path / "log" / EXAMPLES / "0").glob("*.log"))) > 3
        whole = values(log)
        for limit in range(1, N_RECORDS + 2):
            with closing(copied(tmp_path / "log", tmp_path / f"copy-{limit}", limit)) as copy:
                n = min(limit, N_RECORDS)
                assert values(copy) == whole[:n]
                assert copy.last_sequence(EXAMPLES, 0, "joiner-0") == n - 1
                assert copy.identity == log.identity
                append(copy, n, 1)
                assert copy.end_offset(EXAMPLES, 0) == n + 1


def test_a_copy_holds_nothing_that_is_not_acknowledged(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "log")) as log:
        append(log, 0, 5)
    [*_, last] = sorted((tmp_path / "log" / EXAMPLES / "0").glob("*.log"))
    with last.open("ab") as file:
        file.write(b"torn")
    with closing(copied(tmp_path / "log", tmp_path / "copy")) as copy:
        assert copy.end_offset(EXAMPLES, 0) == 5
    for path in (tmp_path / "copy").rglob("*.log"):
        assert b"torn" not in path.read_bytes()


def test_a_damaged_record_is_not_copied_as_the_end(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "log")) as log:
        append(log, 0, 3)
    [path] = (tmp_path / "log" / EXAMPLES / "0").glob("*.log")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(TransportError, match="is damaged at byte") as caught:
        copied(tmp_path / "log", tmp_path / "copy")
    assert caught.value.code == "log-damaged"


def test_copies_of_a_log_that_is_written_and_trimmed_are_whole(tmp_path: Path) -> None:
    clock = ManualClock(now_ms=0)
    with closing(opened(tmp_path / "log", clock)) as log:

        def write(n: int) -> None:
            log.append(ACTIONS, [NewRecord(b"k", b"%d" % (20 * n + i)) for i in range(20)])
            clock.advance(ms=100_000)

        write(0)
        with meanwhile(lambda n: write(n + 1)):
            start, n_whole = 0, 0
            for number in itertools.count():
                try:
                    one = copied(tmp_path / "log", tmp_path / f"copy-{number}")
                except TransportError as error:
                    if error.code != "log-busy":
                        raise
                    continue  # minutes pass with each append here: some copies lose every race
                with closing(one) as copy:
                    start = copy.start_offset(ACTIONS, 0)
                    read = copy.read(ACTIONS, 0, start, n_max=100_000)
                    assert [int(one.value) for one in read] == list(
                        range(start, copy.end_offset(ACTIONS, 0))
                    )
                n_whole += 1
                if n_whole >= 30 and start:  # retention has removed something, too
                    break


def test_copies_of_a_channel_that_is_published_to_lead_to_their_head(tmp_path: Path) -> None:
    channel = DirectoryChannel(tmp_path / "channel", clock=SystemClock(), keep_deltas=0)
    epoch = channel.open_epoch()
    channel.publish_base(epoch, 0, b"base-0")

    def publish(n: int) -> None:
        channel.publish_delta(epoch, n + 1, b"delta-%d" % (n + 1))
        if n % 5 == 4:
            channel.publish_base(epoch, n + 1, b"base-%d" % (n + 1))

    with meanwhile(publish):
        for number in range(30):
            (tmp_path / f"copy-{number}").mkdir()
            channel.copy(tmp_path / f"copy-{number}")
            copy = DirectoryChannel(tmp_path / f"copy-{number}", clock=SystemClock())
            head, found = copy.head(), copy.base()
            assert head is not None
            assert found == (epoch, head.base_seq, b"base-%d" % head.base_seq)
            for seq in range(head.base_seq + 1, head.seq + 1):
                assert copy.delta(epoch, seq) == b"delta-%d" % seq
            assert copy.open_epoch() == epoch + 1
    channel.close()


def test_a_channel_without_anything_is_copied_as_that(tmp_path: Path) -> None:
    DirectoryChannel(tmp_path / "channel", clock=SystemClock()).copy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["channel"]
