"""An id is forgotten: its row, its counts, the checkpoints, and what old records would make."""

from pathlib import Path

import numpy as np
import pytest

from embedding_store import mix_ids
from freshrank.transport.local import LocalLog
from tests.unit.trainer.conftest import MakeBench
from tests.unit.trainer.example_records import FEATURES, Bench, make_batch
from tests.unit.trainer.test_trainer_rollback import (
    ADAPTIVE,
    learn,
    newest_checkpoint,
    refusals,
    roll_back,
    settle,
)
from trainer.checkpoint import read
from trainer.checkpoint_store import CheckpointStore
from trainer.loop import Trainer

USER = 7
MARK = {"freshrank.actions:0": 50}
CROSSED = [
    *FEATURES,
    {"name": "both", "type": "cross", "of": ["user_id", "item_id"], "dim": 4},
    {"name": "last_clicks", "type": "recent", "event": "click", "max_len": 3},
]


def forget(bench: Bench, slot: str = "user_id", key: int = USER) -> None:
    bench.manual.advance(ms=1)
    bench.command("forget", slot=slot, id=key, marks=MARK)
    bench.manual.advance(ms=1)


def has_row(trainer: Trainer, key: int = USER, table: str = "user_id") -> bool:
    return bool(trainer.learner.sparse.tables[table].contains(np.array([key], np.uint64))[0])


def old_rows(bench: Bench, n: int = 4, user: int = USER) -> None:
    """Rows of the user whose impressions entered the log before everything else."""
    slots = {"user_id": [[user]] * n, "item_id": [[i + 1] for i in range(n)]}
    bench.append(make_batch(bench.encoder, slots, [1] * n, request_ids=[f"o{i}" for i in range(n)]))


def new_rows(bench: Bench, n: int = 1) -> None:
    now_ms = bench.manual.now_ms()
    slots = {"user_id": [[USER]] * n, "item_id": [[3]] * n}
    bench.append(
        make_batch(
            bench.encoder,
            slots,
            [1] * n,
            ts_ms=now_ms,
            appended_at_ms=now_ms,
            request_ids=[f"n{i}" for i in range(n)],
        )
    )


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return make_bench(**ADAPTIVE)


def learned(bench: Bench) -> Trainer:
    trainer = bench.trainer()
    learn(bench, trainer, 1)
    assert has_row(trainer)
    return trainer


def test_the_row_leaves_the_table_and_a_delta_has_its_tombstone(bench: Bench) -> None:
    trainer = learned(bench)
    forget(bench)
    settle(trainer)
    trainer.drain()
    assert not has_row(trainer)
    base = bench.frames()[0]
    last = bench.frames()[-1].tables["user_id"]
    assert USER in last.tombstones
    assert USER not in last.keys
    assert base.info.kind == "base"
    assert trainer.accounting()["keys_forgotten"] == trainer.accounting()["rows_forgotten"] == 1


def test_an_idle_or_paused_trainer_publishes_it(bench: Bench) -> None:
    trainer = learned(bench)
    bench.command("pause")
    before = bench.channel.head()
    forget(bench)
    for _ in range(3):
        bench.manual.advance(ms=10_000)
        settle(trainer)
    after = bench.channel.head()
    assert before is not None
    assert after is not None
    assert after.base_seq > before.seq
    [base] = bench.frames()
    assert USER not in base.tables["user_id"].keys


def test_counts_of_one_that_waits_for_its_row_begin_again(make_bench: MakeBench) -> None:
    features = [{**FEATURES[0], "admission": {"min_count": 3}}, *FEATURES[1:]]
    bench = make_bench(features=features, **ADAPTIVE)
    trainer = bench.trainer()
    old_rows(bench, 2)
    trainer.drain()
    table = trainer.learner.sparse.tables["user_id"]
    assert table.pending(np.array([USER], np.uint64))[0] == 2
    forget(bench)
    settle(trainer)
    old_rows(bench, 5)
    new_rows(bench, 1)
    trainer.drain()
    assert table.pending(np.array([USER], np.uint64))[0] == 1


