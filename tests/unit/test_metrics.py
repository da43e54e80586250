"""What the parts of the loop say in metrics, how it adds up, and how much it may be."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from freshrank.clock import ManualClock
from freshrank.config import loads
from freshrank.embedded import Embedded
from freshrank.features import FeatureEncoder
from freshrank.metrics import (
    Counts,
    Freshness,
    Metrics,
    Reading,
    ReadingCollector,
    register_process,
)
from freshrank.metrics_catalogue import CATALOGUE, full_name
from freshrank.metrics_lag import Lag
from freshrank.progress import Progress
from freshrank.settings import Settings
from freshrank.transport.base import EXAMPLES, NewRecord, TopicPartition
from freshrank.transport.local import LocalLog
from freshrank.verdicts import REASONS
from tests.promtool import promtool
from tests.unit.joiner.world import action, append, impression
from trainer.joiner.arena import Arena
from trainer.joiner.rows import Position
from trainer.joiner.watch import Watch
from trainer.readings import TrainerReadings

NOW_MS = 1_800_000_000_000
CONFIG = """
features: [{name: item_id, type: id, scope: item, dim: 4, max_bytes: 64MiB}]
tasks: [{name: click, event: click}]
join: {window: 10s, max_out_of_order: 1s}
store: {max_bytes: 256MiB}
"""
Series = dict[tuple[str, ...], float]


def settings(directory: Path, text: str = CONFIG) -> Settings:
    environ = {"FRESHRANK__SERVICE__DATA_DIR": str(directory)}
    return loads(text, name="test.yaml", environ=environ)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now_ms=NOW_MS)


@pytest.fixture
def loop(tmp_path: Path, clock: ManualClock) -> Iterator[Embedded]:
    """Joiner and trainer that a test steps itself."""
    made = Embedded(settings(tmp_path), learn=True, clock=clock)
    assert made.trainer is not None
    made.trainer.start()
    yield made
    made.close()


def by_series(readings: list[Reading]) -> dict[str, Series]:
    """Name -> label values -> value; of a histogram how many values there are."""
    found: dict[str, Series] = {}
    for name, value, labels in readings:
        series = found.setdefault(name, {})
        key = tuple(labels[label] for label in CATALOGUE[name].labels)
        assert key not in series, "one value per series"
        series[key] = float(value.buckets.sum() if isinstance(value, Counts) else value)
    return found


def show_and_click(loop: Embedded, clock: ManualClock) -> None:
    """Three items shown, one clicked at once, and once more to no avail; the window closes."""
    append(loop.log, impression("r1", ["1", "2", "3"], clock.now_ms()))
    clock.advance(ms=400)
    append(loop.log, action("r1", "1", clock.now_ms()), action("r9", "1", clock.now_ms()))
    append(loop.log, action("r1", "1", clock.now_ms(), event="unheard-of"))
    clock.advance(ms=300)


def join(loop: Embedded) -> None:
    """All that is there, and nothing that time will bring."""
    while loop.joiners[0].step(0.0):
        pass


def test_a_joiner_tells_what_it_made_of_each_record(loop: Embedded, clock: ManualClock) -> None:
    show_and_click(loop, clock)
    before = by_series(loop.readings())
    assert before["consumer_lag_records"] == {
        ("impressions", "0"): 1,
        ("actions", "0"): 3,
        ("examples", "0"): 0,
    }
    assert "joiner_watermark_timestamp_seconds" not in before
    join(loop)
    found = by_series(loop.readings())
    assert found["consumer_lag_records"][("actions", "0")] == 0  # of ticks as well
    assert found["joiner_examples"] == {
        ("0", "matched"): 1,
        ("0", "duplicate"): 0,
        ("0", "unmatched"): 0,
        ("0", "late"): 0,
        ("0", "dead_letter"): 1,
        ("0", "examples_written"): 1,
        ("0", "reversals"): 0,
    }
    assert found["dead_letters"][("actions", "0")] == 1
    assert found["dead_letters"][("impressions", "0")] == 0
    assert found["joiner_pending"] == {("0", "action"): 1, ("0", "item"): 2}
    assert found["joiner_rounds"][("0",)] >= 1
    assert found["joiner_cached_requests"][("0",)] == 2  # one of them is only asked for
    watermark_s = found["joiner_watermark_timestamp_seconds"][("0",)]
    assert NOW_MS / 1_000 - 2 < watermark_s < NOW_MS / 1_000
    assert found["freshness_event_to_servable_seconds"] == {
        ("queue", "action"): 2,  # two rounds: time has to pass between the topics
        ("queue", "negative"): 1,
        ("join", "action"): 1,
    }


def test_stages_are_timed_from_the_append(loop: Embedded, clock: ManualClock) -> None:
    show_and_click(loop, clock)
    join(loop)
    clock.advance(ms=2_000)
    loop.joiners[0].drain()
    assert loop.trainer is not None
    clock.advance(ms=4_000)
    loop.trainer.drain()
    totals: dict[tuple[str, str], Any] = {
        (one.labels["stage"], one.labels["kind"]): (one.value.buckets.sum(), one.value.total)
        for one in loop.progress.readings()
        if isinstance(one.value, Counts)
    }
    # The click was appended 400 ms after what was shown. The window is that of event time: both
    # negatives, one group of rows, leave in the round that closes it.
    assert totals["queue", "action"] == (2, pytest.approx(0.6))
    assert totals["queue", "negative"] == (1, pytest.approx(0.7))
    assert totals["join", "action"] == (1, pytest.approx(0.3))
    assert totals["join", "negative"] == (1, pytest.approx(2.7))
    assert totals["train", "action"] == (1, pytest.approx(6.3))
    assert totals["train", "negative"] == (2, pytest.approx(2 * 6.7))


def test_an_archive_tells_how_far_it_is_behind(tmp_path: Path, clock: ManualClock) -> None:
    text = CONFIG + f"archive: {{dir: '{tmp_path / 'archive'}'}}\n"
    with closing(Embedded(settings(tmp_path, text), learn=True, clock=clock)) as loop:
        assert loop.trainer is not None
        assert loop.archiver is not None
        loop.trainer.start()
        show_and_click(loop, clock)
        loop.joiners[0].drain()
        behind = by_series(loop.readings())
        assert behind["archive_lag_records"] == {
            ("examples", "0"): behind["consumer_lag_records"][("examples", "0")]
        }
        assert behind["archive_lag_records"][("examples", "0")] > 0
        while loop.archiver.step(0.0):
            pass
        found = by_series(loop.readings())
        assert found["archive_lag_records"] == {("examples", "0"): 0}
        assert found["consumer_lag_records"] == behind["consumer_lag_records"]  # the trainer's


def test_a_trainer_tells_how_far_and_how_good_it_is(loop: Embedded, clock: ManualClock) -> None:
    show_and_click(loop, clock)
    loop.joiners[0].drain()
    behind = by_series(loop.readings())
    assert behind["consumer_lag_records"][("examples", "0")] > 0
    assert "checkpoint_last_success_timestamp_seconds" not in behind
    assert loop.trainer is not None
    loop.trainer.drain()
    loop.trainer.close()
    found = by_series(loop.readings())
    assert found["consumer_lag_records"][("examples", "0")] == 0
    assert found["trainer_leading"] == {(): 1}
    assert found["trainer_examples"] == {(): 3}
    assert found["trainer_steps"][()] >= 1
    assert found["trainer_paused"] == found["sync_held_back"] == {(): 0}
    assert found["sync_refused"] == {(reason,): 0 for reason in REASONS}
    assert found["trainer_publications"] == {("published",): 2, ("failed",): 0}
    assert found["trainer_sync_seq"] == {(): 1}
    assert found["trainer_rollbacks"] == {(): 0}
    assert found["checkpoints"] == {("saved",): 1, ("failed",): 0, ("damaged",): 0}
    age_s = time.time() - found["checkpoint_last_success_timestamp_seconds"][()]
    assert 0 <= age_s < 600
    # Nothing was served: the trainer's own predictions are judged.
    assert set(found["trainer_logloss"]) == {("click", "own")}
    assert found["trainer_calibration_ratio"][("click", "own")] > 0
    assert 0 <= found["trainer_progressive_auc"][("click", "own")] <= 1
    assert found["store_rows"] == {("training", "item_id"): 3}
    assert found["store_bytes"][("training", "item_id")] > 0
    assert found["store_budget_bytes"] == {("item_id",): 64 << 20, ("",): 256 << 20}
    assert found["store_admissions"][("item_id", "admitted")] == 3
    assert set(found["store_evictions"]) == {("item_id", "expired"), ("item_id", "capacity")}
    assert found["worker_retries"] == {("joiner-0",): 0, ("trainer",): 0}


def test_a_trainer_that_failed_leads_no_more(
    loop: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop._workers["trainer"], "failure", ValueError("a bug"))
    found = by_series(loop.readings())
    assert found["trainer_leading"] == {(): 0}
    assert "trainer_examples" not in found


def exposition(read: Any) -> str:
    registry = CollectorRegistry()
    register_process(registry, version="1")
    registry.register(ReadingCollector(read))
    return generate_latest(registry).decode()


def test_promtool_finds_nothing_to_mend(loop: Embedded, clock: ManualClock) -> None:
    show_and_click(loop, clock)
    loop.joiners[0].drain()
    assert loop.trainer is not None
    loop.trainer.drain()
    joiner = exposition(loop.joiners[0].readings)
    trainer = exposition(lambda: by_role("train", loop.readings()))
    for text in (joiner, trainer, generate_latest(loop.service.parts.registry).decode()):
        assert promtool("check", "metrics", given=text) == ""


def by_role(role: str, readings: list[Reading]) -> list[Reading]:
    return [one for one in readings if role in CATALOGUE[one.name].roles]


def test_buckets_accumulate_and_a_bound_belongs_to_its_bucket() -> None:
    freshness = Freshness("queue")
    freshness.add("action", [], 0)
    assert freshness.readings() == []
    freshness.add("action", np.array([9_000, 9_900, 9_899, 10_500, -990_000]), 10_000)
    [family] = [
        one
        for one in text_string_to_metric_families(exposition(freshness.readings))
        if one.name == full_name(Freshness.NAME)
    ]
    values = {one.labels.get("le", one.name): one.value for one in family.samples}
    assert [values[le] for le in ("0.1", "0.25", "1.0", "900.0", "+Inf")] == [2, 3, 4, 4, 5]
    assert values[f"{family.name}_count"] == 5
    assert values[f"{family.name}_sum"] == pytest.approx(1 + 0.1 + 0.101 + 0 + 1_000)


def test_threads_lose_no_time() -> None:
    freshness = Freshness("join")

    def add() -> None:
        for _ in range(2_000):
            freshness.add("action", [0], 1_000)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    [reading] = freshness.readings()
    assert isinstance(reading.value, Counts)
    assert (reading.value.buckets.sum(), reading.value.total) == (8_000, 8_000.0)


def test_a_name_that_is_not_in_the_catalogue_is_refused() -> None:
    with pytest.raises(KeyError):
        exposition(lambda: [Reading("invented", 1.0)])


def test_the_series_of_the_largest_configuration_are_bounded(tmp_path: Path) -> None:
    """64 tables, 8 tasks and 64 partitions in one process."""
    features = "".join(
        f"  - {{name: f{n}, type: id, scope: item, dim: 4, max_bytes: 1MiB}}\n" for n in range(64)
    )
    tasks = "".join(f"  - {{name: t{n}, event: e{n}}}\n" for n in range(8))
    text = f"features:\n{features}tasks:\n{tasks}log: {{partitions: 64}}\n"
    largest = settings(tmp_path, text)
    encoder = FeatureEncoder(largest)
    progress = Progress()
    for stage, kind in itertools.product(progress.freshness, ("action", "negative")):
        progress.freshness[stage].add(kind, [0], 0)
    arena = Arena(encoder, [])
    gauges = _Anything()
    readings = [
        *TrainerReadings(largest, encoder).leading({}, gauges),
        *progress.readings(),
        *(
            reading
            for partition in range(64)
            for reading in Watch(largest, partition, ManualClock(), arena, progress).readings(
                gauges, Position({}, 1), 0
            )
        ),
        *(
            Reading("consumer_lag_records", 0, {"topic": topic, "partition": str(partition)})
            for topic in ("actions", "impressions", "examples")
            for partition in range(64)
        ),
    ]
    lines = [
        line for line in exposition(lambda: readings).splitlines() if line.startswith("freshrank_")
    ]
    assert 1_000 < len(lines) < 2_500
    assert len(lines) == len({line.rpartition(" ")[0] for line in lines})


class _Anything(dict[str, Any]):
    """Gauges and totals by any name."""

    def __contains__(self, _: object) -> bool:
        return True

    def __missing__(self, _: str) -> int:
        return 0


class _Hanging(LocalLog):
    """A log whose broker does not answer until it is told to."""

    answers = threading.Event()

    def lag(self, positions: Any) -> Any:
        self.answers.wait(30)
        return super().lag(positions)


def test_a_log_that_hangs_holds_no_scrape(tmp_path: Path, clock: ManualClock) -> None:
    log = _Hanging(tmp_path / "log", clock=clock, n_partitions=1, fsync="never")
    log.append(EXAMPLES, [NewRecord(b"", b"x")] * 3, partition=0)
    lag = Lag(log, lambda: {TopicPartition(EXAMPLES, 0): 1})
    assert lag.readings() == []
    log.answers.set()
    deadline_s = time.monotonic() + 30
    while not (found := lag.readings()):
        assert time.monotonic() < deadline_s
    assert found == [Reading("consumer_lag_records", 2, {"topic": "examples", "partition": "0"})]
    log.close()
    assert lag.readings() == []
    assert Lag(log, dict).readings() == []


def test_the_service_counts_what_the_catalogue_names() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    register_process(registry, version="1")
    ours = {one.name for one in registry.collect() if one.name.startswith("freshrank_")}
    names = {f"freshrank_{name}" for name in CATALOGUE}
    assert ours <= names
