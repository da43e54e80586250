"""The replay of chunks: what is scored with which parameters, and what the report says."""

from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import pytest

from freshrank.clock import ManualClock
from freshrank.errors import DataError
from freshrank.feature_types import Encoded, SlotIds, TableValues
from freshrank.features import FeatureEncoder
from freshrank.replay.chunks import Chunk, batches
from freshrank.replay.loop import Online, Reached, TableReplay
from freshrank.replay.pace import Pace
from freshrank.replay.report import Report
from freshrank.settings import Settings, StoreSettings
from trainer.learner import Learner

F32 = npt.NDArray[np.float32]

# New rows start at zero, as ids without a row read: then scoring alone gives what learning would.
SETTINGS = Settings.model_validate(
    {
        "features": [
            {"name": "user_id", "type": "id", "scope": "user", "key": "uint64", "dim": 4},
            {"name": "item_id", "type": "id", "scope": "item", "key": "uint64", "dim": 4},
        ],
        "tasks": [{"name": "click", "event": "click"}],
        "store": {"init": {"scale": 0.0}},
        "optimizer": {"sparse": {"lr": 0.5}},
        "trainer": {"batching": "fixed", "batch_max": 16},
    }
)
ENCODER = FeatureEncoder(SETTINGS)
N_ITEMS = 20


def stream(sizes: list[int], seed: int = 1, second_ms: int = 1_000) -> Chunk:
    """Requests of these sizes, one a second; items below 10 are clicked more often."""
    rng = np.random.default_rng(seed)
    n_items = np.array(sizes)
    n = int(n_items.sum())
    items = rng.integers(0, N_ITEMS, n).astype(np.uint64)
    clicks = rng.random(n) < np.where(items < 10, 0.7, 0.1)
    ts_ms = 10_000 + np.arange(len(sizes)) * second_ms
    users = rng.integers(0, 9, len(sizes)).astype(np.uint64)
    return Chunk(
        TableValues(n_items=n_items, ts_ms=ts_ms, users=users, items=items),
        labels=clicks[:, None].astype(np.float32),
        weights=np.ones((n, 1), np.float32),
        request_numbers=np.repeat(np.arange(len(sizes)), n_items),
        ts_ms=np.repeat(ts_ms, n_items),
    )


def encode(values: TableValues) -> Encoded:
    """The ids as they are: what is replayed here needs no feature state."""
    items = np.asarray(values.items)
    offsets = np.arange(len(items) + 1)
    users = np.repeat(np.asarray(values.users), values.n_items)
    slots = {"user_id": SlotIds(users, offsets), "item_id": SlotIds(items, offsets)}
    return Encoded(len(items), slots, np.empty((len(items), 0), np.float32))


@pytest.mark.parametrize("n_max", [1, 3, 7, 512])
def test_batches_hold_whole_requests_in_order(n_max: int) -> None:
    sizes = [1, 2, 3, 9, 1, 1, 4, 4, 2]
    chunk = stream(sizes)
    found = list(batches(chunk, encode(chunk.values), n_max))
    ids = [batch.values.slots["item_id"].ids for batch in found]
    np.testing.assert_array_equal(np.concatenate(ids), chunk.values.items)
    requests = [list(dict.fromkeys(batch.request_ids)) for batch in found]
    assert [one for inside in requests for one in inside] == list(map(str, range(len(sizes))))
    for batch, inside in zip(found, requests, strict=True):
        assert batch.n_rows <= n_max or len(inside) == 1
        assert batch.is_first.sum() == len(inside)
        assert batch.is_first[0]
    # No batch ends where the next request would still have fitted.
    for batch, following in zip(found, requests[1:], strict=False):
        assert batch.n_rows + sizes[int(following[0])] > n_max


def test_batches_hold_no_more_time_than_told() -> None:
    chunk = stream([2] * 20, second_ms=400)
    found = list(batches(chunk, encode(chunk.values), 512, 1_000))
    assert [batch.n_rows for batch in found] == [6] * 6 + [4]  # at 0, 0.4 and 0.8 s
    found = list(batches(chunk, encode(chunk.values), 4, 1_000))
    assert [batch.n_rows for batch in found] == [4, 4, 4, 4, 4] * 2


def test_adaptive_batches_learn_what_comes_between_two_publications() -> None:
    """A shop with a request a minute is not learned in batches of six hours."""
    adaptive = SETTINGS.trainer.model_copy(update={"batching": "adaptive", "batch_max": 512})
    settings = SETTINGS.model_copy(update={"trainer": adaptive})
    for second_ms, n_steps in ((60_000, 100), (100, 10)):
        chunk = stream([4] * 100, second_ms=second_ms)
        online = Online(settings, ENCODER)
        online.predict_then_learn(chunk, encode(chunk.values))
        assert online.learner.adam.n_steps == n_steps


