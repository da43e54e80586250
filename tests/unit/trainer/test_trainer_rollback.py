"""Back to an earlier checkpoint: parameters, positions, versions, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from freshrank.frames import Frame
from freshrank.transport.base import CONTROL, EXAMPLES
from freshrank.transport.local import LocalLog
from tests.unit.trainer.conftest import MakeBench
from tests.unit.trainer.example_records import Bench, random_batch
from trainer.checkpoint import MANIFEST
from trainer.checkpoint_store import CheckpointStore
from trainer.loop import Trainer

ADAPTIVE = {"trainer": {"batching": "adaptive", "batch_max": 32}}


def roll_back(bench: Bench, to: str, *, relearn: bool = False) -> None:
    bench.command("rollback", to=to, relearn=relearn)


def learn(bench: Bench, trainer: Trainer, seed: int) -> None:
    bench.append(
        random_batch(bench.encoder, np.random.default_rng(seed), 40, offsets={"a:0": seed})
    )
    trainer.drain()


def settle(trainer: Trainer) -> int:
    """Step until nothing is left, twice over: what a step begins the next one ends."""
    n_rows = 0
    for _ in range(4):
        while n := trainer.step(0.0):
            n_rows += n
    return n_rows


def content(frame: Frame) -> tuple[dict[str, dict[int, bytes]], bytes | None]:
    """Rows by table and key, and the dense net."""
    rows = {
        name: {int(key): row.tobytes() for key, row in zip(table.keys, table.rows, strict=True)}
        for name, table in frame.tables.items()
    }
    return rows, frame.dense


def newest_checkpoint(bench: Bench) -> Path:
    newest = CheckpointStore(bench.directory / "trainer", keep=3).newest()
    assert newest is not None
    return newest


def refusals(bench: Bench) -> list[str]:
    return [letter.code for letter in bench.letters(CONTROL)]


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return begun(make_bench)


def begun(make_bench: MakeBench) -> Bench:
    """With a checkpoint of what was learned from 40 rows."""
    bench = make_bench(**ADAPTIVE)
    trainer = bench.trainer()
    learn(bench, trainer, 1)
    trainer.close()
    return bench


def test_the_base_of_the_next_epoch_is_what_the_checkpoint_holds(bench: Bench) -> None:
    trainer = bench.trainer()
    trainer.step(0.0)
    good, name = bench.frames()[-1], newest_checkpoint(bench).name
    learn(bench, trainer, 2)
    bad = bench.frames()[-1]
    assert content(bad) != content(good)

    roll_back(bench, name)
    settle(trainer)

    back = bench.frames()[-1]
    assert content(back) == content(good)
    assert back.info.kind == "base"
    assert back.info.epoch == bad.info.epoch + 1
    assert back.info.seq > bad.info.seq
    assert back.info.offsets == {"a:0": 2}  # the input is not learned again
    counts = trainer.accounting()
    assert (counts["rollbacks"], counts["rows_rolled_back"]) == (1, 40)
    assert counts["rows_learned"] == 80


def test_learning_again_comes_to_the_same_parameters(bench: Bench, make_bench: MakeBench) -> None:
    trainer = bench.trainer()
    trainer.step(0.0)
    name = newest_checkpoint(bench).name
    learn(bench, trainer, 2)
    roll_back(bench, name, relearn=True)
    assert settle(trainer) == 40
    trainer.drain()

    other = begun(make_bench)
    undisturbed = other.trainer()
    learn(other, undisturbed, 2)

    for name, table in undisturbed.learner.sparse.tables.items():
        keys = np.sort(table.keys())
        ours = trainer.learner.sparse.tables[name]
        np.testing.assert_array_equal(np.sort(ours.keys()), keys)
        np.testing.assert_array_equal(ours.lookup(keys), table.lookup(keys))
    assert (trainer.learner.adam.parameters == undisturbed.learner.adam.parameters).all()
    assert trainer.accounting()["rows_learned"] == undisturbed.accounting()["rows_learned"] == 80


def test_it_holds_over_a_restart(bench: Bench) -> None:
    trainer = bench.trainer()
    trainer.step(0.0)
    good = bench.frames()[-1]
    learn(bench, trainer, 2)
    roll_back(bench, newest_checkpoint(bench).name)
    settle(trainer)
    trainer.close()

    again = bench.trainer()
    again.step(0.0)

    assert content(bench.frames()[-1]) == content(good)
    assert again.accounting()["rollbacks"] == 1


def test_a_paused_trainer_goes_back_and_stays_paused(bench: Bench) -> None:
    trainer = bench.trainer()
    trainer.step(0.0)
    good = bench.frames()[-1]
    learn(bench, trainer, 2)
    bench.command("pause")
    roll_back(bench, newest_checkpoint(bench).name)
    bench.append(random_batch(bench.encoder, np.random.default_rng(3), 40))

    assert settle(trainer) == 0
    assert content(bench.frames()[-1]) == content(good)


def test_it_is_obeyed_where_the_parameters_are_not_finite_any_more(bench: Bench) -> None:
    trainer = bench.trainer()
    trainer.step(0.0)
    good, name = bench.frames()[-1], newest_checkpoint(bench).name
    trainer.learner.adam.parameters.fill_(float("nan"))
    roll_back(bench, name)
    settle(trainer)
    assert content(bench.frames()[-1]) == content(good)


@pytest.mark.parametrize("relearn", [False, True])
def test_an_unknown_checkpoint_is_refused_and_learning_goes_on(
    bench: Bench, *, relearn: bool
) -> None:
    trainer = bench.trainer()
    trainer.step(0.0)
    roll_back(bench, "../../etc", relearn=relearn)
    bench.append(random_batch(bench.encoder, np.random.default_rng(2), 40))
    assert settle(trainer) == 40
    assert refusals(bench) == ["unknown-checkpoint"]
    assert trainer.accounting()["control_dead_letter:unknown-checkpoint"] == 1


def test_a_damaged_checkpoint_is_refused_before_anything_is_touched(bench: Bench) -> None:
    trainer = bench.trainer()
    learn(bench, trainer, 2)
    before = trainer.learner.adam.parameters.clone()
    path = newest_checkpoint(bench)
    table = next(path.glob("table-*.bin"))
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    roll_back(bench, path.name)
    settle(trainer)
    assert refusals(bench) == ["checkpoint-damaged"]
    assert (trainer.learner.adam.parameters == before).all()


def test_what_the_log_lost_cannot_be_learned_again(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE)
    bench.log.close()
    bench.log = LocalLog(
        bench.directory / "log", clock=bench.clock, fsync="never", retention_ms=1, segment_bytes=1
    )
    trainer = bench.trainer()
    learn(bench, trainer, 1)
    trainer.close()
    name = newest_checkpoint(bench).name
    trainer = bench.trainer()
    for seed in (2, 3, 4):
        learn(bench, trainer, seed)
        bench.manual.advance(ms=3_600_000)
    assert bench.log.start_offset(EXAMPLES, 0) > 1
    roll_back(bench, name, relearn=True)
    settle(trainer)
    assert refusals(bench) == ["cannot-relearn"]


def test_one_that_three_trainers_died_of_is_refused_by_the_fourth(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = newest_checkpoint(bench).name
    trainer = bench.trainer()
    learn(bench, trainer, 2)
    trainer.close()
    roll_back(bench, name)
    with monkeypatch.context() as patch:
        patch.setattr("trainer.saver.read", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
        for _ in range(3):
            with pytest.raises(MemoryError):
                bench.trainer().step(0.0)
    fourth = bench.trainer()
    settle(fourth)
    assert refusals(bench) == ["rollback-failed"]
    assert fourth.accounting()["rows_learned"] == 80


def test_a_kept_checkpoint_outlives_the_newer_ones(bench: Bench) -> None:
    store = CheckpointStore(bench.directory / "trainer", keep=3)
    kept = store.keep("good")
    trainer = bench.trainer()
    trainer.step(0.0)
    good = bench.frames()[-1]
    for seed in range(2, 7):
        learn(bench, trainer, seed)
        trainer.close()
        trainer = bench.trainer()
    assert len(store.paths()) == 3
    assert store.newest() != kept
    roll_back(bench, "kept-good")
    settle(trainer)
    assert content(bench.frames()[-1]) == content(good)
    assert (kept / MANIFEST).exists()


def test_within_a_budget_that_has_room_for_one_of_both(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE, store={"max_bytes": "20MiB", "initial_rows": 100})
    trainer = bench.trainer()
    learn(bench, trainer, 1)
    trainer.close()
    trainer = bench.trainer()
    trainer.step(0.0)
    good = bench.frames()[-1]
    for seed in range(2, 5):
        learn(bench, trainer, seed)
    for _ in range(3):
        roll_back(bench, newest_checkpoint(bench).name)
        settle(trainer)
        assert content(bench.frames()[-1])[1] is not None
    assert refusals(bench) == []
    assert bench.frames()[-1].info.epoch == good.info.epoch + 3
