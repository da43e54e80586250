"""The replica: base, deltas, refusals, healing; and what a request may read meanwhile."""

import threading
from typing import Any

import numpy as np
import pytest

from freshrank import frames
from freshrank.errors import TransportError
from freshrank.frames import Frame, TableRows
from freshrank.metrics import Counts, Metrics
from freshrank.transport.base import ACTIONS
from service.learned import HISTORY_MAX, OUTCOMES_MAX, Learned, Reached, SampleWindow
from service.model import Model, ModelShape
from service.replica import Replica
from service.signal import Signal
from tests.unit.service.support import (
    DIM,
    NOW_MS,
    World,
    linear_net,
    make_settings,
    outcome,
    table_rows,
    until,
)

WIDTH = DIM + 1


@pytest.fixture
def replica(world: World) -> Replica:
    metrics = Metrics(world.registry)
    return Replica(world.settings, world.encoder, world.channel, world.clock, metrics, Signal())


def settle(replica: Replica) -> None:
    """Apply everything that can be applied."""
    while replica.step(0.0):
        pass
    replica.step(0.0)


def version(replica: Replica) -> str:
    assert replica.model is not None
    return replica.model.current.info.version


def row(replica: Replica, key: int, table: str = "item_id") -> list[float] | None:
    """The row of an id, or None."""
    assert replica.model is not None
    one = np.array([key], np.uint64)
    reading = replica.model.read({table: (table, one, np.array([0, 1]), "sum")})
    if not reading.n_found[table][0]:
        return None
    values: list[float] = reading.rows[table][0].tolist()
    return values


def rows(**keys: float) -> dict[str, TableRows]:
    """Rows of item ids `k<id>`, each filled with one value."""
    return {"item_id": table_rows({int(k[1:]): [v] * WIDTH for k, v in keys.items()})}


def test_nothing_published_is_no_model(replica: Replica) -> None:
    assert replica.step(0.0) is False
    assert replica.model is None


def test_deltas_are_applied_in_order_and_tombstones_remove(world: World, replica: Replica) -> None:
    world.base(rows(k1=1.0, k2=2.0))
    world.delta(rows(k1=1.5, k3=3.0))
    world.delta({"item_id": table_rows({}, removed=[2])})
    settle(replica)
    assert version(replica) == "d0-s2"
    assert row(replica, 1) == [1.5] * WIDTH
    assert row(replica, 2) is None
    assert row(replica, 3) == [3.0] * WIDTH


def test_a_flipped_bit_is_refused_and_the_next_base_heals(world: World, replica: Replica) -> None:
    world.base(rows(k1=1.0))
    world.delta(rows(k1=2.0))
    world.delta(rows(k1=3.0), damage=True)
    world.delta(rows(k1=4.0))
    settle(replica)
    assert version(replica) == "d0-s1"
    assert row(replica, 1) == [2.0] * WIDTH
    assert replica.is_behind
    assert replica.refusals == {"checksum": 1}
    assert world.registry.get_sample_value(
        "freshrank_sync_batches_total", {"kind": "delta", "result": "checksum"}
    ) == 1.0  # fmt: skip

    world.rebase(rows(k1=4.0), seq=3)
    settle(replica)
    assert version(replica) == "d0-s3"
    assert row(replica, 1) == [4.0] * WIDTH
    assert not replica.is_behind


