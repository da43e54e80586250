"""The loop: what is learned, what is refused, pausing, positions and progress."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from freshrank import examples, frames
from freshrank.errors import ConfigError, SchemaError, TransportError
from freshrank.transport.base import CONTROL, EXAMPLES, NewRecord
from tests.unit.trainer.conftest import MakeBench
from tests.unit.trainer.example_records import make_batch, random_batch
from trainer.loop import Trainer

ADAPTIVE = {"trainer": {"batching": "adaptive", "batch_max": 32}}


def _step_all(trainer: Trainer) -> int:
    total = 0
    while n := trainer.step(0.0):
        total += n
    return total


def _items(trainer: Trainer) -> set[int]:
    return set(trainer._learner.sparse.tables["item_id"].keys().tolist())


def test_every_example_of_every_partition_is_learned_once(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE, log={"partitions": 3})
    for n in range(30):
        batch = make_batch(bench.encoder, {"item_id": [[2 * n], [2 * n + 1]]}, [1, 0])
        bench.append(batch, partition=n % 3)
    trainer = bench.trainer()
    assert _step_all(trainer) == 60
    assert _items(trainer) == set(range(60))
    assert trainer.accounting()["examples_learned"] == 60
    trainer.close()
    assert _step_all(bench.trainer()) == 0  # nothing is left after a restart


def test_fixed_batching_of_several_partitions_is_refused(make_bench: MakeBench) -> None:
    with pytest.raises(ConfigError, match=r"needs log.partitions: 1, got 2"):
        make_bench(log={"partitions": 2}).trainer()


def test_vectors_of_several_lengths_are_refused(make_bench: MakeBench) -> None:
    features = [
        {"name": "item_id", "type": "id", "scope": "item", "dim": 4},
        {"name": "user_id", "type": "id", "scope": "user", "dim": 8},
    ]
    with pytest.raises(ConfigError, match="dim"):
        make_bench(features=features).trainer()


def test_remainder_of_a_fixed_batch_waits_for_drain(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.append(random_batch(bench.encoder, np.random.default_rng(0), 40))
    trainer = bench.trainer()
    assert _step_all(trainer) == 32
    assert trainer.drain() == 8
    assert trainer.accounting()["rows_learned"] == 40


def test_close_of_a_fixed_trainer_leaves_the_remainder_in_the_log(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.append(random_batch(bench.encoder, np.random.default_rng(0), 40))
    bench.trainer().close()
    again = bench.trainer()
    assert again.accounting()["rows_learned"] == 32
    assert again.drain() == 8


def test_close_of_an_adaptive_trainer_learns_and_publishes_what_is_there(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(**ADAPTIVE)
    bench.append(random_batch(bench.encoder, np.random.default_rng(0), 70, offsets={"a:0": 9}))
    bench.trainer().close()
    assert bench.frames()[-1].info.examples == 70
    assert bench.frames()[-1].info.offsets == {"a:0": 9}


def test_bad_rows_go_to_the_dead_letter_and_the_rest_is_learned(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE)
    slots = {"item_id": [[1], [2], [3], [4]]}
    weights = [[1], [np.nan], [1e30], [1]]
    bench.append(make_batch(bench.encoder, slots, [1, 1, 1, 0], weights=weights))
    trainer = bench.trainer()
    assert _step_all(trainer) == 2
    assert _items(trainer) == {1, 4}
    [letter] = bench.letters()
    assert (letter.topic, letter.partition, letter.offset) == (EXAMPLES, 0, 0)
    assert letter.code == "bad-weight"
    refused = examples.decode(letter.value, ["click"], [s.name for s in bench.encoder.slots])
    assert refused.values.slots["item_id"].ids.tolist() == [2, 3]
    assert trainer.accounting()["examples_dead_letter"] == 2
    assert trainer.accounting()["examples_dead_letter:bad-weight"] == 2


def test_record_that_is_no_batch_goes_to_the_dead_letter_as_it_is(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE)
    bench.log.append(EXAMPLES, [NewRecord(b"k", b"rubbish")])
    bench.append(make_batch(bench.encoder, {"item_id": [[5]]}, [1]))
    trainer = bench.trainer()
    assert _step_all(trainer) == 1
    assert [(letter.code, letter.value) for letter in bench.letters()] == [
        ("malformed", b"rubbish")
    ]


def test_examples_of_a_newer_joiner_stop_the_trainer_and_wait_for_it(make_bench: MakeBench) -> None:
    """They are no dead letters: the joiner cannot write them again."""
    bench = make_bench()
    batch = make_batch(bench.encoder, {}, [1])
    newer = replace(batch, info=replace(batch.info, v=examples.VERSION + 1))
    bench.append(newer)
    with pytest.raises(SchemaError, match="offset 0: example format 2 is newer than 1"):
        bench.trainer().step(0.0)
    assert bench.letters() == []


def test_examples_of_another_schema_stop_the_trainer(make_bench: MakeBench) -> None:
    bench = make_bench()
    other = make_bench(model={"hidden": [3]})
    bench.append(make_batch(other.encoder, {}, [1]))
    with pytest.raises(SchemaError, match="offset 0 was written for schema"):
        bench.trainer().step(0.0)


def test_row_that_poisons_a_step_is_dead_lettered_and_the_rest_is_learned(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(**ADAPTIVE)
    bench.append(make_batch(bench.encoder, {"item_id": [[666]]}, [1]))
    trainer = bench.trainer()
    _step_all(trainer)
    sparse = trainer._learner.sparse
    nan = np.full((1, sparse.width), np.nan, np.float32)
    sparse.tables["item_id"].apply(np.array([666], np.uint64), nan)
    bench.append(make_batch(bench.encoder, {"item_id": [[7], [666]]}, [1, 0], offsets={"a:0": 1}))
    assert _step_all(trainer) == 1
    bench.append(make_batch(bench.encoder, {"item_id": [[8]]}, [1]))
    assert trainer.drain() == 1
    counts = trainer.accounting()
    assert counts["nonfinite_steps"] == 1
    assert counts["rows_learned"] == 3
    [letter] = bench.letters()
    assert (letter.code, letter.offset) == ("non-finite", 1)
    refused = examples.decode(letter.value, ["click"], [s.name for s in bench.encoder.slots])
    assert refused.values.slots["item_id"].ids.tolist() == [666]
    assert refused.info.offsets == {}  # appending it again decides nothing
    assert bench.progress.offset("trained", "a", 0) == 1


def test_drain_goes_on_behind_a_refused_batch(make_bench: MakeBench) -> None:
    bench = make_bench(trainer={"batching": "fixed", "batch_max": 2})
    bench.append(make_batch(bench.encoder, {"item_id": [[1], [666]]}, [1, 1]))
    trainer = bench.trainer()
    _step_all(trainer)
    sparse = trainer._learner.sparse
    nan = np.full((1, sparse.width), np.nan, np.float32)
    sparse.tables["item_id"].apply(np.array([666], np.uint64), nan)
    bench.append(make_batch(bench.encoder, {"item_id": [[2], [666], [3], [4], [5]]}, [1] * 5))
    assert trainer.drain() == 4
    assert trainer.accounting()["examples_dead_letter"] == 1


def test_letters_a_full_log_did_not_take_are_appended_before_learning_goes_on(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(**ADAPTIVE)
    bench.append(make_batch(bench.encoder, {"item_id": [[1]]}, [1], weights=np.nan))
    trainer = bench.trainer()
    with monkeypatch.context() as patch:

        def refuse(*_: object, **__: object) -> None:
            raise TransportError("disk full")

        patch.setattr(bench.log, "append", refuse)
        with pytest.raises(TransportError, match="disk full"):
            _step_all(trainer)
        assert trainer.accounting()["examples_dead_letter"] == 1
    trainer.step(0.0)
    assert len(bench.letters()) == 1
    assert trainer.accounting()["examples_dead_letter"] == 1


def test_paused_trainer_learns_and_publishes_nothing_until_resumed(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE)
    trainer = bench.trainer()
    trainer.step(0.0)
    bench.command("pause")
    bench.append(random_batch(bench.encoder, np.random.default_rng(0), 10))
    head = bench.channel.head()
    for _ in range(3):
        bench.manual.advance(ms=5_000)
        assert trainer.step(0.0) == 0
    assert bench.channel.head() == head
    assert trainer.statistics()["paused"] == 1.0
    trainer.close()
    restarted = bench.trainer()  # the pause outlives a restart
    assert restarted.step(0.0) == 0
    assert restarted.statistics()["paused"] == 1.0
    bench.command("resume")
    bench.manual.advance(ms=5_000)
    assert _step_all(restarted) == 10


def test_record_that_is_no_command_is_passed_over(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE)
    bench.log.append(CONTROL, [NewRecord(b"", b"rubbish")])
    bench.command("pause")
    trainer = bench.trainer()
    trainer.step(0.0)
    assert trainer.statistics()["paused"] == 1.0
    assert [letter.code for letter in bench.letters(CONTROL)] == ["malformed"]
    assert trainer.accounting()["control_dead_letter"] == 1


def test_offsets_are_trained_once_all_rows_of_their_record_are(make_bench: MakeBench) -> None:
    bench = make_bench()
    rng = np.random.default_rng(0)
    bench.append(random_batch(bench.encoder, rng, 40, offsets={"freshrank.actions:0": 7}))
    trainer = bench.trainer()
    _step_all(trainer)
    assert bench.progress.offset("trained", "freshrank.actions", 0) == 0
    bench.append(random_batch(bench.encoder, rng, 24))
    _step_all(trainer)
    assert bench.progress.offset("trained", "freshrank.actions", 0) == 7


def test_run_ends_with_a_checkpoint_when_told_to(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE)
    bench.append(random_batch(bench.encoder, np.random.default_rng(0), 50))
    trainer, stop = bench.trainer(), threading.Event()
    stop.set()
    trainer.run(stop)
    assert bench.trainer().accounting()["rows_learned"] == 50


def test_accounting_adds_up_with_reversals(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE)
    pair = make_batch(
        bench.encoder,
        {"item_id": [[1], [1]]},
        [1, 0],
        weights=[[1], [-1]],
        is_reversal=True,
        request_ids=["r", "r"],
        items=["i", "i"],
    )
    bench.append(make_batch(bench.encoder, {"item_id": [[1]]}, [0]), pair)
    trainer = bench.trainer()
    trainer.drain()
    counts = trainer.accounting()
    assert (counts["rows_learned"], counts["examples_learned"]) == (3, 2)
    assert counts["examples_reversed"] == 1


def test_statistics_follow_what_was_learned(make_bench: MakeBench) -> None:
    bench = make_bench(**ADAPTIVE)
    batch = random_batch(bench.encoder, np.random.default_rng(0), 200)
    served = np.where(batch.labels > 0, 0.9, 0.1)
    bench.append(random_batch(bench.encoder, np.random.default_rng(0), 200, served=served))
    trainer = bench.trainer()
    bench.manual.advance(ms=2_000)
    trainer.drain()
    found = trainer.statistics()
    assert found["auc"] == 1.0
    assert found["click.calibration"] == pytest.approx(
        np.average(served) / np.average(batch.labels), rel=1e-5
    )
    slots = batch.values.slots
    users = slots["user_id"].ids[batch.is_first]  # ids of a user count in the first row only
    n_ids = [len(set(ids.tolist())) for ids in (users, slots["item_id"].ids, slots["tags"].ids)]
    assert found["rows"] == sum(n_ids)
    assert found["tables.item_id.rows"] == n_ids[1]
    assert found["tables.item_id.bytes"] > 0
    assert found["tables.item_id.threshold"] == 1
    assert found["examples_per_second"] == 100.0


def test_restart_learns_its_backlog_before_it_replaces_what_is_served(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(**ADAPTIVE)
    bench.append(random_batch(bench.encoder, np.random.default_rng(0), 200))
    bench.trainer().drain()  # published, but never saved: as after kill -9
    head = bench.channel.head()
    assert head is not None

    again = bench.trainer()
    again.start()

    found = bench.channel.base()
    assert found is not None
    epoch, _, data = found
    info = frames.decode_info(data)
    assert epoch == head.epoch + 1
    assert (info.examples, info.untrained) == (200, False)


def test_catching_up_is_bounded(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench(**ADAPTIVE)
    bench.trainer().start()
    bench.append(random_batch(bench.encoder, np.random.default_rng(0), 200))
    monkeypatch.setattr("trainer.loop._CATCH_UP_S_MAX", 0.0)
    assert bench.trainer().start() == 0
