"""The archive holds every example of the log once, by hour, whatever happens to its writer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from freshrank import examples
from freshrank.errors import TransportError
from freshrank.examples import BatchInfo, ExampleBatch
from freshrank.transport.base import EXAMPLES, NewRecord
from freshrank.transport.files import sync_directory
from freshrank.transport.local import LocalLog
from freshrank.transport.local_copy import copy_log
from tests.fault.processes import full_disk
from tests.unit.trainer.archives import HOUR_MS, archived, archiver, at, opened, record_hours
from tests.unit.trainer.conftest import MakeBench
from tests.unit.trainer.example_records import NOW_MS, Bench, make_batch, random_batch
from trainer import archive as archive_module
from trainer import archive_part
from trainer.archive_files import hour_of, part_names
from trainer.queue import Position
from trainer.state import TrainerState

Rows = list[tuple[int, bytes]]


def content(bench: Bench, batch: ExampleBatch) -> bytes:
    return examples.encode(replace(batch, info=BatchInfo("")), bench.tasks)


def in_log(bench: Bench) -> Rows:
    """Offset and rows of every record that has rows."""
    slots = [slot.name for slot in bench.encoder.slots]
    records = bench.log.read(EXAMPLES, 0, bench.log.start_offset(EXAMPLES, 0), n_max=10_000)
    found = [(r.offset, examples.decode(r.value, bench.tasks, slots)) for r in records]
    return [(offset, content(bench, batch)) for offset, batch in found if batch.n_rows]


def in_archive(bench: Bench, directory: Path) -> Rows:
    positions = {0: Position(0, 0)}
    state = TrainerState(bench.encoder.schema_hash, 1, positions, bench.log.identity)
    found = []
    for read in opened(bench, directory, allow_gaps=True).records(state, set()):
        assert isinstance(read.judged, tuple)
        batch, _ = read.judged
        if batch.n_rows:
            found.append((read.record.offset, content(bench, batch)))
    return found


def test_an_archive_gives_back_what_the_log_holds(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench()
    record_hours(bench)
    assert in_archive(bench, archived(bench, tmp_path / "a")) == in_log(bench)


def test_examples_without_dense_values_come_back(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(features=[{"name": "item_id", "type": "id", "scope": "item", "dim": 4}])
    bench.append(make_batch(bench.encoder, {"item_id": [[1], [2]]}, [1, 0]))
    assert in_archive(bench, archived(bench, tmp_path / "a")) == in_log(bench)


def test_files_are_cut_by_the_hour_of_the_watermark_which_never_goes_back(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = make_bench()
    rng = np.random.default_rng(0)
    for hours in (0, 0, 1, 0, 3):
        bench.append(at(random_batch(bench.encoder, rng, 2), NOW_MS + hours * HOUR_MS))
    names = part_names(archived(bench, tmp_path / "a"))
    assert [(name.hour, name.first, name.last) for name in names] == [
        (hour_of(NOW_MS), 0, 1),
        (hour_of(NOW_MS + HOUR_MS), 2, 3),
        (hour_of(NOW_MS + 3 * HOUR_MS), 4, 4),
    ]


def test_names_sort_in_the_order_of_the_examples_and_say_the_hour_in_words() -> None:
    assert hour_of(0) == "1970-01-01T00"
    assert hour_of(NOW_MS) == "2023-11-14T22"
    assert hour_of(-5) == "1970-01-01T00"


@pytest.mark.parametrize("n_before", range(0, 12, 3))
def test_an_archiver_that_died_goes_on_behind_its_last_whole_file(
    make_bench: MakeBench, tmp_path: Path, n_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "_RECORDS_MAX", 1)
    bench = make_bench()
    record_hours(bench)
    dead = archiver(bench, tmp_path / "a")
    for _ in range(n_before):
        dead.step(0.0)
    dead.release()  # as the kernel does
    archived(bench, tmp_path / "a")
    assert in_archive(bench, tmp_path / "a") == in_log(bench)
    assert [path for path in (tmp_path / "a").iterdir() if path.suffix == ".tmp"] == []


def test_a_file_waits_no_longer_than_five_minutes(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench()
    record_hours(bench, n_records=1)
    one = archiver(bench, tmp_path / "a")
    one.step(0.0)
    bench.manual.advance(ms=299_000)
    one.step(0.0)
    assert part_names(tmp_path / "a") == []
    bench.manual.advance(ms=1_000)
    one.step(0.0)
    assert len(part_names(tmp_path / "a")) == 1
    assert one.accounting() == {"archive_files": 1, "archive_rows": 10}


def test_large_files_are_cut_and_read_back_in_groups(
    make_bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_part, "GROUP_ROWS", 25)
    monkeypatch.setattr(archive_part, "FILE_ROWS_MAX", 60)
    bench = make_bench()
    rng = np.random.default_rng(0)
    bench.append(*(random_batch(bench.encoder, rng, 10) for _ in range(14)))
    names = part_names(archived(bench, tmp_path / "a"))
    assert [name.last - name.first + 1 for name in names] == [6, 6, 2]
    file = pq.ParquetFile(tmp_path / "a" / names[0].path)
    assert [file.metadata.row_group(n).num_rows for n in range(2)] == [30, 30]
    assert in_archive(bench, tmp_path / "a") == in_log(bench)


def test_whole_old_hours_go(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench()
    record_hours(bench, n_records=12)  # four hours
    archiver(bench, tmp_path / "a", keep="2h").close()
    hours = [name.hour for name in part_names(tmp_path / "a")]
    last_ms = NOW_MS + 11 * HOUR_MS // 3
    assert hours[0] == hour_of(last_ms - 2 * HOUR_MS)
    assert len(list((tmp_path / "a").glob("hour=*"))) == len(set(hours)) == 3
    rest = in_archive(bench, tmp_path / "a")
    assert rest == in_log(bench)[-len(rest) :]


def test_records_that_the_log_removed_are_counted_and_named(
    make_bench: MakeBench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench()

    def log() -> LocalLog:
        return LocalLog(
            bench.directory / "short", clock=bench.clock, segment_bytes=1, retention_ms=60_000
        )

    bench.log.close()
    bench.log = log()
    record_hours(bench, n_records=2)
    archived(bench, tmp_path / "a")
    record_hours(bench, n_records=3)
    bench.manual.advance(ms=120_000)
    record_hours(bench, n_records=1, seed=1)
    bench.log.close()
    bench.log = log()  # opening applies the retention
    assert bench.log.start_offset(EXAMPLES, 0) == 5

    late = archiver(bench, tmp_path / "a")
    late.close()

    assert late.accounting()["archive_gap_records"] == 3
    assert "offsets=2..4" in caplog.text
    names = part_names(tmp_path / "a")
    assert [(name.first, name.last) for name in names] == [(0, 1), (5, 5)]


def test_records_that_are_no_examples_are_counted_and_leave_no_gap(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = make_bench()
    for _ in range(2):
        bench.log.append(EXAMPLES, [NewRecord(b"", b"rubbish")])
        record_hours(bench, n_records=1)
    one = archiver(bench, tmp_path / "a")
    one.close()
    assert one.accounting()["archive_unreadable"] == 2
    assert [(name.first, name.last) for name in part_names(tmp_path / "a")] == [(0, 3)]


def test_examples_of_another_schema_get_a_file_of_their_own(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench, other = make_bench(), make_bench(model={"hidden": [3]})
    for one in (bench, other, bench):
        bench.append(make_batch(one.encoder, {}, [1]))
    names = part_names(archived(bench, tmp_path / "a"))
    assert [(name.first, name.last) for name in names] == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("n_bytes", [0, 4, 3_000])
def test_a_full_disk_is_told_and_nothing_is_lost_or_doubled_afterwards(
    make_bench: MakeBench, tmp_path: Path, n_bytes: int
) -> None:
    bench = make_bench()
    record_hours(bench)
    one = archiver(bench, tmp_path / "a")
    with full_disk(n_bytes), pytest.raises(TransportError) as caught:
        one.close()
    assert caught.value.code == "disk-full"
    one.close()
    assert in_archive(bench, tmp_path / "a") == in_log(bench)


def test_a_file_that_is_in_its_place_is_not_written_again_when_the_disk_then_fails(
    make_bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    record_hours(bench, n_records=2)
    one = archiver(bench, tmp_path / "a")

    def fails_once(path: Path) -> None:
        if path.is_dir():
            monkeypatch.setattr(archive_module, "sync_directory", sync_directory)
            raise OSError(5, "input/output error")
        sync_directory(path)

    monkeypatch.setattr(archive_module, "sync_directory", fails_once)
    with pytest.raises(TransportError, match="input/output error"):
        one.close()
    record_hours(bench, n_records=2, seed=1)
    one.close()
    assert in_archive(bench, tmp_path / "a") == in_log(bench)


def test_a_file_is_a_plain_table_to_other_programs(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench()
    slots = {"item_id": [[7], [2**64 - 1]], "tags": [[1, 2], []]}
    bench.append(make_batch(bench.encoder, slots, [1, 0], dense=[[0.5], [2.0]]))
    table = pq.read_table(archived(bench, tmp_path / "a"))
    assert table.column("request_id").to_pylist() == ["r0", "r1"]
    assert table.column("item").to_pylist() == ["i0", "i1"]
    assert table.column("slot.item_id").to_pylist() == [[7], [2**64 - 1]]
    assert table.column("slot.tags").to_pylist() == [[1, 2], []]
    assert table.column("dense").to_pylist() == [[0.5], [2.0]]
    assert table.column("label.click").to_pylist() == [1.0, 0.0]
    columns = (table.column(name).to_pylist() for name in ("partition", "offset", "row"))
    places = zip(*columns, strict=True)
    assert list(places) == [(0, 0, 0), (0, 0, 1)]
    assert table.column("hour").to_pylist() == ["1970-01-01T00"] * 2


def test_files_beyond_the_end_of_a_log_that_was_set_back_are_moved_aside(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench, copy = make_bench(), tmp_path / "1" / "log"
    record_hours(bench, n_records=6)
    copy.mkdir(parents=True)
    copy_log(bench.directory / "log", copy, {})
    record_hours(bench, n_records=12, seed=1)
    directory = archived(bench, tmp_path / "a")
    n_files = len(part_names(directory))
    restored = make_bench()
    assert restored.log.identity == bench.log.identity
    record_hours(restored, n_records=3, seed=2)
    assert in_archive(restored, archived(restored, directory)) == in_log(restored)
    assert list(directory.rglob("*.overtaken"))
    assert len(part_names(directory)) < n_files + 3