def test_a_replica_that_holds_asks_for_a_base_once_per_head(
    world: World, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(world.channel, "request_base", lambda *at: asked.append(at))
    world.base(rows(k1=1.0))
    world.delta(rows(k1=2.0))
    settle(replica)
    assert asked == []
    world.delta(rows(k1=3.0), damage=True)
    for _ in range(3):
        settle(replica)
    assert asked == [(1, 1)]
    world.delta(rows(k1=4.0))
    settle(replica)
    assert asked == [(1, 1), (1, 1)]
    (world.directory / "parameters" / "delta-1-2.frame").unlink()
    world.delta(rows(k1=5.0))
    settle(replica)
    assert asked == [(1, 1), (1, 1), (1, 1)]
    assert replica.refusals == {"checksum": 2, "gap": 1}
    assert version(replica) == "d0-s1"


@pytest.mark.parametrize("is_missing", [False, True])
def test_a_damaged_base_is_asked_for_again(
    world: World, replica: Replica, is_missing: bool
) -> None:
    world.base(rows(k1=1.0))
    settle(replica)
    world.base(rows(k1=2.0), seq=4)
    path = world.directory / "parameters" / "base-2-4.frame"
    if is_missing:
        path.unlink()
        with pytest.raises(TransportError, match="lacks base 2-4"):
            replica.step(0.0)
    else:
        path.write_bytes(path.read_bytes()[:-1])
        settle(replica)
    assert world.channel.wanted_base()
    assert version(replica) == "d0-s0"
    world.delta(rows())
    world.rebase(rows(k1=2.0), seq=5)
    settle(replica)
    assert not world.channel.wanted_base()
    assert row(replica, 1) == [2.0] * WIDTH


def test_a_base_of_another_schema_is_not_asked_for_again(world: World, replica: Replica) -> None:
    world.base(schema_hash="0" * 16)
    settle(replica)
    assert replica.refusals == {"schema": 1}
    assert not world.channel.wanted_base()
    assert not (world.directory / "parameters" / "WANTED.json").exists()


def test_a_replica_that_cannot_ask_says_so_once_and_goes_on(
    world: World, replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    (world.directory / "parameters" / "WANTED.json").mkdir()  # stands for a read-only directory
    world.base(rows(k1=1.0))
    world.delta(rows(k1=2.0), damage=True)
    settle(replica)
    for value in (3.0, 4.0):
        world.delta(rows(k1=value))
        settle(replica)
    assert caplog.text.count("replica=waits_for_periodic_base") == 1
    assert replica.refusals == {"checksum": 3}
    world.rebase(rows(k1=4.0), seq=3)
    settle(replica)
    assert row(replica, 1) == [4.0] * WIDTH
    assert not replica.is_behind


def test_a_gap_leads_back_to_the_base(world: World, replica: Replica) -> None:
    world.base(rows(k1=1.0))
    settle(replica)
    for value in (2.0, 3.0):
        world.delta(rows(k1=value))
    world.rebase(rows(k1=3.0, k9=9.0), seq=2)
    for path in (world.directory / "parameters").glob("delta-*"):
        path.unlink()
    settle(replica)
    assert version(replica) == "d0-s2"
    assert row(replica, 9) == [9.0] * WIDTH
    assert replica.refusals == {"gap": 1}


@pytest.mark.parametrize(
    ("fields", "tables", "reason"),
    [
        ({"schema_hash": "0" * 16}, {}, "schema"),
        ({}, {"nowhere": table_rows({1: [0.0] * WIDTH})}, "schema"),
        ({}, {"item_id": table_rows({1: [0.0] * (WIDTH + 1)})}, "schema"),
        ({}, {"item_id": table_rows({1: [float("nan")] * WIDTH})}, "nonfinite"),
        ({}, {"item_id": table_rows({1: [float("inf")] * WIDTH})}, "nonfinite"),
        ({"epoch": 77}, {}, "gap"),
        ({"seq": 5}, {}, "gap"),
    ],
)
def test_an_unfit_delta_changes_nothing(
    world: World, replica: Replica, fields: dict[str, Any], tables: Any, reason: str
) -> None:
    world.base(rows(k1=1.0))
    settle(replica)
    world.delta(tables, **fields)
    settle(replica)
    assert version(replica) == "d0-s0"
    assert row(replica, 1) == [1.0] * WIDTH
    assert replica.refusals == {reason: 1}


def test_an_unfit_base_keeps_the_old_epoch_serving(world: World, replica: Replica) -> None:
    world.base(rows(k1=1.0))
    settle(replica)
    world.base(rows(k1=2.0), dense=b"no graph")
    settle(replica)
    assert row(replica, 1) == [1.0] * WIDTH
    assert replica.refusals == {"dense": 1}
    world.base(rows(k1=3.0))
    settle(replica)
    assert row(replica, 1) == [3.0] * WIDTH


def test_a_new_epoch_is_swapped_whole(world: World, replica: Replica) -> None:
    world.base(rows(k1=1.0, k2=2.0), seq=7)
    settle(replica)
    old = replica.model
    world.base(rows(k1=5.0), seq=3)
    settle(replica)
    assert version(replica) == "d0-s3"
    assert row(replica, 2) is None
    assert old is not None
    old_reading = old.read(
        {"item_id": ("item_id", np.array([1, 2], np.uint64), np.arange(3), "sum")}
    )
    assert old_reading.rows["item_id"][:, 0].tolist() == [1.0, 2.0]
    assert old_reading.current.info.version == "d0-s7"


def test_an_epoch_that_is_over_is_refused(world: World, replica: Replica) -> None:
    """Somebody put an old parameters directory back under a running service."""
    world.base(rows(k1=1.0))
    head = world.directory / "parameters" / "HEAD.json"
    old = head.read_bytes()
    world.base(rows(k1=2.0))
    settle(replica)
    head.write_bytes(old)
    settle(replica)
    assert replica.refusals == {"epoch": 1}
    assert row(replica, 1) == [2.0] * WIDTH


def test_the_thread_survives_a_bug(
    world: World,
    replica: Replica,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    world.base(rows(k1=1.0))
    settle(replica)
    monkeypatch.setattr(frames, "decode", lambda data: 1 / 0)
    world.delta(rows(k1=2.0))
    replica.start()
    until(lambda: "internal" in replica.refusals)
    monkeypatch.undo()
    until(lambda: version(replica) == "d0-s1")
    replica.stop()
    replica.join()
    assert "ZeroDivisionError" in caplog.text


def test_a_dense_net_arrives_with_its_version(world: World, replica: Replica) -> None:
    world.base()
    settle(replica)
    assert replica.model is not None
    old = replica.model.current.net
    world.clock.advance(ms=10)
    world.delta(dense=linear_net(world.settings), dense_version=1)
    settle(replica)
    current = replica.model.current
    assert current.info.version == "d1-s1"
    assert current.net is not old
    assert current.dense_published_at_ms == NOW_MS + 10


def not_finite(world: World) -> bytes:
    n_slots = len(world.encoder.slots)
    weights = np.full((n_slots * WIDTH, 2), np.nan, np.float32)
    return linear_net(world.settings, weights)


def other_shape(world: World) -> bytes:
    features = [{"name": "item_id", "type": "id", "scope": "item", "dim": 9}]
    return linear_net(make_settings(features=features))


@pytest.mark.parametrize("make", [not_finite, other_shape, lambda world: b"\x00garbage"])
def test_a_dense_net_that_fails_leaves_the_old_one_and_the_rows_go_on(
    world: World, replica: Replica, make: Any
) -> None:
    world.base(rows(k1=1.0))
    settle(replica)
    assert replica.model is not None
    old = replica.model.current.net
    world.delta(rows(k1=2.0), dense=make(world), dense_version=1)
    world.delta(rows(k2=2.0), dense_version=1)
    settle(replica)
    current = replica.model.current
    assert current.info.version == "d0-s2"
    assert current.net is old
    assert current.is_dense_stale
    assert row(replica, 1) == [2.0] * WIDTH
    assert replica.refusals == {"dense": 1}
    world.delta(dense=linear_net(world.settings), dense_version=2)
    settle(replica)
    assert version(replica) == "d2-s3"
    assert not replica.model.current.is_dense_stale


def test_freshness_counts_what_was_waited_for_here(world: World, replica: Replica) -> None:
    world.base(action_appended_at_ms=[NOW_MS - 99_000])
    settle(replica)
    assert len(replica.action_freshness) == 0
    world.delta(
        action_appended_at_ms=[NOW_MS - 500, NOW_MS - 1_500, NOW_MS + 9],
        impression_appended_at_ms=[NOW_MS - 30_000],
    )
    settle(replica)
    assert len(replica.action_freshness) == 3
    assert replica.action_freshness.percentile(50) == 0.5
    assert replica.action_freshness.percentile(100) == 1.5
    assert replica.impression_freshness.percentile(99) == 30.0
    actions, negatives = replica.freshness.readings()
    assert actions.labels == {"stage": "total", "kind": "action"}
    assert isinstance(actions.value, Counts)
    assert (actions.value.buckets.sum(), actions.value.total) == (3, 2.0)
    assert negatives.labels["kind"] == "negative"


def test_windows_are_bounded() -> None:
    window = SampleWindow(n_max=3)
    window.add([1.0, 2.0, 3.0, 10.0])
    assert len(window) == 3
    assert window.percentile(0) == 2.0
    assert SampleWindow().percentile(50) is None


def test_outcomes_and_histories_are_bounded(world: World) -> None:
    learned = Learned()
    log = f"{ACTIONS}:0"
    for seq in range(1, HISTORY_MAX + 2):
        learned.record(world.info("delta", seq, offsets={log: seq}), applied_at_ms=NOW_MS + seq)
    assert learned.reached(ACTIONS, 0, HISTORY_MAX) == Reached(NOW_MS, NOW_MS + HISTORY_MAX + 1)
    assert learned.reached(ACTIONS, 0, 0) == Reached(None, None)
    outcomes = [outcome(offset, "late") for offset in range(OUTCOMES_MAX + 1)]
    learned.record(world.info("delta", 1, outcomes=outcomes), applied_at_ms=NOW_MS)
    assert learned.outcome(ACTIONS, 0, 0) is None
    assert learned.outcome(ACTIONS, 0, OUTCOMES_MAX) == "late"


def test_a_trainer_that_resumed_earlier_takes_offsets_back(world: World) -> None:
    learned = Learned()
    log = f"{ACTIONS}:0"
    for offset, at in ((5, 10), (9, 20), (7, 30), (8, 40)):
        learned.record(world.info("delta", 1, offsets={log: offset}), applied_at_ms=at)
    assert learned.offset(ACTIONS, 0) == 8
    applied = [learned.reached(ACTIONS, 0, offset) for offset in (4, 6, 7, 8)]
    assert [one and one.applied_at_ms for one in applied] == [10, 30, 40, None]


def test_the_thread_survives_a_channel_that_fails(world: World, replica: Replica) -> None:
    world.base(rows(k1=1.0))
    head = world.directory / "parameters" / "HEAD.json"
    good = head.read_bytes()
    head.write_bytes(b"{")
    replica.start()
    try:
        until(lambda: replica.refusals == {"transport": 1})
        head.write_bytes(good)
        until(lambda: replica.model is not None)
    finally:
        replica.stop()
        replica.join()


def test_no_answer_is_torn_or_more_than_one_frame_ahead(world: World) -> None:
    """A writer applies frames whose rows and dense net spell their seq; readers check them."""
    n_rows = 10_000  # three chunks per frame
    keys = np.arange(n_rows, dtype=np.uint64)
    none = np.empty(0, np.uint64)

    def frame(kind: str, seq: int) -> Frame:
        values = np.full((n_rows, WIDTH), seq, np.float32)
        tables = {name: TableRows(keys, values, none) for name in ("item_id", "user_id")}
        dense_weights = np.full((2, 2), seq, np.float32)
        net = linear_net(world.settings, dense=dense_weights) if seq % 3 == 0 else None
        info = world.info(kind, seq, dense_version=seq // 3)
        return frames.decode(frames.encode(Frame(info, tables, net)))

    model = Model(frame("base", 0), ModelShape.of(world.encoder, n_tasks=2))
    stop = threading.Event()
    faults: list[str] = []
    n_reads = [0, 0]

    def read(reader: int) -> None:
        rng = np.random.default_rng(reader)
        while not stop.is_set():
            singles = np.arange(501)
            bags = {
                name: (name, rng.integers(n_rows, size=500).astype(np.uint64), singles, "sum")
                for name in ("item_id", "user_id")
            }
            reading = model.read(bags)
            seq = reading.current.info.seq
            for values in reading.rows.values():
                if (values != values[:, :1]).any():
                    faults.append(f"torn row at {seq}")
                low, high = values.min(), values.max()
                if not seq <= low <= high <= seq + 1:
                    faults.append(f"rows {low}..{high} in an answer of {seq}")
            ones = np.ones((1, 2), np.float32)
            zeros = np.zeros((1, len(world.encoder.slots), WIDTH), np.float32)
            net_seq = reading.current.net.predict(zeros, ones)[0, 0] / 2
            if net_seq != reading.current.info.dense_version * 3:
                faults.append(f"net of {net_seq} under {reading.current.info.version}")
            n_reads[reader] += 1

    readers = [threading.Thread(target=read, args=(i,)) for i in range(2)]
    for reader in readers:
        reader.start()
    n_frames = 150
    for seq in range(1, n_frames + 1):
        assert model.apply(frame("delta", seq)) is None
    stop.set()
    for reader in readers:
        reader.join()
    assert faults == []
    assert model.current.info.seq == n_frames
    assert min(n_reads) > n_frames / 10
