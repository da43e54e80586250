"""Time travel: an archive learned again ends at the very bits a live loop ended at."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freshrank.clock import ManualClock
from freshrank.config import loads
from freshrank.embedded import Embedded
from freshrank.errors import ConfigError, DataError
from freshrank.examples import ExampleBatch
from freshrank.replay.archive import ArchiveOptions, TimeTravel, replay_archive
from freshrank.replay.report import Report
from freshrank.replay.taken import Taken
from freshrank.settings import Settings
from tests.unit.trainer.example_records import Bench, make_batch, make_settings
from trainer.archive_files import part_names
from trainer.checkpoint import read
from trainer.fingerprint import fingerprint
from trainer.learner import Learner, Step
from trainer.loop import Trainer

NOW_MS = 1_800_000_000_000
CONFIG = """
features:
  - {name: user_id, type: id, scope: user, dim: 4, admission: {min_count: 2}}
  - {name: item_id, type: id, scope: item, dim: 4, expire: 6m}
  - {name: last, type: recent, event: click, table: item_id, max_len: 3}
  - {name: pair, type: cross, of: [user_id, item_id], dim: 4, admission: {probability: 0.5}}
  - {name: price, type: dense, scope: candidate}
  - {name: never_sent, type: id, scope: item, dim: 4}
tasks:
  - {name: click, event: click}
