"""History is learned before the log, each example once; bad archives are refused by name."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freshrank.errors import DataError, SchemaError
from freshrank.transport.base import EXAMPLES
from freshrank.transport.local import LocalLog
from tests.unit.trainer.archives import archived, opened, record_hours
from tests.unit.trainer.conftest import MakeBench
from tests.unit.trainer.example_records import NOW_MS, Bench, make_batch, random_batch
from trainer.archive_files import part_names
from trainer.fingerprint import fingerprint
from trainer.loop import Trainer
from trainer.queue import Position

ADAPTIVE = {"trainer": {"batching": "adaptive", "batch_max": 32}}
DAY_MS = 86_400_000


def historian(bench: Bench, directory: Path, **options: Any) -> Trainer:
    """A trainer that learns the archive first."""
    return bench.trainer(opened(bench, directory, **options))


def step_all(trainer: Trainer) -> int:
    """Rows learned until nothing is left, those of a start that catches up too."""
    before = rows_learned(trainer)
    while trainer.step(0.0):
        pass
    return rows_learned(trainer) - before


def rows_learned(trainer: Trainer) -> int:
    return trainer.accounting().get("rows_learned", 0)


def print_of(trainer: Trainer) -> str:
    return fingerprint(trainer.learner)


def forget(bench: Bench) -> int:
    """Let retention remove everything that stands in the bench's log; returns where it ended."""
    end = bench.log.end_offset(EXAMPLES, 0)
    bench.manual.advance(ms=DAY_MS)
    for _ in range(2):  # the segment in use stays
        bench.log.close()
        bench.log = LocalLog(
            bench.directory / "log", clock=bench.clock, segment_bytes=1, retention_ms=1_000
        )
        record_hours(bench, n_records=1, seed=5)
    return end


