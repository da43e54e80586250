"""Frames: what a replica that applies them holds, and what happens when the channel fails."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest

from embedding_store import ServingTable
from freshrank.errors import SyncError, TransportError
from freshrank.features import FeatureEncoder
from freshrank.frames import Frame, Outcome, decode
from tests.unit.trainer.conftest import MakeBench
from tests.unit.trainer.example_records import Bench, make_batch, random_batch
from trainer.export import OnnxExport
from trainer.learner import Learner
from trainer.loop import Trainer
from trainer.losses import served

ADAPTIVE: dict[str, Any] = {"trainer": {"batching": "adaptive", "batch_max": 32}}
EXPIRING: list[dict[str, Any]] = [
    {"name": "user_id", "type": "id", "scope": "user", "dim": 4},
    {"name": "item_id", "type": "id", "scope": "item", "key": "uint64", "dim": 4, "expire": "2s"},
    {"name": "tags", "type": "id_list", "scope": "item", "dim": 4, "expire": "5s"},
    {"name": "price", "type": "dense", "scope": "candidate"},
]


class Replica:
    """Applies frames as the simplest reader would."""

    def __init__(self) -> None:
        self.tables: dict[str, ServingTable] = {}
        self.dense = b""
        self.seq = -1

    def apply(self, frame: Frame) -> None:
        assert frame.info.kind == "base" or frame.info.seq == self.seq + 1
        for name, change in frame.tables.items():
            if frame.info.kind == "base":
                self.tables[name] = ServingTable(width=change.rows.shape[1], initial_rows=16)
            self.tables[name].upsert(change.keys, change.rows)
            self.tables[name].remove(change.tombstones)
        self.seq = frame.info.seq
        self.dense = frame.dense or self.dense

    @staticmethod
    def of(frames: Sequence[Frame]) -> "Replica":
        replica = Replica()
        for frame in frames:
            replica.apply(frame)
        return replica


def _assert_equal(replica: Replica, trainer: Trainer) -> None:
    for name, table in trainer._learner.sparse.tables.items():
        keys = table.keys()
        assert replica.tables[name].keys().tolist() == keys.tolist()
        np.testing.assert_array_equal(replica.tables[name].lookup(keys)[0], table.lookup(keys))


def _feed(bench: Bench, trainer: Trainer, n_records: int, *, seed: int = 0) -> None:
    """A record a second, in event time and on the clock; a publication after each."""
    rng = np.random.default_rng(seed)
    for _ in range(n_records):
        bench.manual.advance(ms=1_000)
        now_ms = bench.manual.now_ms()
        bench.append(random_batch(bench.encoder, rng, 20, ts_ms=now_ms, appended_at_ms=now_ms))
        trainer.step(0.0)


def test_first_base_is_the_seeded_initialisation(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.trainer().step(0.0)
    [base] = bench.frames()
    assert base.info.version == "d0-s0"
    assert base.info.untrained
    assert base.dense is not None
    assert {name: len(rows.keys) for name, rows in base.tables.items()} == {
        "user_id": 0,
        "item_id": 0,
        "tags": 0,
    }


def test_base_and_deltas_replayed_equal_the_tables(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE, features=EXPIRING)
    trainer = bench.trainer()
    trainer.start()
    _feed(bench, trainer, 40)
    frames = bench.frames()
    assert sum(len(f.tables["item_id"].tombstones) for f in frames) > 0
    _assert_equal(Replica.of(frames), trainer)
    assert frames[-1].info.examples == 800
    assert not frames[-1].info.untrained
    assert frames[-1].info.watermark_ms == bench.manual.now_ms()


def test_rows_that_go_as_float16_are_those_of_the_tables_rounded(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE, sync={"dtype": "float16"})
    trainer = bench.trainer()
    trainer.start()
    _feed(bench, trainer, 5)
    replica = Replica.of(bench.frames())
    for name, table in trainer._learner.sparse.tables.items():
        rows = table.lookup(table.keys())
        assert len(rows) > 0
        rounded = rows.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(replica.tables[name].lookup(table.keys())[0], rounded)


def test_base_behind_its_delta_is_what_the_deltas_lead_to(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE, features=EXPIRING, sync={"full_every": "7s"})
    trainer = bench.trainer()
    trainer.start()
    follower = Replica.of(bench.frames())
    base_seqs = set()
    for seed in range(30):
        _feed(bench, trainer, 1, seed=seed)
        head = bench.channel.head()
        assert head is not None
        data = bench.channel.delta(head.epoch, head.seq)
        assert data is not None
        follower.apply(decode(data))
        newcomer = Replica.of(bench.frames())
        _assert_equal(follower, trainer)
        _assert_equal(newcomer, trainer)
        assert newcomer.dense == follower.dense
        assert newcomer.seq == follower.seq
        base_seqs.add(head.base_seq)
        if head.base_seq == head.seq:  # a base holds no tombstones, so the older ones can go
            tables = trainer._learner.sparse.tables.values()
            assert sum(table.statistics()["tombstones"] for table in tables) == 0
    assert base_seqs == {0, 7, 14, 21, 28}


def test_nothing_new_is_no_frame(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE, sync={"dense_every": "1s"})
    trainer = bench.trainer()
    trainer.start()
    _feed(bench, trainer, 2)
    bench.manual.advance(ms=1_000)
    trainer.step(0.0)  # the dense net of the last examples may still be due
    head = bench.channel.head()
    for _ in range(5):
        bench.manual.advance(ms=2_000)
        trainer.step(0.0)
    assert bench.channel.head() == head


def test_trainer_with_nothing_to_tell_sleeps_however_often_it_may_publish(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(**ADAPTIVE, sync={"sparse_every": "1ms"})
    trainer = bench.trainer()
    trainer.start()
    bench.manual.advance(ms=100)
    assert trainer._publisher.due_in_s() == pytest.approx(0.4)  # until it looks for wanted bases
    bench.append(random_batch(bench.encoder, np.random.default_rng(0), 20))
    trainer.catch_up()
    assert trainer._publisher.due_in_s() == 0


def test_offsets_alone_are_news(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE)
    trainer = bench.trainer()
    trainer.start()
    outcome = Outcome("freshrank.actions", 0, 41, "late")
    bench.append(
        make_batch(bench.encoder, {}, [], offsets={"freshrank.actions:0": 42}, outcomes=[outcome])
    )
    bench.manual.advance(ms=1_000)
    trainer.step(0.0)
    info = bench.frames()[-1].info
    assert info.offsets == {"freshrank.actions:0": 42}
    assert info.outcomes == [outcome]
    # A partition that lags behind does not take back what another one said.
    bench.append(make_batch(bench.encoder, {}, [], offsets={"freshrank.actions:0": 40}))
    _feed(bench, trainer, 1)
    assert bench.frames()[-1].info.outcomes == []  # told once
    assert bench.frames()[-1].info.offsets == {"freshrank.actions:0": 42}


def test_samples_are_of_learned_actions_and_negatives_since_the_last_frame(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(**ADAPTIVE)
    trainer = bench.trainer()
    trainer.start()
    for shift in (0, 100):
        batch = make_batch(
            bench.encoder,
            {},
            [1, 0, 1],
            weights=[[1], [1], [0]],
            appended_at_ms=[1 + shift, 2 + shift, 3 + shift],
        )
        bench.append(batch)
        bench.manual.advance(ms=1_000)
        trainer.step(0.0)
        info = bench.frames()[-1].info
        assert info.action_appended_at_ms == [1 + shift]
        assert info.impression_appended_at_ms == [2 + shift]


def test_dense_net_keeps_its_own_slower_beat(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE, sync={"dense_every": "5s"})
    trainer = bench.trainer()
    trainer.start()
    _feed(bench, trainer, 16)
    frames = bench.frames()
    assert [f.info.seq for f in frames if f.dense is not None] == [0, 5, 10, 15]
    assert [f.info.dense_version for f in frames][4:7] == [0, 1, 1]


def test_dense_net_of_the_last_examples_is_published_though_nothing_follows(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(**ADAPTIVE, sync={"dense_every": "5s"})
    trainer = bench.trainer()
    trainer.start()
    _feed(bench, trainer, 2)
    assert bench.frames()[-1].info.dense_version == 0
    for _ in range(5):
        bench.manual.advance(ms=1_000)
        trainer.step(0.0)
    assert bench.frames()[-1].info.version == "d1-s3"
    assert bench.frames()[-1].dense is not None


def test_published_net_scores_as_the_learner_does(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE, sync={"dense_every": "1s"})
    trainer = bench.trainer()
    trainer.start()
    _feed(bench, trainer, 20)
    replica = Replica.of(bench.frames())
    batch = random_batch(bench.encoder, np.random.default_rng(9), 7, weights=0)
    rows = trainer._learner.sparse.peek(batch.values)
    session = onnxruntime.InferenceSession(replica.dense, providers=["CPUExecutionProvider"])
    z = session.run(["z"], {"rows": rows, "dense": batch.values.dense})[0]
    own = trainer._learner.learn(batch).predictions
    np.testing.assert_allclose(served(z, ["logloss"]), own, atol=1e-5)


class Failing:
    """A channel whose publications fail while told to."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_broken = False
        self.arrives = False
        self._real = bench.channel.publish_delta
        monkeypatch.setattr(bench.channel, "publish_delta", self.publish_delta)

    def publish_delta(self, epoch: int, seq: int, frame: bytes) -> None:
        if not self.is_broken or self.arrives:
            self._real(epoch, seq, frame)
        if self.is_broken:
            raise TransportError("the channel is away")