def test_old_records_do_not_bring_it_back_and_later_ones_begin_afresh(bench: Bench) -> None:
    trainer = learned(bench)
    forget(bench)
    settle(trainer)
    old_rows(bench)
    old_rows(bench, 2, user=8)
    trainer.drain()
    assert not has_row(trainer)
    counts = trainer.accounting()
    assert (counts["examples_forgotten"], counts["rows_learned"]) == (4, 42)
    new_rows(bench)
    trainer.drain()
    assert has_row(trainer)
    born_s = trainer.learner.sparse.tables["user_id"].born_s(np.array([USER], np.uint64))
    assert born_s[0] == bench.manual.now_ms() // 1_000


def test_a_restart_from_any_checkpoint_and_all_of_the_log_keeps_it_out(bench: Bench) -> None:
    trainer = learned(bench)
    trainer.close()
    trainer = bench.trainer()
    forget(bench)
    settle(trainer)
    trainer.close()
    again = bench.trainer()
    old_rows(bench)
    again.drain()
    assert not has_row(again)
    again.close()
    # From nothing: all examples and commands once more.
    for path in CheckpointStore(bench.directory / "trainer", keep=3).all():
        path.rename(bench.directory / path.name)
    fresh = bench.trainer()
    fresh.drain()
    assert not has_row(fresh)
    assert fresh.accounting()["rows_learned"] > 0


def test_a_trainer_killed_before_its_checkpoint_forgets_again(bench: Bench) -> None:
    trainer = learned(bench)
    trainer.close()
    victim = bench.trainer()
    forget(bench)
    victim._advance(flush=False)
    assert not has_row(victim)
    again = bench.trainer()
    settle(again)
    assert not has_row(again)


@pytest.mark.parametrize("relearn", [False, True])
def test_neither_a_kept_checkpoint_nor_what_followed_it_brings_it_back(
    bench: Bench, *, relearn: bool
) -> None:
    trainer = learned(bench)
    trainer.close()
    CheckpointStore(bench.directory / "trainer", keep=3).keep("good")
    trainer = bench.trainer()
    learn(bench, trainer, 2)
    forget(bench)
    settle(trainer)
    roll_back(bench, "kept-good", relearn=relearn)
    settle(trainer)
    trainer.drain()
    assert refusals(bench) == []
    assert trainer.accounting()["rollbacks"] == 1
    assert not has_row(trainer)
    assert USER not in bench.frames()[0].tables["user_id"].keys


def test_going_back_behind_it_keeps_what_was_learned_since(bench: Bench) -> None:
    trainer = learned(bench)
    forget(bench)
    settle(trainer)
    new_rows(bench)
    trainer.drain()
    trainer.close()
    trainer = bench.trainer()
    trainer.step(0.0)
    name = newest_checkpoint(bench).name
    learn(bench, trainer, 2)
    roll_back(bench, name)
    settle(trainer)
    assert has_row(trainer)


def test_no_checkpoint_of_before_has_it(bench: Bench) -> None:
    trainer = learned(bench)
    trainer.close()
    store = CheckpointStore(bench.directory / "trainer", keep=3)
    store.keep("good")
    trainer = bench.trainer()
    learn(bench, trainer, 2)
    trainer.close()
    trainer = bench.trainer()
    forget(bench)
    settle(trainer)
    trainer._saver.settle()
    names = [path.name for path in store.all()]
    assert names[0] == "kept-good"
    assert len(names) == 2
    for path in store.all():
        tables = read(path).tables
        assert not tables["user_id"].contains(np.array([USER], np.uint64))[0], path
        assert len(tables["item_id"]) > 0
    # Once is enough: what is clean is not written again.
    at_ns = (store.kept()[0] / "state.json").stat().st_mtime_ns
    trainer.close()
    bench.trainer().close()
    assert (store.kept()[0] / "state.json").stat().st_mtime_ns == at_ns


def test_rows_that_the_guard_goes_by_do_not_name_it(bench: Bench) -> None:
    trainer = learned(bench)
    canary = trainer._saver._guard.canary
    rows, _ = canary.kept()
    assert rows is not None
    assert USER in rows.values.slots["user_id"].ids
    forget(bench)
    settle(trainer)
    rows, unseen = canary.kept()
    assert rows is not None
    assert USER not in rows.values.slots["user_id"].ids
    assert len(unseen) == rows.n_rows > 0