def test_every_row_of_a_request_is_scored_before_any_is_learned() -> None:
    # All rows of a request are of one item and have one label: learning one would give away the
    # others. batch_max 1 lets each request be a batch.
    chunk = stream([4] * 50)
    items = np.repeat(np.arange(50, dtype=np.uint64) % 5, 4)
    labels = np.repeat(np.arange(50) % 2, 4).astype(np.float32)[:, None]
    values = TableValues(chunk.values.n_items, chunk.values.ts_ms, chunk.values.users, items)
    chunk = Chunk(values, labels, chunk.weights, chunk.request_numbers, chunk.ts_ms)
    one_each = SETTINGS.model_copy(
        update={"trainer": SETTINGS.trainer.model_copy(update={"batch_max": 1})}
    )
    (scores,), _ = Online(one_each, ENCODER).predict_then_learn(chunk, encode(values))
    reference = Learner(one_each, ENCODER)
    for n, batch in enumerate(batches(chunk, encode(values), 1)):
        expected = reference.predict(batch.values)
        np.testing.assert_array_equal(scores[4 * n : 4 * n + 4], expected)
        assert len(np.unique(expected)) == 1
        reference.learn(batch)
    assert len(np.unique(scores)) > 40  # it does learn


def replayed(
    *chunks: Chunk, seeds: tuple[int, ...] = (1,), sync_every: tuple[timedelta, ...] = ()
) -> Report:
    report = Report("c.yaml", "t.parquet")
    settings = SETTINGS.model_copy(update={"store": StoreSettings()})  # rows start at random
    replay = TableReplay(settings, ENCODER, encode, seeds=seeds, sync_every=sync_every)
    assert replay.run(iter(chunks), report) is None
    return report


def test_parameters_older_than_the_stream_score_as_the_initial_model() -> None:
    chunk = stream([4] * 100)
    online = Online(SETTINGS, ENCODER, [timedelta(days=1)])
    (live, stale), _ = online.predict_then_learn(chunk, encode(chunk.values))
    initial = Learner(SETTINGS, ENCODER).predict(encode(chunk.values))
    np.testing.assert_array_equal(stale, initial)
    assert not np.array_equal(live, initial)


@pytest.mark.parametrize("every_s", [1, 3, 10, 12])
def test_rows_are_scored_with_the_parameters_of_the_last_multiple_of_the_period(
    every_s: int,
) -> None:
    # One request a second in batches of four seconds: a period mostly ends within a batch, whose
    # own rows are not learned yet then.
    chunk = stream([4] * 60)
    encoded = encode(chunk.values)
    online = Online(SETTINGS, ENCODER, [timedelta(seconds=every_s)])
    (_, stale), _ = online.predict_then_learn(chunk, encoded)
    reference = Learner(SETTINGS, ENCODER)
    known = []  # at second n, what all rows would score with what was learned by then
    for batch in batches(chunk, encoded, 16):
        known += [reference.predict(encoded)] * len(set(batch.request_ids))
        reference.learn(batch)
    for second in range(60):
        rows = slice(4 * second, 4 * second + 4)
        synced_at = second // every_s * every_s
        np.testing.assert_array_equal(stale[rows], known[synced_at][rows])
    assert not np.array_equal(known[0], known[-1])


def test_staler_parameters_predict_worse() -> None:
    chunks = [stream([5] * 300)]
    every = (timedelta(seconds=20), timedelta(days=1))
    report = replayed(*chunks, sync_every=every).document()
    auc = [model["tasks"]["click"]["auc_all"] for model in report["models"]]
    assert auc[0] > auc[1] > auc[2]
    assert [model["name"] for model in report["models"]] == [
        "freshrank",
        "freshrank every 20s",
        "freshrank every 1d",
    ]
    assert [model["sync_every_s"] for model in report["models"]] == [None, 20, 86_400]


def test_same_seed_repeats_to_the_bit_and_another_does_not() -> None:
    chunk = stream([4] * 100)
    figures = [replayed(chunk, seeds=(seed,)).models[0].runs[0] for seed in (1, 1, 2)]
    assert figures[0] == figures[1] != figures[2]
    both = replayed(chunk, seeds=(1, 2)).models[0].runs
    assert [both[0], both[1]] == [figures[0], figures[2]]