join: {window: 10s, emit: at_once, allowed_lateness: 1s}
trainer: {batching: fixed, batch_max: 16}
model: {hidden: [8]}
store: {initial_rows: 64}
log: {fsync: never}
sync: {sparse_every: 1s}
checkpoint: {every: 1s, keep: 100}
"""


def no_progress(_share: float, _time_ms: int) -> None:
    pass


class Live:
    """A loop that lived for three hours, and its archive."""

    def __init__(self, directory: Path) -> None:
        environ = {"FRESHRANK__SERVICE__DATA_DIR": str(directory / "data")}
        text = f"{CONFIG}archive: {{dir: {directory / 'archive'}}}\n"
        self.settings: Settings = loads(text, name="live.yaml", environ=environ)
        self.archive = directory / "archive"
        self.checkpoints = directory / "data" / "trainer"
        clock = ManualClock(now_ms=NOW_MS)
        loop = Embedded(self.settings, learn=True, clock=clock)
        assert loop.trainer is not None
        assert loop.archiver is not None
        rng = random.Random(5)
        for number in range(90):
            clock.advance(ms=120_000)
            self._happens(loop, clock, rng, f"r{number}")
            for joiner in loop.joiners:
                joiner.step(0.0)
            while loop.trainer.step(0.0):
                pass
            loop.archiver.step(0.0)
        loop.close()
        trainer: Trainer = loop.trainer
        self.learner: Learner = trainer.learner
        self.fingerprint = fingerprint(self.learner)
        self.accounting = trainer.accounting()

    @staticmethod
    def _happens(loop: Embedded, clock: ManualClock, rng: random.Random, request: str) -> None:
        items = [f"i{rng.randrange(12)}" for _ in range(3)]
        shown: list[dict[str, Any]] = [
            {"item": item, "features": {"price": rng.random()}} for item in dict.fromkeys(items)
        ]
        user = f"u{rng.randrange(4)}"
        event = {"kind": "impression", "request_id": request, "user": user, "items": shown}
        assert loop.service.ingest.submit([event]).accepted == 1
        clock.advance(ms=1_000)  # a click that comes later takes its negative back
        if rng.random() < 0.6:
            event = {"kind": "feedback", "request_id": request, "item": items[0], "event": "click"}
            assert loop.service.ingest.submit([event]).accepted == 1


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    return Live(tmp_path_factory.mktemp("live"))


def travelled(live: Live, **options: Any) -> tuple[TimeTravel, Report]:
    report = Report(config="live.yaml", source="archive")
    travel = TimeTravel(live.archive, live.settings, ArchiveOptions(**options), report)
    travel.learn(no_progress)
    travel.describe(report)
    return travel, report


def test_a_replay_of_the_archive_equals_the_live_loop_bit_for_bit(live: Live) -> None:
    travel, report = travelled(live)
    assert live.accounting["rows_learned"] == report.examples > 200
    assert live.accounting["examples_reversed"] > 10
    assert len(part_names(live.archive)) >= 3
    assert report.parameters == live.fingerprint
    tables = travel.learner.sparse.tables
    assert sum(table.statistics()["expired"] for table in tables.values()) > 0
    for name, table in live.learner.sparse.tables.items():
        assert np.array_equal(table.keys(), tables[name].keys())
        assert np.array_equal(table.lookup(table.keys()), tables[name].lookup(table.keys()))
    assert travel.learner.adam.moment2.equal(live.learner.adam.moment2)
    assert set(travel.state.offsets) == {"freshrank.actions:0", "freshrank.impressions:0"}


def test_a_checkpoint_and_the_rest_of_the_archive_equal_the_whole(live: Live) -> None:
    paths = sorted(live.checkpoints.glob("checkpoint-*"))
    assert len(paths) > 5
    for path in paths[:: len(paths) // 4]:
        n_before = read(path).state["counts"]["rows_learned"]
        _, report = travelled(live, checkpoint=path)
        assert report.parameters == live.fingerprint
        assert report.examples == live.accounting["rows_learned"] - n_before
    _, nothing = travelled(live, checkpoint=live.checkpoints)  # the newest
    assert (nothing.examples, nothing.parameters) == (0, live.fingerprint)


@pytest.mark.parametrize("is_halfway", [False, True])
def test_progress_goes_from_where_it_begins_to_the_end(live: Live, is_halfway: bool) -> None:
    paths = sorted(live.checkpoints.glob("checkpoint-*"))
    options = ArchiveOptions(checkpoint=paths[len(paths) // 2] if is_halfway else None)
    report = Report(config="live.yaml", source="archive")
    shares: list[float] = []
    travel = TimeTravel(live.archive, live.settings, options, report)
    travel.learn(lambda share, _: shares.append(share))
    assert shares == sorted(shares)
    assert 0 <= shares[0] < 0.2
    assert 0.9 < shares[-1] <= 1


def test_a_saved_replay_of_the_first_hours_leads_on_to_the_same_bits(
    live: Live, tmp_path: Path
) -> None:
    hours = sorted({name.hour for name in part_names(live.archive)})
    half, report = travelled(live, last_hour=hours[1])
    saved = half.save(tmp_path / "half")
    assert report.parameters != live.fingerprint
    for path in (saved, tmp_path / "half"):
        assert travelled(live, checkpoint=path)[1].parameters == live.fingerprint


def test_any_hour_replayed_twice_gives_equal_parameters(live: Live) -> None:
    hours = sorted({name.hour for name in part_names(live.archive)})
    found = set()
    for hour in hours[:3]:
        first, second = (travelled(live, first_hour=hour)[1] for _ in range(2))
        assert first.parameters == second.parameters
        found.add(first.parameters)
    assert len(found) == 3


def test_a_saved_replay_is_taken_up_by_the_loop_it_came_from(live: Live, tmp_path: Path) -> None:
    hours = sorted({name.hour for name in part_names(live.archive)})
    half, _ = travelled(live, last_hour=hours[1])
    data = tmp_path / "data"
    environ = {"FRESHRANK__SERVICE__DATA_DIR": str(data)}
    settings = loads(CONFIG, name="live.yaml", environ=environ)
    shutil.copytree(live.settings.service.data_dir, data)
    shutil.rmtree(data / "trainer")
    half.save(data / "trainer")
    loop = Embedded(settings, learn=True, serve=False)
    assert loop.trainer is not None
    loop.trainer.catch_up()
    assert fingerprint(loop.trainer.learner) == live.fingerprint
    loop.close()


def test_the_report_has_figures_of_own_and_of_served_scores(live: Live, tmp_path: Path) -> None:
    report = Report(config="live.yaml", source="archive")
    options = ArchiveOptions(save=tmp_path / "out")
    replay_archive(live.archive, live.settings, options, report, no_progress)
    document = report.document()
    assert document["parameters"] == live.fingerprint
    assert document["waiting_rows"] == document["rows_read"] - document["examples"] < 16
    assert document["requests"] <= 90
    [own] = document["models"]  # nothing was ranked, so nothing was served
    n_items = live.accounting["examples_learned"] - live.accounting["examples_reversed"]
    assert own["tasks"]["click"]["examples"] == n_items
    assert 0 < own["tasks"]["click"]["auc_all"] <= 1
    assert read(tmp_path / "out" / "checkpoint-000000000001").state["log"]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    one = Bench(tmp_path, make_settings())
    yield one
    one.close()


def test_a_reversal_gives_its_negative_the_label_it_should_have_had(bench: Bench) -> None:
    """Three items shown, the second clicked late: two negatives and a positive remain."""
    shown: ExampleBatch = make_batch(
        bench.encoder, {}, [0, 0, 0], request_ids=["r"] * 3, served=[[0.1], [0.8], [0.3]]
    )
    pair = make_batch(
        bench.encoder,
        {},
        [1, 0],
        request_ids=["r"] * 2,
        items=["i1", "i1"],
        weights=[[1], [-1]],
        served=0.8,
        is_reversal=True,
    )
    taken = Taken(["click"], ["logloss"])
    for batch, own in ((shown, [0.2, 0.6, 0.4]), (pair, [0.1, 0.1])):
        predictions = np.array(own, np.float32)[:, None]
        taken.add(batch, Step(True, predictions, np.zeros(batch.n_rows, np.int64)))
    own_figures, served_figures = (measures.figures()["click"] for measures in taken.measures())
    for figures in (own_figures, served_figures):
        assert figures["examples"] == 3
        assert figures["auc_all"] == 1.0
    assert own_figures["calibration"] == pytest.approx(1.2)
    assert served_figures["calibration"] == pytest.approx(1.2)


def test_a_reversal_whose_negative_lies_before_counts_as_a_positive(bench: Bench) -> None:
    pair = make_batch(
        bench.encoder,
        {},
        [1, 0],
        request_ids=["r"] * 2,
        items=["i"] * 2,
        weights=[[1], [-1]],
        is_reversal=True,
    )
    taken = Taken(["click"], ["logloss"])
    taken.add(pair, Step(True, np.full((2, 1), 0.5, np.float32), np.zeros(2, np.int64)))
    own, served = taken.measures()
    assert own.figures()["click"]["examples"] == 1
    assert served.figures()["click"]["examples"] == 0


def test_a_checkpoint_of_another_log_is_refused(live: Live, tmp_path: Path) -> None:
    other = Live(tmp_path)
    with pytest.raises(DataError, match="has nothing of that log"):
        travelled(live, checkpoint=other.checkpoints)


def test_a_checkpoint_beyond_the_hours_chosen_is_refused(live: Live) -> None:
    hours = sorted({name.hour for name in part_names(live.archive)})
    with pytest.raises(DataError, match="choose a checkpoint or hours that meet"):
        travelled(live, checkpoint=live.checkpoints, last_hour=hours[0])


def test_a_checkpoint_and_a_first_hour_contradict_each_other(live: Live) -> None:
    options = ArchiveOptions(first_hour="2027-01-15T10", checkpoint=live.checkpoints)
    with pytest.raises(ConfigError, match="--from"):
        replay_archive(live.archive, live.settings, options, Report("c", "s"), no_progress)
