"""A partition of an archive is written by one process at a time, whatever happens to its lock."""

import fcntl
from pathlib import Path

import numpy as np
import pytest

from freshrank.errors import TransportError
from freshrank.transport.base import EXAMPLES
from tests.unit.trainer.archives import archived, archiver
from tests.unit.trainer.conftest import MakeBench
from tests.unit.trainer.example_records import Bench, random_batch
from trainer.archive_files import part_names


def two_partitions(make_bench: MakeBench) -> Bench:
    bench = make_bench(trainer={"batching": "adaptive"}, log={"partitions": 2})
    rng = np.random.default_rng(0)
    for partition in (0, 1, 1):
        bench.append(random_batch(bench.encoder, rng, 2), partition=partition)
    return bench


def archived_here(directory: Path) -> list[tuple[int, int, int]]:
    return [(name.partition, name.first, name.last) for name in part_names(directory)]


def test_every_partition_has_files_of_its_own(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = two_partitions(make_bench)
    assert archived_here(archived(bench, tmp_path / "a")) == [(0, 0, 0), (1, 0, 1)]


def test_a_partition_is_written_by_one_at_a_time(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = two_partitions(make_bench)
    frozen = archiver(bench, tmp_path / "a", wanted=lambda: [0])
    frozen.step(0.0)
    successor = archiver(bench, tmp_path / "a")
    while successor.step(0.0):
        pass
    assert successor.positions() == {(EXAMPLES, 1): 2}

    frozen.close()
    assert successor.step(0.0) == 0  # it goes on behind what the other has finished
    assert successor.positions() == {(EXAMPLES, 0): 1, (EXAMPLES, 1): 2}
    successor.close()
    assert archived_here(tmp_path / "a") == [(0, 0, 0), (1, 0, 1)]


def test_partitions_come_and_go_without_the_others_noticing(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = two_partitions(make_bench)
    of_first, of_second = {0, 1}, set[int]()
    first = archiver(bench, tmp_path / "a", wanted=lambda: of_first)
    second = archiver(bench, tmp_path / "a", wanted=lambda: of_second)
    first.step(0.0)
    of_first.remove(1)
    of_second.add(1)
    second.step(0.0)
    assert second.positions() == {}
    first.step(0.0)
    assert archived_here(tmp_path / "a") == [(1, 0, 1)]  # that of 0 is still open
    second.step(0.0)
    assert second.positions() == {(EXAMPLES, 1): 2}
    second.close()
    first.close()
    assert archived_here(tmp_path / "a") == [(0, 0, 0), (1, 0, 1)]


def test_an_archiver_that_lost_its_lock_leaves_no_file(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = two_partitions(make_bench)
    cut_off, successor = (archiver(bench, tmp_path / "a") for _ in range(2))
    cut_off.step(0.0)
    for lock in cut_off._claims._locks.values():
        fcntl.flock(lock, fcntl.LOCK_UN)  # as a server of files does that misses its machine
    successor.step(0.0)
    with pytest.raises(TransportError) as taken:
        cut_off.close()
    assert taken.value.code == "archive-taken"
    assert archived_here(tmp_path / "a") == []
    successor.close()
    assert archived_here(tmp_path / "a") == [(0, 0, 0), (1, 0, 1)]
    assert list((tmp_path / "a").glob("*.tmp")) == []


def test_an_archiver_that_gets_a_lost_lock_back_does_not_write_what_another_has(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = two_partitions(make_bench)
    cut_off = archiver(bench, tmp_path / "a")
    for lock in cut_off._claims._locks.values():
        fcntl.flock(lock, fcntl.LOCK_UN)
    archived(bench, tmp_path / "a")  # by another, which has ended
    assert archived_here(tmp_path / "a") == [(0, 0, 0), (1, 0, 1)]
    cut_off.step(0.0)
    bench.manual.advance(ms=300_000)
    with pytest.raises(TransportError, match="another process archives") as taken:
        cut_off.step(0.0)
    assert taken.value.code == "archive-taken"
    with pytest.raises(TransportError, match="another process archives"):
        cut_off.close()
    assert archived_here(tmp_path / "a") == [(0, 0, 0), (1, 0, 1)]
    assert archiver(bench, tmp_path / "a").positions() == {(EXAMPLES, 0): 1, (EXAMPLES, 1): 2}


def test_a_partition_that_is_left_while_the_log_is_away_leaves_no_half_a_file(
    make_bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = two_partitions(make_bench)
    wanted = {0, 1}
    one = archiver(bench, tmp_path / "a", wanted=lambda: wanted)
    one.step(0.0)
    wanted.remove(1)
    with monkeypatch.context() as patched:
        patched.setattr(bench.log, "end_offset", fails)
        with pytest.raises(TransportError, match="the log is away"):
            one.step(0.0)
    bench.manual.advance(ms=300_000)
    one.step(0.0)
    assert archived_here(tmp_path / "a") == [(0, 0, 0)]
    wanted.add(1)  # it comes back
    one.step(0.0)
    one.close()
    assert archived_here(tmp_path / "a") == [(0, 0, 0), (1, 0, 1)]


def test_what_another_left_that_cannot_be_removed_is_tried_again(
    make_bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = two_partitions(make_bench)
    wanted = set[int]()
    one = archiver(bench, tmp_path / "a", wanted=lambda: wanted)
    wanted.add(0)
    (tmp_path / "a" / f".0-{bench.log.identity}-dead.tmp").touch()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuses)
        with pytest.raises(TransportError) as refused:
            one.step(0.0)
    assert refused.value.code == "disk-error"
    one.step(0.0)  # nobody has the lock
    assert one.positions() == {(EXAMPLES, 0): 1}
    one.close()


def refuses(*_: object, **__: object) -> None:
    raise PermissionError(13, "not yours")


def test_what_fails_behind_the_lock_is_tried_again(
    make_bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = two_partitions(make_bench)
    wanted = set[int]()
    one = archiver(bench, tmp_path / "a", wanted=lambda: wanted)
    wanted |= {0, 1}
    with monkeypatch.context() as patched:
        patched.setattr(bench.log, "start_offset", fails)
        with pytest.raises(TransportError):
            archiver(bench, tmp_path / "a")  # at its start
        with pytest.raises(TransportError):
            one.step(0.0)  # and later
    one.step(0.0)
    assert one.positions() == {(EXAMPLES, 0): 1, (EXAMPLES, 1): 2}
    one.close()
    assert archived_here(tmp_path / "a") == [(0, 0, 0), (1, 0, 1)]


def fails(*_: object) -> int:
    raise TransportError("the log is away")