@pytest.mark.parametrize("arrives", [False, True])
def test_failed_publication_is_made_up_by_the_next(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    """`arrives`: the frame got there and only the answer was lost."""
    bench = make_bench(**ADAPTIVE, features=EXPIRING)
    failing = Failing(bench, monkeypatch)
    failing.arrives = arrives
    trainer = bench.trainer()
    trainer.start()
    _feed(bench, trainer, 12)
    failing.is_broken = True
    _feed(bench, trainer, 6, seed=1)
    failing.is_broken = False
    _feed(bench, trainer, 2, seed=2)
    _assert_equal(Replica.of(bench.frames()), trainer)
    assert trainer.accounting()["publish_failures"] >= 1
    assert bench.frames()[-1].info.examples == 400


def test_base_that_failed_is_published_before_any_delta(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(**ADAPTIVE)
    trainer = bench.trainer()

    def refuse(*_: object) -> None:
        raise TransportError("the channel is away")

    with monkeypatch.context() as patch:
        patch.setattr(bench.channel, "publish_base", refuse)
        trainer.start()
        _feed(bench, trainer, 3)
        assert bench.channel.head() is None
    _feed(bench, trainer, 2, seed=1)
    frames = bench.frames()
    assert [f.info.seq for f in frames] == [0, 1]
    assert trainer.accounting()["publish_failures"] == 4
    _assert_equal(Replica.of(frames), trainer)


def _wait_s(bench: Bench, trainer: Trainer, n_s: int) -> list[int]:
    """Let so many seconds pass without examples; the base's seq after each."""
    base_seqs = []
    for _ in range(n_s):
        bench.manual.advance(ms=1_000)
        trainer.step(0.0)
        head = bench.channel.head()
        assert head is not None
        base_seqs.append(head.base_seq)
    return base_seqs


def test_wanted_base_comes_although_nothing_is_new(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE, features=EXPIRING, sync={"dense_every": "1h"})
    trainer = bench.trainer()
    trainer.start()
    _feed(bench, trainer, 9)
    followed = Replica.of(bench.frames())
    bench.channel.request_base(1, 4)
    assert _wait_s(bench, trainer, 2) == [9, 9]
    assert not bench.channel.wanted_base()
    [base] = bench.frames()
    assert base.dense == followed.dense
    _assert_equal(Replica.of([base]), trainer)


def test_wanted_base_follows_a_delta_of_what_is_new(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE, features=EXPIRING, sync={"sparse_every": "1h"})
    trainer = bench.trainer()
    trainer.start()
    follower = Replica.of(bench.frames())
    _feed(bench, trainer, 5)
    bench.channel.request_base(1, 0)
    assert _wait_s(bench, trainer, 1) == [1]
    delta = bench.channel.delta(1, 1)
    assert delta is not None
    follower.apply(decode(delta))
    _assert_equal(follower, trainer)
    _assert_equal(Replica.of(bench.frames()), trainer)


def test_wanted_base_takes_the_place_of_a_damaged_base_at_the_same_seq(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(**ADAPTIVE)
    trainer = bench.trainer()
    trainer.start()
    bench.channel.request_base(1, 0)
    assert _wait_s(bench, trainer, 1) == [1]
    delta = bench.channel.delta(1, 1)  # for those that hold seq 0 already
    assert delta is not None
    assert [len(rows.keys) for rows in decode(delta).tables.values()] == [0, 0, 0]
    _assert_equal(Replica.of(bench.frames()), trainer)


@pytest.mark.parametrize("is_busy", [False, True])
def test_wanted_bases_are_five_seconds_apart(make_bench: MakeBench, is_busy: bool) -> None:
    bench = make_bench(**ADAPTIVE)
    trainer = bench.trainer()
    trainer.start()
    base_seqs, changed_at_s = [0], []
    for second in range(1, 18):
        head = bench.channel.head()
        assert head is not None
        bench.channel.request_base(head.epoch, head.base_seq)  # every base arrives damaged
        if is_busy:
            _feed(bench, trainer, 1, seed=second)
        base_seqs += _wait_s(bench, trainer, 0 if is_busy else 1) or [bench.frames()[0].info.seq]
        if base_seqs[-1] != base_seqs[-2]:
            changed_at_s.append(second)
    assert changed_at_s == [1, 6, 11, 16]


def test_wanted_base_comes_from_a_paused_trainer_too(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE, sync={"dense_every": "1h"})
    trainer = bench.trainer()
    trainer.start()
    _feed(bench, trainer, 3)
    trainer._state.is_paused = True
    bench.append(random_batch(bench.encoder, np.random.default_rng(7), 10))
    assert _wait_s(bench, trainer, 6) == [0] * 6
    bench.channel.request_base(1, 2)
    assert _wait_s(bench, trainer, 1) == [3]
    assert bench.frames()[-1].info.examples == 60
    _assert_equal(Replica.of(bench.frames()), trainer)


def test_wanted_base_of_a_restarted_trainer_is_its_first(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE)
    trainer = bench.trainer()
    trainer.start()
    _feed(bench, trainer, 3)
    trainer.close()
    bench.channel.request_base(1, 2)
    again = bench.trainer()
    again.start()
    assert not bench.channel.wanted_base()
    assert _wait_s(bench, again, 12) == [4] * 12


@pytest.mark.parametrize("method", ["wanted_base", "publish_base"])
def test_wanted_base_that_failed_comes_later(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    bench = make_bench(**ADAPTIVE)
    trainer = bench.trainer()
    trainer.start()
    _feed(bench, trainer, 3)
    n_calls = 0

    def refuse(*_: object) -> None:
        nonlocal n_calls
        n_calls += 1
        raise TransportError("the channel is away")

    bench.channel.request_base(1, 1)
    with monkeypatch.context() as patch:
        patch.setattr(bench.channel, method, refuse)
        assert _wait_s(bench, trainer, 4) == [0] * 4
    assert n_calls == 1
    assert _wait_s(bench, trainer, 2) == [0, 3]


def test_trainer_that_was_taken_over_stops(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE)
    old = bench.trainer()
    old.start()
    bench.trainer().start()
    with pytest.raises(SyncError) as caught:
        _feed(bench, old, 1)
    assert caught.value.code == "fenced"


def test_start_reads_no_more_of_a_base_than_what_it_says_of_itself(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(**ADAPTIVE)
    trainer = bench.trainer()
    trainer.start()
    _feed(bench, trainer, 12)
    bench.trainer().start()
    [before] = bench.frames()  # a base that no delta stands behind
    with monkeypatch.context() as patched:
        patched.setattr(bench.channel, "base", lambda: pytest.fail("all rows are read"))
        bench.trainer().start()
    [base] = bench.frames()
    assert (base.info.epoch, base.info.seq) == (before.info.epoch + 1, before.info.seq + 1)
    assert base.info.dense_version == before.info.dense_version + 1


def test_restart_opens_an_epoch_whose_versions_are_new(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE)
    trainer = bench.trainer()
    trainer.start()
    _feed(bench, trainer, 12)
    trainer._saver.save()
    _feed(bench, trainer, 3, seed=1)  # published, but in no checkpoint
    before = bench.frames()[-1].info
    again = bench.trainer()
    again.start()
    [base] = bench.frames()
    assert (base.info.epoch, base.info.seq) == (before.epoch + 1, before.seq + 1)
    assert base.info.dense_version == before.dense_version + 1
    assert not base.info.untrained
    _assert_equal(Replica.of(bench.frames()), again)
    while again.step(0.0):
        bench.manual.advance(ms=1_000)
    _assert_equal(Replica.of(bench.frames()), again)


@pytest.mark.parametrize("n_records", [0, 3])
def test_restart_replaces_a_base_that_is_missing(make_bench: MakeBench, n_records: int) -> None:
    bench = make_bench(**ADAPTIVE)
    trainer = bench.trainer()
    trainer.start()
    _feed(bench, trainer, n_records)
    trainer.close()
    (bench.directory / "parameters" / "base-1-0.frame").unlink()
    again = bench.trainer()
    again.start()
    [base] = bench.frames()
    assert (base.info.epoch, base.info.seq) == (2, n_records + 1)
    _assert_equal(Replica.of([base]), again)


def test_rows_that_are_not_finite_are_not_published(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(**ADAPTIVE)
    trainer = bench.trainer()
    trainer.start()
    _feed(bench, trainer, 1)
    head = bench.channel.head()
    sparse = trainer._learner.sparse
    key = sparse.tables["item_id"].keys()[:1]
    sparse.tables["item_id"].apply(key, np.full((1, sparse.width), np.inf, np.float32))
    bench.append(make_batch(bench.encoder, {"item_id": [[9_999]]}, [1]))
    bench.manual.advance(ms=1_000)
    with caplog.at_level(logging.ERROR):
        trainer.step(0.0)
    assert bench.channel.head() == head
    assert trainer.accounting()["publications_refused"] == 1
    assert "publication=refused" in caplog.text


def test_net_without_dense_values_and_with_two_tasks_is_exported(make_bench: MakeBench) -> None:
    tasks = [{"name": "click", "event": "click"}, {"name": "buy", "event": "buy"}]
    for kind in ("deepfm", "logistic"):
        bench = make_bench(features=EXPIRING[:2], tasks=tasks, model={"kind": kind, "hidden": []})
        learner = Learner(bench.settings, FeatureEncoder(bench.settings))
        data = OnnxExport(learner.net, learner.losses).render(*learner.probe())
        assert data is not None
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        assert [i.name for i in session.get_inputs()] == ["rows"]
        assert session.get_outputs()[0].shape[1] == 2


def test_net_that_scores_differently_than_torch_does_not_leave(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(**ADAPTIVE, sync={"dense_every": "1s"})
    trainer = bench.trainer()
    trainer.start()
    net = trainer._learner.net
    real = type(net).forward
    # What torch scores is no longer what was exported.
    monkeypatch.setattr(type(net), "forward", lambda *inputs: real(*inputs) + 0.001)
    _feed(bench, trainer, 3)
    assert [f.info.seq for f in bench.frames() if f.dense is not None] == [0]
    assert [f.info.dense_version for f in bench.frames()] == [0, 0, 0, 0]
    assert trainer._publisher._export.n_refused == 3
    monkeypatch.undo()
    _feed(bench, trainer, 1, seed=1)
    assert bench.frames()[-1].info.dense_version == 1


@pytest.mark.parametrize("n_rows", [20, 0], ids=["busy", "idle"])
def test_emptied_channel_gets_a_base_of_an_epoch_above(make_bench: MakeBench, n_rows: int) -> None:
    bench = make_bench(**ADAPTIVE)
    for _ in range(2):
        trainer = bench.trainer()
        trainer.start()
        _feed(bench, trainer, 3)
        trainer.close()
    trainer = bench.trainer()
    trainer.start()
    for path in (bench.directory / "parameters").iterdir():
        path.unlink()
    if n_rows:
        _feed(bench, trainer, 2, seed=1)
    else:
        bench.manual.advance(ms=1_000)
        trainer.step(0.0)
    head = bench.channel.head()
    assert head is not None
    assert (head.epoch, head.base_seq) == (4, 9)
    _assert_equal(Replica.of(bench.frames()), trainer)
    assert trainer.accounting()["publish_failures"] == 1


def test_channel_that_hangs_is_left_alone_for_a_while(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(**ADAPTIVE)
    trainer = bench.trainer()
    trainer.start()
    tried_s: list[float] = []

    def hang(*_: object) -> None:
        tried_s.append(bench.clock.monotonic_s())
        bench.manual.advance(ms=2_000)
        raise TransportError("the channel hangs")

    began_s = bench.clock.monotonic_s()
    for name in ("publish_base", "publish_delta", "beat", "wanted_base"):
        monkeypatch.setattr(bench.channel, name, hang)
    _feed(bench, trainer, 60)
    assert trainer.accounting()["rows_learned"] == 60 * 20
    spent_s = bench.clock.monotonic_s() - began_s
    assert 2 * len(tried_s) <= spent_s / 5 + 4