def test_report_counts_what_was_replayed() -> None:
    first, second = stream([3] * 40), stream([2] * 30, seed=2)
    report = replayed(first, second).document()
    assert (report["examples"], report["requests"]) == (180, 70)
    assert report["tables"]["item_id"]["rows"] == N_ITEMS
    assert report["rows"] == N_ITEMS + 9
    assert report["bytes"] > 0
    assert report["examples_per_second"] > 0
    ages = report["models"][0]["tasks"]["click"]["calibration_by_age"]
    assert sum(age["examples"] for age in ages.values()) == 180


def test_without_items_no_row_has_the_age_of_one() -> None:
    chunk = stream([3] * 40)
    settings = SETTINGS.model_copy(update={"features": SETTINGS.features[:1]})
    report = Report("c.yaml", "t.parquet")
    TableReplay(settings, FeatureEncoder(settings), encode, seeds=[1]).run(iter([chunk]), report)
    click = report.models[0].runs[0]["click"]
    assert click["examples"] == 120
    assert [age["examples"] for age in click["calibration_by_age"].values()] == [0, 0, 0, 0]


def test_what_came_before_a_broken_source_is_reported() -> None:
    def chunks() -> Iterator[Chunk]:
        yield stream([3] * 40)
        raise DataError("it breaks off", code="broken-file")

    report = Report("c.yaml", "t.parquet")
    reached: list[Reached] = []
    replay = TableReplay(SETTINGS, ENCODER, encode, seeds=[1])
    broken = replay.run(chunks(), report, on_progress=reached.append)
    assert str(broken) == report.stopped == "it breaks off"
    assert report.examples == 120
    assert [(one.n_examples, one.ts_ms) for one in reached] == [(120, 49_000)]
    assert reached[0].auc == pytest.approx(report.models[0].runs[0]["click"]["auc_all"])


def test_interrupted_replay_reports_what_it_had_for_all_models_alike() -> None:
    class Interrupted(Popularity):
        def predict_then_learn(self, chunk: Chunk, encoded: Encoded) -> F32:
            if self.shows.sum() > 2 * N_ITEMS:  # in the second chunk, after our own model
                raise KeyboardInterrupt
            return super().predict_then_learn(chunk, encoded)

    report = Report("c.yaml", "t.parquet")
    replay = TableReplay(SETTINGS, ENCODER, encode, seeds=[1], baselines=[Interrupted()])
    broken = replay.run(iter([stream([3] * 40), stream([2] * 30)]), report)
    assert str(broken) == report.stopped
    assert str(broken).startswith("it was interrupted")
    assert report.examples == 120
    assert [model.runs[0]["click"]["examples"] for model in report.models] == [120, 120]


class Popularity:
    """Click rate of each item so far, counted request by request."""

    name = "popularity"

    def __init__(self) -> None:
        self.clicks, self.shows = np.ones(N_ITEMS), np.full(N_ITEMS, 2.0)

    def predict_then_learn(self, chunk: Chunk, encoded: Encoded) -> F32:
        items = encoded.slots["item_id"].ids.astype(np.int64)
        scores = np.empty(chunk.n_rows, np.float32)
        for request in np.unique(chunk.request_numbers):
            rows = chunk.request_numbers == request
            scores[rows] = self.clicks[items[rows]] / self.shows[items[rows]]
            np.add.at(self.clicks, items[rows], chunk.labels[rows, 0])
            np.add.at(self.shows, items[rows], 1)
        return scores


def test_baseline_has_a_row_over_the_same_examples() -> None:
    chunk = stream([5] * 300)
    report = Report("c.yaml", "t.parquet")
    replay = TableReplay(SETTINGS, ENCODER, encode, seeds=[1], baselines=[Popularity()])
    replay.run(iter([chunk]), report)
    ours, theirs = report.document()["models"]
    assert theirs["name"] == "popularity"
    assert theirs["tasks"]["click"]["examples"] == ours["tasks"]["click"]["examples"] == 1_500
    assert 0.7 < theirs["tasks"]["click"]["auc_second_half"] < 0.9  # (0.7 against 0.1) at best .82
    assert theirs["examples_per_second"] > 0


def test_pace_waits_until_event_time_has_come() -> None:
    clock = ManualClock()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.advance(ms=round(seconds * 1_000))

    pace = Pace(10.0, clock, sleep)
    for ts_ms in (50_000, 60_000, 60_000, 61_000):
        pace.wait(ts_ms)
    clock.advance(ms=5_000)  # behind: no wait until event time is ahead again
    pace.wait(100_000)
    pace.wait(162_000)
    assert slept == pytest.approx([1.0, 0.1, 5.1])


def test_without_speed_nothing_waits() -> None:
    pace = Pace(None, ManualClock(), lambda seconds: pytest.fail(f"slept {seconds}"))
    pace.wait(0)
    pace.wait(10**12)
