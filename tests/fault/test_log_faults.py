"""The local log when a process dies, a disk fills up, a bit flips or a second writer comes."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from freshrank.clock import SystemClock
from freshrank.errors import TransportError
from freshrank.transport.base import ACTIONS, EXAMPLES, NewRecord, Record, TopicPartition
from freshrank.transport.end_mark import EndMark
from freshrank.transport.local import LocalLog
from freshrank.transport.segments import Tail

DEADLINE_S = 20.0
PARTITION = Path(ACTIONS) / "0"


@contextmanager
def opened(directory: Path, *, segment_bytes: int = 1 << 20) -> Iterator[LocalLog]:
    log = LocalLog(directory, clock=SystemClock(), segment_bytes=segment_bytes)
    try:
        yield log
    finally:
        log.close()


def append(log: LocalLog, first: int, n_records: int) -> None:
    log.append(ACTIONS, [NewRecord(b"k", b"value-%d" % i) for i in range(first, first + n_records)])


def values(log: LocalLog) -> list[bytes]:
    return [record.value for record in read_all(log)]


def read_all(log: LocalLog) -> list[Record]:
    records: list[Record] = []
    while part := log.read(ACTIONS, 0, len(records)):
        records += part
    return records


def read_until_refused(log: LocalLog) -> tuple[list[Record], bool]:
    """The records before the end or the first error, and whether it was an error."""
    records: list[Record] = []
    try:
        while part := log.read(ACTIONS, 0, len(records)):
            records += part
    except TransportError:
        return records, True
    return records, False


def expected(n_records: int) -> list[bytes]:
    return [b"value-%d" % i for i in range(n_records)]


def segments(directory: Path) -> list[Path]:
    return sorted((directory / PARTITION).glob("*.log"))


def flip_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def run_script(script: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline_s, "it did not come to pass in time"
        time.sleep(0.005)


class TestTornTail:
    """A process died in the middle of a write: nobody was told that the record is in the log."""

    @pytest.fixture
    def torn(self, tmp_path: Path) -> tuple[Path, int, int]:
        """A log of five acknowledged records and one that is not; the last record's two ends."""
        directory = tmp_path / "log"
        with opened(directory) as log:
            append(log, 0, 5)
            start = segments(directory)[0].stat().st_size
            end_mark = (directory / PARTITION / "END").read_bytes()
            append(log, 5, 1)
        (directory / PARTITION / "END").write_bytes(end_mark)
        return directory, start, segments(directory)[0].stat().st_size

    def test_tail_is_cut_at_every_byte_and_the_log_goes_on(
        self, torn: tuple[Path, int, int], tmp_path: Path
    ) -> None:
        original, start, end = torn
        assert end - start > 30
        for n_bytes in range(start, end):
            directory = tmp_path / str(n_bytes)
            shutil.copytree(original, directory)
            os.truncate(segments(directory)[0], n_bytes)
            with opened(directory) as log:
                assert values(log) == expected(5)
                append(log, 5, 2)
                assert values(log) == expected(7)
            with opened(directory) as log:
                assert values(log) == expected(7)

    def test_cut_is_logged(
        self, torn: tuple[Path, int, int], caplog: pytest.LogCaptureFixture
    ) -> None:
        directory, start, _ = torn
        os.truncate(segments(directory)[0], start + 7)
        with caplog.at_level(logging.WARNING), opened(directory):
            assert "torn_bytes=7" in caplog.text

    def test_whole_record_that_was_not_acknowledged_is_kept(
        self, torn: tuple[Path, int, int]
    ) -> None:
        with opened(torn[0]) as log:
            assert values(log) == expected(6)

    def test_kept_record_is_synced_before_it_is_seen(
        self, torn: tuple[Path, int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ends: list[int | None] = []
        monkeypatch.setattr(
            Tail, "sync", lambda tail: ends.append(EndMark(torn[0] / PARTITION).read())
        )
        with opened(torn[0]):
            assert ends == [5]

    def test_garbage_behind_the_tail_is_cut(self, torn: tuple[Path, int, int]) -> None:
        directory, _, end = torn
        for garbage in (bytes(100), b"\xff" * 100, os.urandom(1000)):
            with segments(directory)[0].open("ab") as file:
                file.write(garbage)
            with opened(directory) as log:
                assert values(log) == expected(6)
            assert segments(directory)[0].stat().st_size == end

    def test_leftover_of_a_killed_roll_is_removed(self, torn: tuple[Path, int, int]) -> None:
        directory = torn[0]
        leftover = directory / PARTITION / ".00000000000000000009.log.77-88.tmp"
        leftover.write_bytes(b"half a segm")
        with opened(directory) as log:
            assert values(log) == expected(6)
        assert not leftover.exists()


class TestDamage:
    """What was acknowledged and is no longer readable is an error, never silence."""

    def test_flipped_bit_in_an_older_segment_is_named(self, tmp_path: Path) -> None:
        with opened(tmp_path, segment_bytes=600) as log:
            for i in range(60):
                append(log, i, 1)
        damaged = segments(tmp_path)[1]
        first = int(damaged.stem)
        flip_bit(damaged, damaged.stat().st_size - 1)
        with opened(tmp_path, segment_bytes=600) as log:
            good = log.read(ACTIONS, 0, 0)
            assert [record.offset for record in good] == list(range(len(good)))
            assert len(good) > first
            with pytest.raises(TransportError, match=damaged.name) as error:
                log.read(ACTIONS, 0, len(good))
            assert error.value.code == "log-damaged"
            assert "backup" in str(error.value)
            after = int(segments(tmp_path)[2].stem)
            assert log.read(ACTIONS, 0, after)[0].value == b"value-%d" % after

    def test_flipped_bit_anywhere_is_never_read(self, tmp_path: Path) -> None:
        with opened(tmp_path / "log") as log:
            append(log, 0, 3)
            whole = read_all(log)
        n_bytes = segments(tmp_path / "log")[0].stat().st_size
        for position in range(n_bytes):
            directory = tmp_path / str(position)
            shutil.copytree(tmp_path / "log", directory)
            flip_bit(segments(directory)[0], position)
            with pytest.raises(TransportError) as error, opened(directory):
                pass
            assert error.value.code in ("log-damaged", "newer-version")
            follower = LocalLog(directory, clock=SystemClock(), writable=False)
            good, is_refused = read_until_refused(follower)
            assert is_refused
            assert good == whole[: len(good)]
            follower.close()

    def test_lost_tail_is_refused_until_somebody_accepts_it(self, tmp_path: Path) -> None:
        with opened(tmp_path) as log:
            append(log, 0, 5)
        os.truncate(segments(tmp_path)[0], segments(tmp_path)[0].stat().st_size - 1)
        with pytest.raises(TransportError, match="END says 5") as error, opened(tmp_path):
            pass
        assert error.value.code == "log-damaged"
        (tmp_path / PARTITION / "END").unlink()
        with opened(tmp_path) as log:
            assert values(log) == expected(4)

    def test_lost_segments_are_refused(self, tmp_path: Path) -> None:
        with opened(tmp_path) as log:
            append(log, 0, 5)
        segments(tmp_path)[0].unlink()
        with pytest.raises(TransportError, match="END says 5") as error, opened(tmp_path):
            pass
        assert error.value.code == "log-damaged"

    def test_damaged_groups_and_format_files_are_named(self, tmp_path: Path) -> None:
        with opened(tmp_path) as log:
            log.commit("joiner", {TopicPartition(ACTIONS, 0): 1})
            (tmp_path / "groups" / "joiner.json").write_text('{"a": 1')
            with pytest.raises(TransportError, match=r"joiner\.json") as group:
                log.committed("joiner")
            assert group.value.code == "log-damaged"
        (tmp_path / "log.json").write_text("")
        with pytest.raises(TransportError, match=r"log\.json") as meta, opened(tmp_path):
            pass
        assert meta.value.code == "log-damaged"


_WRITER = """
import sys, threading
from pathlib import Path
from freshrank.clock import SystemClock
from freshrank.transport.base import ACTIONS, EXAMPLES, NewRecord
from freshrank.transport.end_mark import EndMark
from freshrank.transport.local import LocalLog

log = LocalLog(Path(sys.argv[1]), clock=SystemClock(), segment_bytes=20_000)
printing = threading.Lock()

def write(name, topic, **producer):
    i = 0
    while True:
        records = [NewRecord(name.encode(), b"%d" % j) for j in range(i, i + 3)]
        if producer:
            producer["first_sequence"] = i
        log.append(topic, records, partition=0, **producer)
        i += 3
        with printing:
            print(name, i, flush=True)

threads = [threading.Thread(target=write, args=(n, ACTIONS), daemon=True) for n in "ab"]
threads.append(threading.Thread(target=write, args=("p", EXAMPLES), kwargs={"producer": "p"}))
for thread in threads:
    thread.start()
"""


@pytest.mark.parametrize("n_lines", [1, 50, 600])
def test_killed_writer_loses_nothing_it_acknowledged(n_lines: int, tmp_path: Path) -> None:
    process = run_script(_WRITER, str(tmp_path))
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(n_lines)]
    process.send_signal(signal.SIGKILL)
    rest, errors = process.communicate(timeout=DEADLINE_S)
    assert errors == ""
    n_acknowledged = {"a": 0, "b": 0, "p": 0}
    for line in [*lines, *rest.splitlines(keepends=True)]:
        if line.endswith("\n"):  # the last one may be cut off as well
            name, count = line.split()
            n_acknowledged[name] = int(count)
    assert sum(n_acknowledged.values()) >= 3 * n_lines
    with opened(tmp_path) as log:
        records = read_all(log)
        for name in "ab":
            own = [record.value for record in records if record.key == name.encode()]
            assert own == [b"%d" % i for i in range(len(own))]
            assert len(own) >= n_acknowledged[name]
        n_examples = log.end_offset(EXAMPLES, 0)
        assert n_examples >= n_acknowledged["p"]
        assert log.last_sequence(EXAMPLES, 0, "p") == n_examples - 1
        append(log, 0, 1)


_FULL_DISK = """
import resource, sys
from pathlib import Path
from freshrank.clock import SystemClock
from freshrank.errors import TransportError
from freshrank.transport.base import ACTIONS, NewRecord
from freshrank.transport.end_mark import EndMark
from freshrank.transport.local import LocalLog

UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
directory, n_partitions = Path(sys.argv[1]), int(sys.argv[2])
log = LocalLog(directory, clock=SystemClock(), n_partitions=n_partitions)
follower = LocalLog(directory, clock=SystemClock(), n_partitions=n_partitions, writable=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
n_records = 0
sizes = lambda: {path: path.stat().st_size for path in directory.rglob("*.log")}
ends = lambda log: [log.end_offset(ACTIONS, p) for p in range(n_partitions)]
for i in range(1_000):
    # One partition runs full first; the batch goes to all of them.
    records = [NewRecord(b"%d" % j, bytes(300 if j else 900)) for j in range(8)]
    before = sizes()
    try:
        log.append(ACTIONS, records)
    except TransportError as error:
        assert error.code == "disk-full", error.code
        assert "Free some space" in str(error)
        break
    n_records += 8
assert 0 < n_records < 1_000
assert sizes() == before
for one in (log, follower):
    assert sum(ends(one)) == n_records, (ends(one), n_records)
small = log.append(ACTIONS, [NewRecord(b"1", b"small")])
resource.setrlimit(resource.RLIMIT_FSIZE, UNLIMITED)
log.append(ACTIONS, records)
for one in (log, follower):
    read = [r.value for p in range(n_partitions) for r in one.read(ACTIONS, p, 0)]
    assert len(read) == n_records + 9
log.close()
print("as expected")
"""


@pytest.mark.parametrize("n_partitions", [1, 3])
def test_full_disk_refuses_the_append_and_nothing_of_it_is_seen(
    n_partitions: int, tmp_path: Path
) -> None:
    out, errors = run_script(_FULL_DISK, str(tmp_path), str(n_partitions)).communicate(
        timeout=DEADLINE_S
    )
    assert out == "as expected\n", errors
    log = LocalLog(tmp_path, clock=SystemClock(), n_partitions=n_partitions)
    log.append(ACTIONS, [NewRecord(b"", b"")])
    log.close()


class TestFailedSync:
    """The disk takes the bytes and then fails to keep them: they are taken back, all of them."""

    def test_unsynced_records_are_taken_back_and_the_log_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with opened(tmp_path) as log:
            append(log, 0, 3)
            with monkeypatch.context() as patch:
                patch.setattr(Tail, "sync", _failing_sync)
                with pytest.raises(TransportError) as failed:
                    append(log, 3, 4)
                assert failed.value.code == "disk-failed"
                one = [NewRecord(b"", b"")]
                with pytest.raises(TransportError):
                    log.append(EXAMPLES, one, partition=0, producer="p", first_sequence=0)
                assert values(log) == expected(3)
            assert log.last_sequence(EXAMPLES, 0, "p") == -1
            append(log, 3, 1)
            assert values(log) == expected(4)
        with opened(tmp_path) as log:
            assert values(log) == expected(4)

    def test_everybody_who_waits_hears_of_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        results: list[str] = []
        n_threads = 6
        barrier = threading.Barrier(n_threads)

        def try_append() -> None:
            barrier.wait(DEADLINE_S)
            try:
                append(log, 1, 1)
            except TransportError as error:
                results.append(error.code)
            else:
                results.append("appended")

        with opened(tmp_path) as log:
            append(log, 0, 1)
            with monkeypatch.context() as patch:
                patch.setattr(Tail, "sync", _failing_sync)
                threads = [threading.Thread(target=try_append) for _ in range(n_threads)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(DEADLINE_S)
            assert set(results) <= {"disk-failed", "disk-error"}  # who synced, who waited for it
            assert len(results) == n_threads
            assert values(log) == expected(1)
            append(log, 1, 1)
            assert values(log) == expected(2)


def _failing_sync(tail: Tail) -> None:
    raise OSError(5, "Input/output error")


class TestSecondProcess:
    """One process writes, others read."""

    def test_second_writer_is_refused(self, tmp_path: Path) -> None:
        with opened(tmp_path):
            with pytest.raises(TransportError, match="read-only") as refused, opened(tmp_path):
                pass
            assert refused.value.code == "log-in-use"
        with opened(tmp_path) as log:
            append(log, 0, 1)

    def test_writer_in_another_process_is_noticed_until_it_dies(self, tmp_path: Path) -> None:
        process = run_script(_WRITER, str(tmp_path))
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(TransportError) as refused, opened(tmp_path):
            pass
        process.kill()
        process.communicate(timeout=DEADLINE_S)
        assert refused.value.code == "log-in-use"
        with opened(tmp_path) as log:
            assert log.end_offset(ACTIONS, 0) + log.end_offset(EXAMPLES, 0) > 0

    def test_follower_sees_what_another_process_appends(self, tmp_path: Path) -> None:
        with opened(tmp_path):
            pass  # makes the directory, so that the follower may come first
        follower = LocalLog(tmp_path, clock=SystemClock(), writable=False)
        assert follower.read(ACTIONS, 0, 0) == []
        process = run_script(_WRITER, str(tmp_path))
        begun_s = time.monotonic()
        seen: list[Record] = []
        place = TopicPartition(ACTIONS, 0)
        while len(seen) < 2_000:  # over several segments of 20 kB
            assert follower.wait({place: len(seen)}, timeout_s=DEADLINE_S)
            seen += follower.read(ACTIONS, 0, len(seen))
        assert time.monotonic() - begun_s < DEADLINE_S / 2
        process.kill()
        process.communicate(timeout=DEADLINE_S)
        follower.close()
        with opened(tmp_path) as log:
            assert read_all(log)[: len(seen)] == seen
        assert len(segments(tmp_path)) > 2

    def test_follower_outlives_a_restart_of_the_writer(self, tmp_path: Path) -> None:
        with opened(tmp_path) as log:
            append(log, 0, 1)
            follower = LocalLog(tmp_path, clock=SystemClock(), writable=False)
            assert values(follower) == expected(1)
        with opened(tmp_path) as log:
            append(log, 1, 1)
            assert values(follower) == expected(2)
        follower.close()

    def test_follower_cannot_append(self, tmp_path: Path) -> None:
        with opened(tmp_path):
            follower = LocalLog(tmp_path, clock=SystemClock(), writable=False)
            with pytest.raises(TransportError) as refused:
                append(follower, 0, 1)
            assert refused.value.code == "log-read-only"
            follower.close()

    def test_follower_of_nothing_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TransportError) as refused:
            LocalLog(tmp_path / "nowhere", clock=SystemClock(), writable=False)
        assert refused.value.code == "log-missing"

    def test_follower_hears_that_retention_was_faster(self, tmp_path: Path) -> None:
        with opened(tmp_path, segment_bytes=300) as log:
            for i in range(20):
                append(log, i, 1)
            follower = LocalLog(tmp_path, clock=SystemClock(), writable=False)
            assert follower.read(ACTIONS, 0, 0, n_max=1)[0].value == b"value-0"
            removed, kept = segments(tmp_path)[:2]
            removed.unlink()
            with pytest.raises(TransportError) as error:
                follower.read(ACTIONS, 0, 0)
            assert error.value.code == "offset-removed"
            assert follower.start_offset(ACTIONS, 0) == int(kept.stem)
            follower.close()

    def test_follower_does_not_see_what_is_not_acknowledged(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        is_syncing, may_go_on = threading.Event(), threading.Event()

        def slow_sync(tail: Tail) -> None:
            is_syncing.set()
            assert may_go_on.wait(DEADLINE_S)

        with opened(tmp_path) as log:
            append(log, 0, 1)
            follower = LocalLog(tmp_path, clock=SystemClock(), writable=False)
            monkeypatch.setattr(Tail, "sync", slow_sync)
            thread = threading.Thread(target=append, args=(log, 1, 1))
            thread.start()
            assert is_syncing.wait(DEADLINE_S)
            during = [values(log), values(follower)]
            may_go_on.set()
            thread.join(DEADLINE_S)
            assert during == [expected(1)] * 2
            assert [values(log), values(follower)] == [expected(2)] * 2
            follower.close()


def test_open_and_close_leaks_no_descriptors(tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc")
    counts = set()
    for _ in range(4):
        with opened(tmp_path, segment_bytes=300) as log:
            append(log, 0, 20)
            append(log, 0, 20)
            read_all(log)
            follower = LocalLog(tmp_path, clock=SystemClock(), writable=False)
            read_all(follower)
            follower.close()
        counts.add(len(list(descriptors.iterdir())))
    assert len(counts) == 1


def test_concurrent_appends_share_fsyncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_append, real_sync = Tail.append, Tail.sync
    n_threads, n_written, n_syncs = 8, 0, 0

    def counted_append(tail: Tail, data: bytes, appended_at_ms: int) -> None:
        nonlocal n_written
        real_append(tail, data, appended_at_ms)
        n_written += 1

    def slow_sync(tail: Tail) -> None:
        nonlocal n_syncs
        n_syncs += 1
        wait_until(lambda: n_written == n_threads)
        real_sync(tail)

    with opened(tmp_path) as log:
        append(log, 0, 1)
        monkeypatch.setattr(Tail, "append", counted_append)
        monkeypatch.setattr(Tail, "sync", slow_sync)
        threads = [threading.Thread(target=append, args=(log, 0, 1)) for _ in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert len(values(log)) == n_threads + 1
    # The first to wait, all the others, and one that wrote but had not yet said so.
    assert n_syncs <= 3