def test_history_of_another_log_and_then_the_stream_equal_one_stream(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    old, new, both = make_bench(), make_bench(), make_bench()
    for bench in (old, both):
        record_hours(bench, n_records=9)
    for bench in (new, both):
        record_hours(bench, n_records=8, seed=1)
    trainer = historian(new, archived(old, tmp_path / "a"))
    expected = both.trainer()
    assert step_all(trainer) == step_all(expected) == 160
    assert print_of(trainer) == print_of(expected)
    assert trainer.reader.n_history_rows == 90
    counts = trainer.accounting()
    assert counts["examples_learned"] - counts["history_examples"] == 70
    assert new.progress.offset("trained", "freshrank.actions", 0) == 7  # of this log alone


def test_what_archive_and_log_both_have_is_learned_once(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = make_bench()
    record_hours(bench, n_records=9)
    archived(bench, tmp_path / "a")
    record_hours(bench, n_records=8, seed=1)
    expected = print_of_stream(bench)
    trainer = historian(bench, tmp_path / "a")
    assert step_all(trainer) == 160
    assert print_of(trainer) == expected
    assert trainer.reader.n_history_rows == 90
    assert trainer.accounting()["history_examples"] == 0


def print_of_stream(bench: Bench) -> str:
    """What a trainer without history, whose checkpoint nobody keeps, learns of the whole log."""
    trainer = bench.trainer()
    step_all(trainer)
    return print_of(trainer)


def test_what_the_log_no_longer_has_comes_from_the_archive(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = make_bench(**ADAPTIVE)
    record_hours(bench, n_records=9)
    archived(bench, tmp_path / "a")
    assert forget(bench) == bench.log.start_offset(EXAMPLES, 0) == 9
    assert step_all(historian(bench, tmp_path / "a")) == 110


@pytest.mark.parametrize("is_own", [True, False])
@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_a_stop_within_the_history_goes_on_where_it_was(
    make_bench: MakeBench, tmp_path: Path, n_steps: int, is_own: bool
) -> None:
    old = make_bench()
    record_hours(old, n_records=12)
    archived(old, tmp_path / "a")
    new = old if is_own else make_bench()
    record_hours(new, n_records=4, seed=1)
    undisturbed = historian(new, tmp_path / "a")
    n_rows = step_all(undisturbed)

    stopped = historian(new, tmp_path / "a")
    for _ in range(n_steps):
        stopped.step(0.0)
    assert not stopped._is_started  # half a history is not published
    stopped.close()
    again = historian(new, tmp_path / "a")
    assert rows_learned(again) == 32 * n_steps

    assert step_all(again) == n_rows - 32 * n_steps
    assert print_of(again) == print_of(undisturbed)


def test_a_checkpoint_passes_over_the_history_that_it_has_learned(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    old, new = make_bench(**ADAPTIVE), make_bench(**ADAPTIVE)
    record_hours(old, n_records=6)
    archived(old, tmp_path / "a")
    first = historian(new, tmp_path / "a")
    assert step_all(first) == 60
    first.close()
    record_hours(old, n_records=2, seed=1)
    archived(old, tmp_path / "a")
    again = historian(new, tmp_path / "a")
    assert step_all(again) == 20
    again.close()
    record_hours(new, n_records=1)
    without = new.trainer()  # later starts need no history
    assert step_all(without) == 10
    assert without.accounting()["history_examples"] == 80


def test_a_checkpoint_in_another_log_keeps_its_parameters_and_learns_that_log(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    old, new = make_bench(**ADAPTIVE), make_bench(**ADAPTIVE)
    record_hours(old, n_records=6)
    archived(old, tmp_path / "a")
    trainer = old.trainer()
    step_all(trainer)
    trainer.close()
    shutil.copytree(old.directory / "trainer", new.directory / "trainer")
    record_hours(new, n_records=2, seed=1)
    moved = historian(new, tmp_path / "a")  # learned already, in its first life
    assert step_all(moved) == 20
    assert rows_learned(moved) == 80
    moved.close()
    shutil.rmtree(old.directory / "trainer")
    shutil.copytree(new.directory / "trainer", old.directory / "trainer")
    record_hours(old, n_records=1, seed=2)
    assert step_all(old.trainer()) == 10  # and back again


def test_history_older_than_the_checkpoint_is_left_to_the_log_where_it_has_it(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = make_bench(**ADAPTIVE)
    record_hours(bench, n_records=12)
    names = part_names(archived(bench, tmp_path / "a"))
    (tmp_path / "a" / names[0].path).unlink()
    expected = print_of_stream(bench)
    trainer = historian(bench, tmp_path / "a")  # the log has all of it
    assert step_all(trainer) == 120
    assert print_of(trainer) == expected


def test_bad_rows_of_a_history_go_to_the_dead_letter(make_bench: MakeBench, tmp_path: Path) -> None:
    old, new = make_bench(**ADAPTIVE), make_bench(**ADAPTIVE)
    weights = [[1], [np.nan]]
    old.append(make_batch(old.encoder, {"item_id": [[1], [2]]}, [1, 1], weights=weights))
    trainer = historian(new, archived(old, tmp_path / "a"))
    assert step_all(trainer) == 1
    counts = trainer.accounting()
    assert (counts["examples_dead_letter:bad-weight"], counts["history_examples"]) == (1, 2)
    assert len(new.log.read(f"{EXAMPLES}.dlq", 0, 0)) == 1


def test_history_says_nothing_of_freshness(make_bench: MakeBench, tmp_path: Path) -> None:
    old, new = make_bench(**ADAPTIVE), make_bench(**ADAPTIVE)
    record_hours(old, n_records=3)
    trainer = historian(new, archived(old, tmp_path / "a"))
    while trainer.reader.is_in_history:
        trainer.step(0.0)
    assert trainer._state.actions.values() == trainer._state.impressions.values() == []


# What is wrong with an archive, and how it is said.


@pytest.fixture
def old(make_bench: MakeBench, tmp_path: Path) -> Bench:
    bench = make_bench(**ADAPTIVE)
    record_hours(bench)
    archived(bench, tmp_path / "a")
    return bench


def paths(tmp_path: Path) -> list[Path]:
    return [tmp_path / "a" / name.path for name in part_names(tmp_path / "a")]


@pytest.mark.parametrize("make", [lambda _: None, Path.mkdir, Path.touch])
def test_what_is_no_archive_is_refused(
    old: Bench, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "b")
    with pytest.raises(DataError, match=r"b is no archive: .*archive\.dir") as caught:
        opened(old, tmp_path / "b")
    assert caught.value.code == "archive-empty"


def test_hours_that_it_does_not_have_are_refused(old: Bench, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it has 2023-11-14T22 to 2023-11-15T01"):
        opened(old, tmp_path / "a", first_hour="2024-01-01T00")


def test_another_schema_is_refused_with_both_hashes(
    old: Bench, make_bench: MakeBench, tmp_path: Path
) -> None:
    other = make_bench(model={"hidden": [3]})
    with pytest.raises(SchemaError) as caught:
        historian(other, tmp_path / "a")
    assert old.encoder.schema_hash in str(caught.value)
    assert other.encoder.schema_hash in str(caught.value)


def test_an_archive_of_two_schemas_is_refused_before_anything_is_learned(
    old: Bench, make_bench: MakeBench, tmp_path: Path
) -> None:
    other = make_bench(model={"hidden": [3]})
    old.append(make_batch(other.encoder, {}, [1]))
    archived(old, tmp_path / "a")
    with pytest.raises(SchemaError, match=f"schema {other.encoder.schema_hash}"):
        opened(old, tmp_path / "a")


def test_a_truncated_file_is_named_before_anything_is_learned(old: Bench, tmp_path: Path) -> None:
    path = paths(tmp_path)[1]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{path.name} is damaged") as caught:
        opened(old, tmp_path / "a")
    assert caught.value.code == "archive-damaged"


def test_a_file_damaged_within_is_named_and_what_came_before_is_learned_once(
    make_bench: MakeBench, old: Bench, tmp_path: Path
) -> None:
    path = paths(tmp_path)[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes(300) + whole[500:])
    new = make_bench()
    record_hours(new, n_records=4, seed=1)
    trainer = historian(new, tmp_path / "a")
    for _ in range(3):  # it does not go on with the log either
        with pytest.raises(DataError, match=f"{path.name} is damaged"):
            step_all(trainer)
    trainer.close()
    n_before = rows_learned(trainer)
    assert n_before <= 30
    path.write_bytes(whole)
    again = historian(new, tmp_path / "a")
    again.drain()
    assert rows_learned(again) == 160
    expected = historian(make_bench(), tmp_path / "a")
    assert rows_learned(expected) == 0


def test_a_missing_file_is_a_gap_unless_gaps_are_allowed(
    make_bench: MakeBench, old: Bench, tmp_path: Path
) -> None:
    missing = part_names(tmp_path / "a")[1]
    (tmp_path / "a" / missing.path).unlink()
    new = make_bench(**ADAPTIVE)
    told = f"offsets {missing.first} to {missing.last} of partition 0 .*--allow-gaps"
    with pytest.raises(DataError, match=told) as caught:
        historian(new, tmp_path / "a")
    assert caught.value.code == "archive-gap"
    n_missing = 10 * (missing.last - missing.first + 1)
    assert step_all(historian(new, tmp_path / "a", allow_gaps=True)) == 120 - n_missing


def test_a_file_that_is_there_twice_is_refused(old: Bench, tmp_path: Path) -> None:
    name = part_names(tmp_path / "a")[1]
    twin = name._replace(last=name.last + 1)
    shutil.copy(tmp_path / "a" / name.path, tmp_path / "a" / twin.path)
    with pytest.raises(DataError, match="has too"):
        opened(old, tmp_path / "a", allow_gaps=True)


def test_a_gap_between_archive_and_log_is_refused(old: Bench, tmp_path: Path) -> None:
    record_hours(old, n_records=2)
    assert forget(old) == 14
    with pytest.raises(DataError, match="neither archive nor log has offsets 12 to 13 "):
        historian(old, tmp_path / "a")
    assert step_all(historian(old, tmp_path / "a", allow_gaps=True)) == 140


def test_an_archive_is_learned_behind_a_gap_where_the_log_begins_later_still(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = make_bench(**ADAPTIVE)
    record_hours(bench, n_records=2)
    trainer = bench.trainer()
    step_all(trainer)
    trainer.close()
    record_hours(bench, n_records=10)
    names = part_names(archived(bench, tmp_path / "a"))
    (tmp_path / "a" / names[0].path).unlink()
    first = names[1].first
    assert 2 < first < forget(bench) == 12
    told = f"neither archive nor log has offsets 2 to {first - 1} "
    with pytest.raises(DataError, match=told):
        historian(bench, tmp_path / "a")
    rest = historian(bench, tmp_path / "a", allow_gaps=True)
    assert step_all(rest) == 10 * (12 - first) + 20


def test_a_record_left_halfway_and_lost_takes_no_rows_of_the_next_one_along(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = make_bench()
    record_hours(bench, n_records=9)
    trainer = bench.trainer()
    trainer.step(0.0)
    assert trainer._state.positions[0] == Position(3, 2)
    assert trainer._saver.save()
    names = part_names(archived(bench, tmp_path / "a"))
    assert names[1].first == 3
    (tmp_path / "a" / names[1].path).unlink()
    forget(bench)
    rest = historian(bench, tmp_path / "a", allow_gaps=True)
    rest.drain()
    assert rows_learned(rest) == 32 + 10 * (9 - names[2].first) + 20


def test_a_history_that_lost_what_comes_next_is_refused(
    make_bench: MakeBench, old: Bench, tmp_path: Path
) -> None:
    new = make_bench(**ADAPTIVE)
    trainer = historian(new, tmp_path / "a")
    trainer.step(0.0)
    trainer.close()
    for path in paths(tmp_path)[:2]:
        path.unlink()
    with pytest.raises(DataError, match="has no longer offsets"):
        historian(new, tmp_path / "a")
    rest = historian(new, tmp_path / "a", allow_gaps=True)
    assert rest._state.positions[-1] == Position(part_names(tmp_path / "a")[0].first, 0)
    assert step_all(rest) == sum(10 * (n.last - n.first + 1) for n in part_names(tmp_path / "a"))


def test_positions_of_a_checkpoint_count_rows_within_a_record(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    old, new = make_bench(), make_bench()
    old.append(random_batch(old.encoder, np.random.default_rng(0), 100, ts_ms=NOW_MS))
    trainer = historian(new, archived(old, tmp_path / "a"))
    trainer.step(0.0)
    assert trainer._state.positions[-1] == Position(0, 32)
    assert trainer._saver.save()
    assert step_all(historian(new, tmp_path / "a")) == 64