def test_pairs_of_it_leave_and_a_table_that_features_share_loses_one_id(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(features=CROSSED, **ADAPTIVE)
    trainer = bench.trainer()
    pairs = mix_ids(np.full(2, USER, np.uint64), np.array([1, 2], np.uint64), bench.settings.salt)
    slots = {
        "user_id": [[USER], [USER]],
        "item_id": [[1], [2]],
        "both": [[int(pair)] for pair in pairs],
        "last_clicks": [[5], [5, 1]],
    }
    bench.append(make_batch(bench.encoder, slots, [1, 0], request_ids=["a", "b"]))
    trainer.drain()
    tables = trainer.learner.sparse.tables
    assert tables["both"].contains(pairs).all()
    forget(bench, "item_id", 1)
    settle(trainer)
    assert tables["both"].contains(pairs).tolist() == [False, True]
    # Of an old row that is about another item only the id goes.
    bench.append(make_batch(bench.encoder, slots, [1, 0], request_ids=["c", "d"]))
    trainer.drain()
    assert not has_row(trainer, 1, "item_id")
    assert has_row(trainer, 5, "item_id")
    assert trainer.accounting()["examples_forgotten"] == 1


def test_an_id_of_another_feature_leaves_its_rows_bags(bench: Bench) -> None:
    trainer = bench.trainer()
    slots = {"user_id": [[1], [2]], "item_id": [[1], [2]], "tags": [[3, 4], [4]]}
    batch = make_batch(bench.encoder, slots, [1, 0], request_ids=["a", "b"])
    bench.append(batch)
    trainer.drain()
    forget(bench, "tags", 4)
    settle(trainer)
    bench.append(batch)
    trainer.drain()
    assert not has_row(trainer, 4, "tags")
    assert has_row(trainer, 3, "tags")
    assert trainer.accounting()["rows_learned"] == 4


@pytest.mark.parametrize(
    ("slot", "key", "code"), [("price", 1, "unknown-slot"), ("user_id", -1, "bad-id")]
)
def test_what_cannot_be_forgotten_is_a_dead_letter(
    bench: Bench, slot: str, key: int, code: str
) -> None:
    trainer = learned(bench)
    forget(bench, slot, key)
    learn(bench, trainer, 2)
    settle(trainer)
    assert refusals(bench) == [code]
    assert trainer.accounting()["rows_learned"] == 80


def test_one_that_nobody_knows_is_forgotten_all_the_same(bench: Bench) -> None:
    trainer = learned(bench)
    forget(bench, key=12_345)
    settle(trainer)
    counts = trainer.accounting()
    assert (counts["keys_forgotten"], counts["rows_forgotten"]) == (1, 0)


@pytest.mark.parametrize("retention_ms", [None, 1])
def test_a_denial_stays_as_long_as_records_that_need_it(
    make_bench: MakeBench, *, retention_ms: int | None
) -> None:
    bench = make_bench(**ADAPTIVE)
    bench.log.close()
    bench.log = LocalLog(
        bench.directory / "log",
        clock=bench.clock,
        fsync="never",
        retention_ms=retention_ms,
        segment_bytes=1,
    )
    trainer = learned(bench)
    forget(bench)
    settle(trainer)
    state = trainer._saver.state

    def go_on(offset: int) -> None:
        slots, offsets = {"user_id": [[1]]}, {"freshrank.actions:0": offset}
        bench.append(make_batch(bench.encoder, slots, [1], offsets=offsets))
        trainer._saver.settle()
        bench.manual.advance(ms=3_600_000)
        settle(trainer)

    for _ in range(3):
        go_on(50)  # the joiner has not come to the command
    assert [one.until for one in state.denied] == [{}]
    for _ in range(4):
        go_on(51)
    if retention_ms is None:
        assert [one.until for one in state.denied] == [{0: 5}]
    else:
        assert state.denied == []


def test_nothing_of_the_key_is_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    trainer = learned(bench)
    forget(bench, key=987_654_321)
    with caplog.at_level("DEBUG"):
        settle(trainer)
    assert "forget=done" in caplog.text
    assert "987654321" not in caplog.text


def test_a_scrub_that_was_cut_off_is_ended(bench: Bench, tmp_path: Path) -> None:
    trainer = learned(bench)
    trainer.close()
    store = CheckpointStore(bench.directory / "trainer", keep=3)
    kept = store.keep("good")
    kept.rename(kept.with_name("scrubbed-kept-good"))  # the old one is gone, the new not in place
    trainer = bench.trainer()
    forget(bench)
    settle(trainer)
    trainer._saver.settle()
    assert not read(kept).tables["user_id"].contains(np.array([USER], np.uint64))[0]
